"""The durable tier in Redis or Valkey: sealed chunks as values, one for each part of a chunk.

    NAMESPACE:{<chunk key in hex>.<rank>}:chunk     the sealed bytes
    NAMESPACE:{<chunk key in hex>.<rank>}:claims    the claims on them, a set

Both keys of a part are in one slot of a cluster, and parts spread over all slots. Value and claim are written in one
transaction. The value is removed with its last claim, in one script. So nobody sees half of either.

Threads: any but the engine's own. Reads, writes and maintenance have threads of their own, each with its own
connection. Every call is answered within its time-out. Connections are made again once the server is back.
"""

import functools
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing
from typing import Any, Final, TypeVar

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.types import NO_CLAIM, ChunkKey, Claim, TierName
from cwm_connector.redis import (
    ChunkConnection,
    CircuitBreaker,
    Command,
    RedisLink,
    ServerState,
    WrongLength,
    info,
    no_answer,
    require_for_chunks,
)
from cwm_connector.tiers.base import ChunkId
from cwm_connector.tiers.redis.written import Written
from cwm_connector.tiers.timeout_threads import TimeoutThreads

T = TypeVar("T")

MAX_VALUE_BYTES: Final = 512 << 20
"""Redis' own limit (proto-max-bulk-len)."""
CONNECT_TIMEOUT_S: Final = 5.0
TIMEOUT_S: Final = 30.0
ANSWER_S: Final = 5.0
"""For a command that carries no chunk, and for a chunk in addition to the time that its length takes."""
_SLOWEST: Final = 8 << 20
"""Bytes a second. A chunk that arrives more slowly times out."""
REST_S: Final = 1.0
"""After a call that timed out, nobody tries again for so long."""
_SYNC_S: Final = 15.0
_MARGIN_S: Final = 1.0
_SCAN_COUNT: Final = 1000
_NAMESPACE: Final = re.compile(r"[A-Za-z0-9._:-]{1,200}")
"""Characters without a meaning in a pattern of SCAN or in a cluster's hash tag."""
_DELETE: Final = """
redis.call('SREM', KEYS[2], ARGV[1])
if redis.call('EXISTS', KEYS[2]) == 1 then return 0 end
return redis.call('UNLINK', KEYS[1])
"""


