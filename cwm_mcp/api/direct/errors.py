"""The sentences about a socket where no engine of ours answers."""

from pathlib import Path

from cwm_connector.core.errors import Code, CWMError


def unreachable(path: Path, reason: str) -> CWMError:
    """Return the error for a socket that nobody answers."""
    return CWMError(
        Code.ENGINE_UNREACHABLE,
        f"the engine is not reachable at {path} ({reason}); start it with `cwm serve MODEL`, or check CWM_SOCKET",
        socket=str(path),
    )


def not_ours(path: Path) -> CWMError:
    """Return the error for something else that answers."""
    return CWMError(
        Code.ENGINE_UNREACHABLE,
        f"what answers at {path} does not speak the control protocol; check CWM_SOCKET, or install the same version of "
        "Context Window Manager on both sides",
        socket=str(path),
    )


def another_users(path: Path) -> CWMError:
    """Return the error for a socket that this user may not use."""
    return CWMError(
        Code.NOT_ALLOWED, f"the engine's socket {path} belongs to another user; call as the user that runs it"
    )


def silent(path: Path) -> CWMError:
    """Return the error for an engine that does not greet."""
    return CWMError(
        Code.ENGINE_TIMEOUT, f"the engine at {path} accepts clients but does not answer; see whether it still runs"
    )


def too_late(op: str, limit_s: float) -> CWMError:
    """Return the error for a call that was not answered in time."""
    return CWMError(
        Code.ENGINE_TIMEOUT,
        f"the engine gave no answer to {op} within {limit_s:g} s; try again or see whether it runs",
    )
