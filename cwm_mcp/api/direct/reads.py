"""One call to the engine, for a process that makes it and ends. The catalog answers questions where no engine runs.

The calls are those of `Operations`.
"""

from collections.abc import Callable
from typing import Any, Final, TypeVar

import msgspec

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.protocol import calls
from cwm_connector.protocol import results as m
from cwm_connector.protocol.calls import ARGUMENTS, Op
from cwm_connector.protocol.wire import MAX_CALL_S
from cwm_connector.settings import Settings
from cwm_mcp.api.direct.socket_call import call

R = TypeVar("R", bound=m.Answer)

READ_TIMEOUT_S: Final = 30.0
"""Reads come from a snapshot and not from the engine's thread. One that takes this long will not come."""


class Reads:
    """One client that asks and waits. Every method raises CWMError and nothing else of ours."""

    def __init__(self, settings: Settings, client_name: str, timeout_s: float = READ_TIMEOUT_S) -> None:
        self._settings = settings
        self._name = client_name
        self._timeout_s = timeout_s

    def list_windows(self, args: calls.ListArgs) -> m.WindowList:
        return self._read(m.WindowList, Op.LIST, args, "windows")

    def status(self, args: calls.StatusArgs) -> m.Status:
        return self._read(m.Status, Op.STATUS, args, "status")

    def sessions(self, args: calls.SessionsArgs) -> m.SessionList:
        return self._read(m.SessionList, Op.SESSIONS, args, "sessions")

    def ask(self, result: type[R], op: Op, args: calls.Args, timeout_s: float = MAX_CALL_S) -> R:
        """Return the engine's answer. Raises: `Code.ENGINE_UNREACHABLE` without one, and what the engine raises."""
        return checked(result, call(self._settings.socket_path, self._name, op, wire_arguments(op, args), timeout_s))

    def _read(self, result: type[R], op: Op, args: calls.Args, offline: str) -> R:
        try:
            return self.ask(result, op, args, self._timeout_s)
        except CWMError as problem:
            if problem.code is not Code.ENGINE_UNREACHABLE:
                raise
        from cwm_mcp.api.offline import OfflineCatalog

        asked: Callable[[Any], R] = getattr(OfflineCatalog(self._settings.catalog_path), offline)
        return asked(wire_arguments(op, args))


def wire_arguments(op: Op, args: calls.Args) -> Any:
    """Return the arguments as the protocol's struct: those that the engine needs, under the same names."""
    kind = ARGUMENTS[op]
    return kind(**{name: getattr(args, name) for name in kind.__struct_fields__ if hasattr(args, name)})


def checked(result: type[R], answer: object) -> R:
    """Return the engine's answer as the contract's result.

    Raises: `Code.INTERNAL` if a field is missing or has another type.
    """
    try:
        return msgspec.convert(answer, result)
    except msgspec.ValidationError as invalid:
        raise CWMError(
            Code.INTERNAL,
            f"the engine's answer does not fit ({invalid}); install the same version on both sides",
        ) from None
