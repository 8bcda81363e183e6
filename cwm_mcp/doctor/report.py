"""What a check found. Nothing secret may get into one: not a key, a token, a password or a whole command line."""

from typing import Literal

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


def from_checkout(arguments: str) -> str:
    """Return the command that installs this project, which no package index has under its name."""
    return f"pip install {arguments}  # in a checkout of Context Window Manager"


def diagnosis(checks: list[Check]) -> Diagnosis:
    found = {check.status for check in checks}
    return Diagnosis(status="error" if "error" in found else "warning" if "warning" in found else "ok", checks=checks)
