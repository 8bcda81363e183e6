"""Check the engine: its socket, its version, and the flags that vLLM was started with."""

import os
import shlex
import stat
from pathlib import Path
from typing import Final

import msgspec

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.types import TierName
from cwm_connector.protocol.calls import NoArgs, Op
from cwm_connector.protocol.stats import StoreStats
from cwm_connector.protocol.wire import Welcome
from cwm_connector.settings import Settings
from cwm_connector.version import __version__
from cwm_mcp import serve
from cwm_mcp.api.client import ControlClient
from cwm_mcp.doctor.report import Check, from_checkout

_STATS_S: Final = 5.0
_START: Final = "cwm serve MODEL"
_SAME_CHECKOUT: Final = from_checkout("--upgrade .") + ", here and for the engine"
_ANCESTORS: Final = 4
"""How far up to search for the command line, because the engine is a child of the process that has it."""


async def check_engine(settings: Settings) -> tuple[list[Check], Welcome | None]:
    """Check the socket, the engine and its version, in this order. Return the checks up to the first error.

    The second value is the engine's greeting, or None if there was an error.
    """
    path = settings.socket_path
    fault = _socket_fault(path)
    if fault is not None and fault.status == "error":
        return [fault], None
    found = [fault or Check(name="socket", status="ok", message=f"{path} is private to you")]
    client = ControlClient(path, "cwm doctor")
    try:
        welcome = await client.welcome()
    except CWMError as problem:
        other_version = problem.code not in (Code.ENGINE_UNREACHABLE, Code.ENGINE_TIMEOUT, Code.NOT_ALLOWED)
        step = _SAME_CHECKOUT if other_version else _START
        return [*found, Check(name="engine", status="error", message=str(problem), next=step)], None
    finally:
        await client.aclose()
    message = f"serves {welcome.model}, process {welcome.pid}, control protocol {welcome.version}"
    return [*found, Check(name="engine", status="ok", message=message), _version(welcome)], welcome


async def disk_limit(settings: Settings) -> int | None:
    """Return the size limit of the engine's disk tier, or None if it does not say."""
    client = ControlClient(settings.socket_path, "cwm doctor")
    try:
        answer = await client.call(Op.STATS, NoArgs(), timeout_s=_STATS_S)
        tier = msgspec.convert(answer, StoreStats).kv_store.tiers.get(TierName.DISK.value)
    except (CWMError, msgspec.ValidationError):
        return None
    finally:
        await client.aclose()
    return None if tier is None else tier.limit_bytes


def _socket_fault(path: Path) -> Check | None:
    try:
        about = path.stat()
    except OSError as problem:
        message = f"no engine is running with this CWM_HOME; there is nothing at {path} ({problem.strerror})"
        return Check(name="socket", status="error", message=message, next=_START)
    quoted = shlex.quote(str(path))
    if not stat.S_ISSOCK(about.st_mode):
        message = f"{path} is not a socket; move it away, and the engine creates its socket there"
        return Check(name="socket", status="error", message=message, next=f"ls -l {quoted}")
    if about.st_uid != os.getuid():
        message = f"{path} belongs to user {about.st_uid}; run cwm as that user"
        return Check(name="socket", status="error", message=message, next=f"sudo -u '#{about.st_uid}' cwm doctor")
    if about.st_mode & 0o077:
        message = f"{path} is accessible to other users"
        return Check(name="socket", status="warning", message=message, next=f"chmod 600 {quoted}")
    return None


def _version(welcome: Welcome) -> Check:
    if welcome.engine_version == __version__:
        return Check(name="version", status="ok", message=f"engine and command have version {__version__}")
    message = f"the engine has version {welcome.engine_version}, but this command has {__version__}"
    return Check(name="version", status="warning", message=message, next=_SAME_CHECKOUT)


def check_flags(welcome: Welcome, processes: Path = Path("/proc")) -> Check:
    """Check the flags that the running vLLM was started with, if its process is visible here.

    The message never repeats the command line, which may contain secrets.
    """
    argv = _command_line(welcome.pid, processes)
    if argv is None:
        message = "the engine's command line cannot be read from here; 'cwm serve' sets the flags that CWM needs"
        return Check(name="flags", status="skipped", message=message)
    missing = serve.missing_options(argv)
    if not missing:
        return Check(name="flags", status="ok", message="vLLM has the flags that 'cwm serve' sets")
    message = f"vLLM was started without {', '.join(missing)}"
    return Check(name="flags", status="warning", message=message, next=f"cwm serve {shlex.quote(welcome.model)}")


def _command_line(pid: int, processes: Path) -> list[str] | None:
    """Return the command line of the process, or of its nearest ancestor, that names the connector.

    Return None if there is none, for instance because the engine runs in another process namespace.
    """
    for _ in range(_ANCESTORS):
        try:
            argv = (processes / str(pid) / "cmdline").read_bytes().decode(errors="replace").split("\0")
            status = (processes / str(pid) / "status").read_text()
        except OSError:
            return None
        if any(serve.CONNECTOR["kv_connector"] in word for word in argv):
            return argv
        pid = next((int(line.split()[1]) for line in status.splitlines() if line.startswith("PPid:")), 0)
    return None
