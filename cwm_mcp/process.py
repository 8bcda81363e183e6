"""What a client's process gets from its machine: streams, an encoding, arguments. One line for what does not work.

Scripts and services start programs with closed streams, in a locale that is not UTF-8, or into a full disk.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from cwm_connector.core.errors import Code, CWMError


def prepare() -> None:
    """Make the streams UTF-8, open those that are closed, and read the arguments as UTF-8 in any locale."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    sys.argv[1:] = [_utf8(argument) for argument in sys.argv[1:]]


def _utf8(argument: str) -> str:
    """Return an argument that the locale could not decode, as UTF-8. One that is not UTF-8 stays as it is."""
    try:
        return os.fsencode(argument).decode()
    except UnicodeError:
        return argument


@contextlib.contextmanager
def one_line_for_faults() -> Iterator[None]:
    """Turn a fault of the machine into one line on stderr and exit code 1. A reader that has left needs no line."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        _drop_output()
        sys.exit(1)
    except (OSError, UnicodeError, MemoryError) as problem:
        print(_as_cwm_error(problem), file=sys.stderr)
        _drop_output()
        sys.exit(1)


def _as_cwm_error(problem: Exception) -> CWMError:
    if isinstance(problem, OSError):
        place = str(problem.filename) if problem.filename is not None else "the output"
        reason = problem.strerror or type(problem).__name__
        return CWMError(Code.WRITE_FAILED, f"{place} can't be used ({reason}); correct that and call again")
    return CWMError(
        Code.ARGUMENT, f"this machine can't carry that out ({type(problem).__name__}); give it less or ASCII"
    )


def _drop_output() -> None:
    """Send what is still buffered nowhere. Python would complain about it at its end."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
