"""Check the installed packages against the versions that CWM requires, without importing them."""

import importlib.metadata
import re
import sys
from collections.abc import Callable, Iterable
from typing import Final

from cwm_connector.core.errors import CWMError
from cwm_mcp.doctor.report import Check, from_checkout
from cwm_mcp.serve import Build, installed_build

_OURS: Final = "context-window-manager"
_OLDEST_PYTHON: Final = (3, 11)
_EXTRAS: Final = {Build.CPU: "cpu", Build.CUDA: "cuda"}
_WANTED: Final = re.compile(r"""([A-Za-z0-9._-]+?)([<>=][^\s;]+)\s*;\s*extra\s*==\s*["'](\w+)["']""")
_CLAUSE: Final = re.compile(r"(==|>=|<)([0-9.]+)")
_MINOR_RUN: Final = "0.32"
"""The minor version of vLLM that every test ran with."""
VersionOf = Callable[[str], str]


def check_packages(
    version_of: VersionOf = importlib.metadata.version, requires: Iterable[str] | None = None
) -> list[Check]:
    """Check Python and the libraries of the engine, whose versions must fit together."""
    found = [_python()]
    try:
        build = installed_build(version_of)
    except CWMError:
        message = "vLLM is not installed here; only the environment that runs the engine needs it"
        return [*found, Check(name="vllm", status="warning", message=message, next=_install("cpu"))]
    extra = _EXTRAS[build]
    try:
        wanted = list(requires if requires is not None else importlib.metadata.requires(_OURS) or ())
    except importlib.metadata.PackageNotFoundError:
        message = "CWM runs from source and is not installed, so the versions it requires are unknown"
        return [*found, Check(name=_OURS, status="warning", message=message, next=_install(extra))]
    ranges = {match[1]: match[2] for line in wanted if (match := _WANTED.match(line)) and match[3] == extra}
    return [*found, *(_package(name, ranges[name], extra, version_of) for name in sorted(ranges))]


def _python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < _OLDEST_PYTHON:
        return Check(
            name="python",
            status="error",
            message=f"{version} is too old; 3.11 or newer is required",
            next="python3.11 -m venv .venv",
        )
    return Check(name="python", status="ok", message=version)


def _package(name: str, wanted: str, extra: str, version_of: VersionOf) -> Check:
    try:
        found = version_of(name)
    except importlib.metadata.PackageNotFoundError:
        # vLLM's own CPU wheels have the plain name.
        if name == Build.CPU.value:
            return _package(Build.CUDA.value, wanted, extra, version_of)
        return Check(name=name, status="error", message=f"not installed; {wanted} is required", next=_install(extra))
    if not _fits(found, wanted):
        message = f"{found} is installed; {wanted} is required"
        return Check(name=name, status="error", message=message, next=_install(extra))
    if name.startswith("vllm") and found.split(".")[:2] != _MINOR_RUN.split("."):
        message = f"{found} should work but was never run with CWM, which was tested with {_MINOR_RUN}"
        return Check(name=name, status="warning", message=message)
    return Check(name=name, status="ok", message=found)


def _fits(found: str, wanted: str) -> bool:
    """Return whether a version lies in the range. A local part such as +cpu names a build of the same release."""
    version = _numbers(found.partition("+")[0])
    holds = {"==": version.__eq__, ">=": version.__ge__, "<": version.__lt__}
    return all(holds[operator](_numbers(bound)) for operator, bound in _CLAUSE.findall(wanted))


def _numbers(version: str) -> tuple[int, ...]:
    """Return the release's numbers without trailing zeros. What comes after them, such as rc1, is left out."""
    release = re.match(r"[0-9.]*", version)
    numbers = [int(part) for part in (release[0] if release else "").split(".") if part]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def _install(extra: str) -> str:
    return from_checkout(f"'.[{extra}]'")
