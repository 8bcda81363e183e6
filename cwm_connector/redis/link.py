"""One connection to the Redis or Valkey that CWM_REDIS_URL names, and what makes a write there durable.

Every call is bounded by a time-out and sent once: whether a command whose reply was lost has been executed is for the
caller to find out. The URL can hold a password, so no message of this module shows it.

A link belongs to one thread at a time. It connects when it is first used, and again after any failure.
"""

import enum
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import redis
from redis.backoff import NoBackoff
from redis.connection import AbstractConnection, ConnectionPool
from redis.exceptions import AuthenticationError, MovedError, NoPermissionError, OutOfMemoryError
from redis.retry import Retry

from cwm_connector.core.errors import Code, CWMError

CONNECT_TIMEOUT_S: Final = 2.0
CALL_TIMEOUT_S: Final = 3.0
SETTLE_TIMEOUT_S: Final = 5.0
_POLL_S: Final = 0.02
_SYNC_PERIOD_MICROS: Final = 1_000_000
_MAX_TRIES: Final = 3


class NoReply(CWMError):
    """CWM-5002 after the command left: it may have been executed, be executed later, or never."""

    def __init__(self, reason: str, *, timed_out: bool = False) -> None:
        super().__init__(
            Code.BACKEND, "Redis stopped answering; check the server of CWM_REDIS_URL and call again", reason=reason
        )
        self.timed_out = timed_out


class Durability(enum.Enum):
    """How a write on this server is known to be on its disk.

    WAITAOF is not asked: in releases of Redis 7.4 and Valkey it answers before an `everysec` sync (redis/redis#13793).
    """

    EACH_WRITE = "always"
    """A reply is sent after the append-only file is synced."""
    EACH_SECOND = "everysec"
    """The file is synced in the background: the server is asked until that is over, a second or so."""


@dataclass(frozen=True, slots=True)
class Server:
    """What a server said about itself when it was checked."""

    durability: Durability

    @property
    def settles_at_once(self) -> bool:
        """Whatever is seen there is on its disk already."""
        return self.durability is Durability.EACH_WRITE


class RedisLink:
    """See the module's text."""

    def __init__(
        self, url: str, *, connect_timeout_s: float = CONNECT_TIMEOUT_S, timeout_s: float = CALL_TIMEOUT_S
    ) -> None:
        """Connects to nothing yet. Raises: CWM-1003 for a URL that can't be one."""
        try:
            self._pool = ConnectionPool.from_url(
                url,
                socket_connect_timeout=connect_timeout_s,
                socket_timeout=timeout_s,
                retry=Retry(NoBackoff(), 0),
                protocol=2,
            )
        except ValueError:
            raise CWMError(
                Code.ARGUMENT, "CWM_REDIS_URL is no Redis URL; write it as in redis://user:password@host:6379/0"
            ) from None
        self._home = {name: at for name, at in self._pool.connection_kwargs.items() if name in ("host", "port")}
        self._timeout_s = timeout_s
        self._connection: AbstractConnection | None = None
        self._server: Server | None = None

    def connect(self) -> None:
        """Does nothing where there is a connection. Raises: CWM-5002; nothing was sent then."""
        if self._connection is not None:
            return
        connection = self._pool.connection_class(**self._pool.connection_kwargs)
        try:
            connection.connect()
        except (redis.RedisError, OSError) as problem:
            connection.disconnect()
            # A node that the cluster named may have ended; the URL's knows which has taken over.
            self._pool.connection_kwargs.update(self._home)
            raise _refusal(problem) from None
        self._connection = connection

    def call(
        self, *command: bytes | str | int | float, timeout_s: float | None = None, repeatable: bool = False
    ) -> Any:
        """One command's reply, in bytes. `repeatable`: it may be sent again where the server had hung up, as it does
        when it restarts.

        Raises: NoReply if the command was sent and no reply came; CWM-5002 if it can't have been executed: no
        connection, or the server refused it; CWM-4003 if the server has no memory left for it.
        """
        limit_s = self._timeout_s if timeout_s is None else timeout_s
        for _ in range(_MAX_TRIES):
            self.connect()
            try:
                return self._exchange(command, limit_s)
            except MovedError as moved:
                # A cluster's node names the one that has the key. Every key of a caller is in one slot.
                self._move(moved.host, moved.port)
            except redis.ResponseError as refused:
                raise _refusal(refused) from None
            except NoReply as lost:
                if not repeatable or lost.timed_out:
                    raise
        raise CWMError(Code.BACKEND, "Redis keeps hanging up or moving its slots; call again in a while")

    def _exchange(self, command: tuple[Any, ...], timeout_s: float) -> Any:
        connection = self._connection
        assert connection is not None
        try:
            connection.send_command(*command)  # type: ignore[no-untyped-call]
            return connection.read_response(timeout=timeout_s)
        except redis.ResponseError:
            raise
        except BaseException as problem:
            # A reply that comes late must never be taken for the next command's.
            self.close()
            if isinstance(problem, redis.BusyLoadingError):
                raise _refusal(problem) from None
            if isinstance(problem, redis.RedisError | OSError):
                raise NoReply(str(problem), timed_out=isinstance(problem, redis.TimeoutError)) from None
            raise

    def _move(self, host: str, port: int) -> None:
        # A node that doesn't know its own name leaves it out: it means the one that answered.
        self._pool.connection_kwargs.update({"host": host, "port": port} if host else {"port": port})
        self.close()

    def server(self) -> Server:
        """What this connection's server is; looked at anew after each connect. Raises: as `check_server`."""
        if self._server is None:
            self.connect()
            self._server = check_server(self)
        return self._server

    def settle(self, timeout_s: float = SETTLE_TIMEOUT_S) -> None:
        """Returns once all that this connection has seen the effect of is on the server's disk.

        Raises: NoReply or CWM-5002 if that can't be known in time, or the server no longer keeps its file.
        """
        # Never over a new connection: the server may have restarted without what the old one had seen.
        connection = self._connection
        if connection is None:
            raise NoReply("the connection was lost before the append-only file was synced")
        durability = self.server().durability
        if _setting(self, "appendfsync") != durability.value:
            self.close()  # and look at the server anew
            raise CWMError(Code.BACKEND, "Redis was just set to sync its file otherwise; call again")
        if durability is Durability.EACH_SECOND:
            self._outwait_a_sync(time.monotonic() + timeout_s)
        else:
            _require_file(info(self, "persistence"))
        if self._connection is not connection:
            raise NoReply("the connection was lost before the append-only file was synced")

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

    def close(self) -> None:
        """The next call connects anew."""
        if self._connection is not None:
            self._connection.disconnect()  # type: ignore[no-untyped-call]
            self._connection = None
            self._server = None