class RedisTier:
    """A `DurableTier` in `namespace` of the server that `url` names: redis://, rediss:// (TLS) or unix://.

    Construction asks nothing of the server. `workers` transfers run at once in each direction. A connect may take
    `connect_timeout_s`, and so may the server's first answers on it. Then a call may take `ANSWER_S`, and a chunk
    longer according to its length, but never over `timeout_s`. Every method fails with `Code.BACKEND` if the server is
    away, refuses us or does not answer. Each method's text names its other failures.

    Raises: `Code.ARGUMENT` for a malformed URL; ValueError for a namespace with other than `A-Za-z0-9._:-`.
    """

    name = TierName.REDIS

    def __init__(
        self,
        url: str,
        namespace: str,
        *,
        shared: bool = False,
        workers: int = 2,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        if not _NAMESPACE.fullmatch(namespace):
            raise ValueError(f"{namespace!r} is not a namespace")
        self.shared = shared
        self._url = url
        self._namespace = namespace
        self._connect_timeout_s = connect_timeout_s
        self._timeout_s = timeout_s
        self._breaker = CircuitBreaker(REST_S)
        self._written = Written()
        self._own = threading.local()
        self._new_connection()  # raises for a malformed URL now
        self._connections_lock = threading.Lock()
        self._connections: list[ChunkConnection] = []
        patience_s = 2 * connect_timeout_s + timeout_s + _MARGIN_S
        self._readers = TimeoutThreads("cwm-redis-read", workers, patience_s)
        self._writers = TimeoutThreads("cwm-redis-write", workers, patience_s)
        self._maintenance = TimeoutThreads("cwm-redis-maintenance", 2, patience_s)

    # --- transfers ----------------------------------------------------------------------------------------------------

    def write(self, chunk: ChunkId, sealed: memoryview, claim: Claim = NO_CLAIM) -> "Future[None]":
        """Replace whatever is stored under the id, and claim it.

        Fails with `Code.QUOTA` for a server at its memory limit, which then has nothing of it, and for a chunk beyond
        `MAX_VALUE_BYTES`.
        """
        _check_buffer(sealed)
        return self._writers.submit(lambda: self._write(chunk, sealed, claim), _overdue)

    def read(self, chunk: ChunkId, into: memoryview) -> "Future[None]":
        """Fill `into` with the chunk's bytes.

        Fails with `Code.CHUNK_MISSING`, or `Code.CORRUPT` for another length. `into` is untouched then.
        """
        _check_buffer(into)
        return self._readers.submit(lambda: self._read(chunk, into), _overdue)

    def _write(self, chunk: ChunkId, sealed: memoryview, claim: Claim) -> None:
        if sealed.nbytes > MAX_VALUE_BYTES:
            raise CWMError(
                Code.QUOTA,
                f"a chunk of {sealed.nbytes} bytes is larger than a value of Redis may be ({MAX_VALUE_BYTES}); set "
                "CWM_CHUNK_TOKENS lower",
            )
        value, claims = self._keys(chunk)
        connection, deadline = self._connection(), self._deadline(sealed.nbytes)
        connection.call(("MULTI",), ("SET", value, sealed), ("SADD", claims, claim), deadline=deadline)
        connection.call(("EXEC",), deadline=deadline)  # not after its time-out: its caller knows it as failed
        self._written.note(connection.run_id)

    def _read(self, chunk: ChunkId, into: memoryview) -> None:
        value, _ = self._keys(chunk)
        try:
            (found,) = self._connection().call(("GET", value), deadline=self._deadline(into.nbytes), into=into)
        except WrongLength as other:
            raise CWMError(
                Code.CORRUPT,
                f"a stored chunk has {other.found} bytes instead of {into.nbytes}; its tokens are computed again; "
                "freeze the session again to replace it",
                fault="length",
            ) from None
        if found is None:
            raise CWMError(Code.CHUNK_MISSING, "a chunk is not in Redis; its tokens are computed again")

    # --- maintenance --------------------------------------------------------------------------------------------------

    def sync(self) -> None:
        """Return once every finished write is on the server's disk: at once, or after a second or two if the server
        syncs its file every second.

        Raises: `Code.BACKEND`, also for a server that keeps nothing over a restart, and for one that has restarted
        since a write that no sync had confirmed. Each calling thread gets the latter once.
        """
        count = self._written.count()
        run_id = self._with_link(self._sync_over)
        if not self._written.confirm(run_id, count):
            raise CWMError(Code.BACKEND, "the Redis server restarted in the middle of the writes; write them again")

    @staticmethod
    def _sync_over(link: RedisLink) -> bytes:
        run_id = info(link, "server").get("run_id", "").encode()
        if not link.state().durable:
            raise _keeps_nothing(link.state().risk)
        link.sync(_SYNC_S)
        return run_id

    def delete(self, chunk: ChunkId, claim: Claim = NO_CLAIM) -> bool:
        """End the claim, and remove the bytes with the last one. Works at the memory limit as well."""
        return bool(self._call(("EVAL", _DELETE, 2, *self._keys(chunk), claim)))

    def claims_of(self, chunk: ChunkId) -> frozenset[Claim]:
        """Return the claims on a part."""
        return frozenset(Claim(claim.decode()) for claim in self._call(("SMEMBERS", self._keys(chunk)[1])))

    def size_of(self, chunk: ChunkId) -> int | None:
        """Return the value's length in bytes, right or wrong; None if there is none."""
        return int(self._call(("STRLEN", self._keys(chunk)[0]))) or None

    def inventory(self) -> Iterator[tuple[ChunkId, int]]:
        """Return every part in the namespace with its length in bytes, right or wrong."""
        ours = re.compile(rf"{re.escape(self._namespace)}:\{{([0-9a-f]{{64}})\.([0-9]+)\}}:chunk".encode())
        found: dict[ChunkId, int] = {}
        cursor = b"0"
        while True:
            cursor, keys, sizes = self._do(functools.partial(self._scan, cursor))
            for key, size in zip(keys, sizes, strict=True):
                if size and (match := ours.fullmatch(key)):
                    found[ChunkId(ChunkKey(bytes.fromhex(match[1].decode())), int(match[2]))] = size
            if cursor == b"0":
                return iter(found.items())

    def _scan(self, cursor: bytes) -> tuple[bytes, list[bytes], list[int]]:
        connection, deadline = self._connection(), self._deadline()
        scan = ("SCAN", cursor, "MATCH", f"{self._namespace}:{{*}}:chunk", "COUNT", _SCAN_COUNT)
        ((following, keys),) = connection.call(scan, deadline=deadline)
        lengths = connection.call(*(("STRLEN", key) for key in keys), deadline=deadline) if keys else []
        return following, keys, lengths

    def sweep_leftovers(self) -> int:
        """Return 0: a write is there whole, or not at all."""
        return 0

    # --- the server ---------------------------------------------------------------------------------------------------

    def check_server(self) -> ServerState:
        """Return what the server is. Raises: `Code.BACKEND` for one that chunks can't be left to, with what to set."""
        state = self._with_link(RedisLink.state)
        require_for_chunks(state)
        return state

    def limit_bytes(self) -> int | None:
        """Return the server's maxmemory; None if it has none or can't be asked."""
        try:
            return self.check_server().maxmemory or None
        except CWMError:
            return None

    def condition(self) -> str:
        """Return a description of the server for people. Raises as `check_server`."""
        return self.check_server().sentence

    def require_lasting(self) -> None:
        """Return if the server keeps its data over a restart. Raises: `Code.BACKEND`."""
        state = self.check_server()
        if not state.durable:
            raise _keeps_nothing(state.risk)

    def close(self) -> None:
        """Fail calls that have not begun, and wait for the others as long as their time-out allows."""
        for threads in (self._readers, self._writers, self._maintenance):
            threads.close()
        with self._connections_lock:
            for connection in self._connections:
                connection.close()

    # --- connections --------------------------------------------------------------------------------------------------

    def _call(self, command: Command) -> Any:
        return self._do(lambda: self._call_here(command))

    def _call_here(self, command: Command) -> Any:
        return self._connection().call(command, deadline=self._deadline())[0]

    def _do(self, work: Callable[[], T]) -> T:
        return self._maintenance.submit(work, _overdue).result()

    def _with_link(self, work: Callable[[RedisLink], T]) -> T:
        """Run `work` with a new link. It must not outlive the server's start."""

        def run() -> T:
            self._call_here(("PING",))  # where the server hangs, nobody else waits for it after this
            limits = {"connect_timeout_s": self._connect_timeout_s, "timeout_s": self._connect_timeout_s}
            with closing(RedisLink(self._url, **limits)) as link:
                return work(link)

        return self._do(run)

    def _deadline(self, n_bytes: int = 0) -> float:
        return time.monotonic() + min(self._timeout_s, ANSWER_S + n_bytes / _SLOWEST)

    def _connection(self) -> ChunkConnection:
        """Return this thread's own."""
        connection: ChunkConnection | None = getattr(self._own, "connection", None)
        if connection is None:
            connection = self._own.connection = self._new_connection()
            with self._connections_lock:
                self._connections.append(connection)
        return connection

    def _new_connection(self) -> ChunkConnection:
        return ChunkConnection(self._url, self._breaker, connect_timeout_s=self._connect_timeout_s)

    def _keys(self, chunk: ChunkId) -> tuple[str, str]:
        part = f"{self._namespace}:{{{chunk.key.hex()}.{chunk.kv_rank}}}"
        return f"{part}:chunk", f"{part}:claims"


def _check_buffer(buffer: memoryview) -> None:
    if buffer.itemsize != 1 or not buffer.contiguous or buffer.nbytes == 0:
        raise ValueError(f"{buffer!r} of {buffer.nbytes} bytes is not the buffer of a sealed chunk")


def _overdue(started: bool) -> CWMError:
    problem = no_answer("no reply in time")
    problem.context["buffer_in_use"] = started
    return problem


def _keeps_nothing(why: str) -> CWMError:
    return CWMError(
        Code.BACKEND, f"the Redis server may lose what it has, so nothing leaves the disk for it: {why}", reason=why
    )
