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
_PIN: Final = re.compile(r"""([A-Za-z0-9._-]+)==([^\s;]+)\s*;\s*extra\s*==\s*["'](\w+)["']""")
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
    pins = {match[1]: match[2] for line in wanted if (match := _PIN.match(line)) and match[3] == extra}
    return [*found, *(_package(name, pins[name], extra, version_of) for name in sorted(pins))]


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
    plain = found.partition("+")[0]
    if plain == wanted:
        return Check(name=name, status="ok", message=found)
    # Windows are bound to vLLM's minor version, and so is the connector. Another patch release seldom matters.
    patch = name.startswith("vllm") and plain.split(".")[:2] == wanted.split(".")[:2]
    message = f"{found} is installed; " + (f"tested with {wanted}" if patch else f"{wanted} is required")
    return Check(name=name, status="warning" if patch else "error", message=message, next=_install(extra))


def _install(extra: str) -> str:
    return from_checkout(f"'.[{extra}]'")