def info(link: RedisLink, section: str, command: str = "INFO") -> dict[str, str]:
    """What INFO, or another command that answers likewise, tells of the section."""
    lines = link.call(command, section).decode(errors="replace").splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)


def check_server(link: RedisLink) -> Server:
    """Raises: CWM-1003 for a server that could lose or evict what it acknowledged, with what to set; CWM-5002."""
    if info(link, "persistence").get("aof_enabled") != "1":
        raise _unfit("it keeps no append-only file; set `appendonly yes`")
    if info(link, "replication").get("role") == "slave":
        raise _unfit("it is a replica; give the primary's address")
    if info(link, "memory").get("maxmemory_policy", "").startswith("allkeys"):
        raise _unfit("it evicts keys without asking; set `maxmemory-policy noeviction`")
    return Server(_durability(link))


def _durability(link: RedisLink) -> Durability:
    synced = _setting(link, "appendfsync")
    if synced is None:
        raise _unfit("it hides how it syncs its append-only file; allow CONFIG GET")
    if synced == "no":
        raise _unfit("it never syncs its append-only file; set `appendfsync everysec` or `always`")
    if _setting(link, "no-appendfsync-on-rewrite") != "no":
        raise _unfit("it skips syncs while it rewrites its file; set `no-appendfsync-on-rewrite no`")
    return Durability(synced)


def _server_micros(link: RedisLink) -> int:
    seconds, micros = link.call("TIME")
    return int(seconds) * 1_000_000 + int(micros)


def _setting(link: RedisLink, name: str) -> str | None:
    """None where the server lets nobody ask."""
    try:
        reply = link.call("CONFIG", "GET", name)
    except NoReply:
        raise
    except CWMError:
        return None
    return reply[1].decode() if reply else None


def _require_file(persistence: Mapping[str, str]) -> None:
    if persistence.get("aof_enabled") != "1" or persistence.get("aof_last_write_status") != "ok":
        raise CWMError(
            Code.BACKEND, "Redis can't write its append-only file; check its disk and its log, then call again"
        )


def _unfit(why: str) -> CWMError:
    return CWMError(Code.ARGUMENT, f"the Redis of CWM_REDIS_URL can't keep windows: {why}", reason=why)


def _refusal(problem: Exception) -> CWMError:
    """What the server, or the network, said instead of doing it."""
    reason = str(problem)
    if isinstance(problem, OutOfMemoryError) or "'maxmemory'" in reason:  # the words alone from inside a script
        return CWMError(Code.QUOTA, "Redis is at its memory limit; delete windows or raise its maxmemory")
    if isinstance(problem, AuthenticationError | NoPermissionError):
        return CWMError(Code.BACKEND, "Redis refuses the user or the password; correct CWM_REDIS_URL", reason=reason)
    if isinstance(problem, redis.ResponseError):
        return CWMError(Code.BACKEND, "Redis refuses a command; check its state and call again", reason=reason)
    return CWMError(
        Code.BACKEND, "Redis can't be reached; check CWM_REDIS_URL and the server, and call again", reason=reason
    )
