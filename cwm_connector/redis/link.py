"""One connection to Redis or Valkey for small commands, and what makes a write there durable.

Every call is bounded by a time-out and sent once. If its reply is lost, the caller has to find out whether the command
was executed. A link belongs to one thread at a time. It connects when it is first used, and again after any failure.
"""

import time
from collections.abc import Mapping
from typing import Any, Final

import redis
from redis.exceptions import MovedError

from cwm_connector.redis.connect import Node, new_connection
from cwm_connector.redis.errors import NoReply, lost_reply, refusal, unfit
from cwm_connector.redis.server_check import ServerState, info, read_state, setting

CONNECT_TIMEOUT_S: Final = 2.0
CALL_TIMEOUT_S: Final = 3.0
SYNC_TIMEOUT_S: Final = 5.0
_POLL_S: Final = 0.02
_SYNC_PERIOD_MICROS: Final = 1_000_000
_MAX_TRIES: Final = 3
_LOST: Final = "the connection was lost before the append-only file was synced"


class RedisLink:
    """See the module's text."""

    def __init__(
        self, url: str, *, connect_timeout_s: float = CONNECT_TIMEOUT_S, timeout_s: float = CALL_TIMEOUT_S
    ) -> None:
        """Connect to nothing yet. Raises: `Code.ARGUMENT` for a malformed URL."""
        self._url = url
        self._connect_timeout_s = connect_timeout_s
        self._timeout_s = timeout_s
        self._node: Node | None = None
        """The cluster's node that has the keys, where that is not the URL's."""
        self._connection: Any = None
        self._state: ServerState | None = None
        self._new_connection()

    def connect(self) -> None:
        """Connect unless there is a connection. Raises: `Code.BACKEND`; nothing was sent then."""
        if self._connection is not None:
            return
        connection = self._new_connection()
        try:
            connection.connect()
        except (redis.RedisError, OSError, ValueError) as problem:
            connection.disconnect()
            self._node = None  # it may have ended; the URL's node knows which one has taken over
            raise refusal(problem) from None
        self._connection = connection

    def call(
        self, *command: bytes | str | int | float, timeout_s: float | None = None, repeatable: bool = False
    ) -> Any:
        """Send one command and return its reply, in bytes.

        `repeatable`: it may be sent again if the server has hung up, as it does when it restarts.

        Raises: NoReply if the command was sent and no reply came; `Code.BACKEND` if it can't have been executed because
        there is no connection or the server refused it; `Code.QUOTA` if the server has no memory left for it.
        """
        limit_s = self._timeout_s if timeout_s is None else timeout_s
        for _ in range(_MAX_TRIES):
            self.connect()
            try:
                return self._exchange(command, limit_s)
            except MovedError as moved:
                # A cluster's node names the one that has the key. Every key of a caller is in one slot. A node that
                # does not know its own name leaves it out: it means the host that answered.
                self._node = (moved.host or (self._node[0] if self._node else None), moved.port)
                self.close()
            except redis.ResponseError as refused:
                raise refusal(refused) from None
            except NoReply as lost:
                if not repeatable or lost.timed_out:
                    raise
        raise unfit("keeps hanging up or moving its slots; try again in a while")

    def state(self) -> ServerState:
        """Return the facts about this connection's server, read again after each connect. Raises as `call`."""
        if self._state is None:
            self.connect()
            self._state = read_state(self)
        return self._state

    def sync(self, timeout_s: float = SYNC_TIMEOUT_S) -> None:
        """Return once all that this connection has seen the effect of is on the server's disk.

        Raises: NoReply or `Code.BACKEND` if that can't be known in time, or the server no longer keeps its file.
        """
        # Never over a new connection: the server may have restarted without what the old one had seen.
        connection = self._connection
        if connection is None:
            raise NoReply(_LOST)
        state = self.state()
        if state.durability is None:
            raise unfit(f"may lose what it has: {state.risk}")
        if setting(self, "appendfsync") != state.durability.value:
            self.close()  # and look at the server again
            raise unfit("was just set to sync its file differently; try again")
        if state.syncs_each_write:
            _require_file(info(self, "persistence"))
        else:
            self._outwait_a_sync(time.monotonic() + timeout_s)
        if self._connection is not connection:
            raise NoReply(_LOST)

    def close(self) -> None:
        """Drop the connection. The next call connects again."""
        if self._connection is not None:
            self._connection.disconnect()
            self._connection = None
            self._state = None

    def _new_connection(self) -> Any:
        return new_connection(
            self._url, connect_timeout_s=self._connect_timeout_s, timeout_s=self._timeout_s, node=self._node
        )

    def _exchange(self, command: tuple[Any, ...], timeout_s: float) -> Any:
        try:
            self._connection.send_command(*command)
            return self._connection.read_response(timeout=timeout_s)
        except redis.ResponseError:
            raise
        except BaseException as problem:
            # A reply that comes late must never be taken for the next command's.
            self.close()
            if isinstance(problem, redis.BusyLoadingError | redis.AuthenticationError):
                raise refusal(problem) from None  # a reply, and the command was not executed
            if isinstance(problem, redis.RedisError | OSError):
                raise lost_reply(problem) from None
            raise

    def _outwait_a_sync(self, deadline: float) -> None:
        """Redis writes its file before each reply, or right after the sync that is under way, and begins a sync a
        second after it began the last one. So what was seen before a moment without a sync is on disk as soon as there
        is a moment without one a second later."""
        quiet: int | None = None
        while True:
            now = _server_micros(self)
            facts = info(self, "persistence")
            _require_file(facts)
            if facts.get("aof_pending_bio_fsync") == "0":
                if quiet is None:
                    quiet = _server_micros(self)
                elif now > quiet + _SYNC_PERIOD_MICROS:
                    return
            if time.monotonic() > deadline:
                raise NoReply("the append-only file was not synced in time")
            time.sleep(_POLL_S)


def _server_micros(link: RedisLink) -> int:
    seconds, micros = link.call("TIME")
    return int(seconds) * 1_000_000 + int(micros)


def _require_file(persistence: Mapping[str, str]) -> None:
    if persistence.get("aof_enabled") != "1" or persistence.get("aof_last_write_status") != "ok":
        raise unfit("can't write its append-only file; check its disk and its log, then try again")
