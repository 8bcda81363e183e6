"""What a check found. Nothing secret may get into one: not a key, a token, a password or a whole command line."""

from typing import Literal
from urllib.parse import urlsplit

from pydantic import BaseModel

State = Literal["ok", "warning", "error", "skipped"]


class Check(BaseModel):
    """One line. `skipped`: it could not be looked at from here, because of an earlier fault or another machine."""

    name: str
    status: State
    message: str
    next: str | None = None
    """What to type."""


class Diagnosis(BaseModel):
    status: Literal["ok", "warning", "error"]
    checks: list[Check]


def diagnosis(checks: list[Check]) -> Diagnosis:
    found = {check.status for check in checks}
    return Diagnosis(status="error" if "error" in found else "warning" if "warning" in found else "ok", checks=checks)


def without_secrets(url: str) -> str:
    """A URL's scheme, host and path: user, password, query and fragment may all be secret."""
    parts = urlsplit(url)
    hidden = "***@" if "@" in parts.netloc else ""
    return f"{parts.scheme}://{hidden}{parts.netloc.rpartition('@')[2]}{parts.path}"
