"""The result of a check, and of all checks. A message must never contain a key, token, password or command line."""

from typing import Literal

import msgspec

State = Literal["ok", "warning", "error", "skipped"]


class Check(msgspec.Struct, frozen=True, omit_defaults=True):
    """The result of one check. `skipped` means that it is not possible from here, or not after an earlier error."""

    name: str
    status: State
    message: str
    next: str | None = None
    """The command that fixes it."""


class Diagnosis(msgspec.Struct, frozen=True):
    """The results of all checks, and the worst status among them."""

    status: Literal["ok", "warning", "error"]
    checks: list[Check]


def from_checkout(arguments: str) -> str:
    """Return the command that installs this project, which no package index has under its name."""
    return f"pip install {arguments}  # in a checkout of Context Window Manager"


def summarize(checks: list[Check]) -> Diagnosis:
    """Return the checks with the worst status among them."""
    found = {check.status for check in checks}
    return Diagnosis(status="error" if "error" in found else "warning" if "warning" in found else "ok", checks=checks)
