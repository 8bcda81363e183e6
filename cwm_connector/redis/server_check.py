"""One look at a Redis or Valkey server: what it is, and whether it loses what it acknowledged."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.units import MIB
from cwm_connector.redis.errors import SETTING, NoReply, unfit

_OLDEST: Final = 6


class Asks(Protocol):
    """Whatever sends a command and returns its reply."""

    def call(self, *command: bytes | str | int | float) -> Any: ...


class Durability(enum.Enum):
    """How a write on this server is known to be on its disk.

    WAITAOF is not asked: in releases of Redis 7.4 and Valkey it answers before an `everysec` sync (redis/redis#13793).
    """

    EACH_WRITE = "always"
    """A reply is sent after the append-only file is synced."""
    EACH_SECOND = "everysec"
    """The file is synced in the background: the server is asked until that is over, a second or so."""


_SYNCED: Final = {Durability.EACH_WRITE: "with every write", Durability.EACH_SECOND: "every second"}


@dataclass(frozen=True, slots=True)
class ServerState:
    """Memory in bytes; a `maxmemory` of 0 is no limit of its own. `snapshots` is None where the server doesn't tell."""

    version: str
    """"Redis 7.0.15", or empty for a server that is too old or neither Redis nor Valkey."""
    is_replica: bool
    cluster_size: int
    """Nodes that have keys; 1 without a cluster."""
    maxmemory: int
    maxmemory_policy: str
    used_memory: int
    append_file: bool
    snapshots: bool | None
    durability: Durability | None
    """None if the server may lose what it acknowledged; `risk` says why."""
    risk: str
    """Why a crash or a power cut may lose data, and what to set; empty if it may not."""

    @property
    def durable(self) -> bool:
        """Return True if data is there after a crash and a power cut once a sync has returned."""
        return self.durability is not None

    @property
    def syncs_each_write(self) -> bool:
        """Return True if whatever is seen on the server is on its disk already."""
        return self.durability is Durability.EACH_WRITE

    @property
    def sentence(self) -> str:
        """Return a description for people."""
        limit = f"of {self.maxmemory / MIB:,.0f} MiB" if self.maxmemory else "without a limit of its own"
        kept = self.risk if self.durability is None else f"its append-only file is synced {_SYNCED[self.durability]}"
        return f"{self.version}, {self.used_memory / MIB:,.0f} MiB used {limit}; {kept}"


def read_state(server: Asks) -> ServerState:
    """Ask the server about itself. May block for a few round trips.

    Raises: `Code.BACKEND` if it does not answer or refuses the questions.
    """
    about = info(server, "all")
    durability, risk = _durability(server, about)
    save = setting(server, "save")
    return ServerState(
        version=_version(about),
        is_replica=about.get("role") == "slave",
        cluster_size=_cluster_size(server, about),
        maxmemory=int(about.get("maxmemory", 0)),
        maxmemory_policy=about.get("maxmemory_policy", "unknown"),
        used_memory=int(about.get("used_memory", 0)),
        append_file=about.get("aof_enabled") == "1",
        snapshots=None if save is None else bool(save),
        durability=durability,
        risk=risk,
    )


def require_for_chunks(state: ServerState) -> None:
    """Return if chunks may be left to the server. Whether they outlast a crash is `state.durable`.

    Raises: `Code.BACKEND` for a server that is too old, a replica, one node of several, or that may evict chunks.
    """
    if not state.version:
        raise unfit(f"is no Redis {_OLDEST} or newer, nor Valkey; use one of these")
    if state.maxmemory_policy != "noeviction":
        policy = state.maxmemory_policy
        raise unfit(f"evicts keys at its limit ({policy}); set maxmemory-policy noeviction, then try again")
    if state.is_replica:
        raise unfit("is a replica; give the primary's address")
    if state.cluster_size > 1:
        raise unfit("is one node of a cluster of several, which the tier can't use; give a server that has all keys")


def require_for_catalog(state: ServerState) -> None:
    """Return if the shared catalog may be left to the server.

    Raises: `Code.ARGUMENT` for a server that could lose or evict what it acknowledged, with what to set.
    """
    risk = state.risk
    if state.is_replica:
        risk = "it is a replica; give the primary's address"
    elif state.maxmemory_policy.startswith("allkeys"):
        risk = "it evicts keys at its limit; set `maxmemory-policy noeviction`"
    if risk:
        raise CWMError(Code.ARGUMENT, f"the Redis server of {SETTING} can't keep windows: {risk}", reason=risk)


def info(server: Asks, section: str, command: str = "INFO") -> dict[str, str]:
    """Return what INFO, or another command that answers likewise, tells of the section."""
    lines = server.call(command, section).decode(errors="replace").splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)


def setting(server: Asks, name: str) -> str | None:
    """Return a setting of the server, or None if it lets nobody read it."""
    try:
        reply = server.call("CONFIG", "GET", name)
    except NoReply:
        raise
    except CWMError:
        return None
    return reply[1].decode() if reply else None


def _version(about: Mapping[str, str]) -> str:
    if valkey := about.get("valkey_version"):
        return f"Valkey {valkey}"
    version = about.get("redis_version", "")
    major = version.partition(".")[0]
    return f"Redis {version}" if major.isdecimal() and int(major) >= _OLDEST else ""


def _cluster_size(server: Asks, about: Mapping[str, str]) -> int:
    if about.get("cluster_enabled") != "1":
        return 1
    return int(info(server, "INFO", "CLUSTER").get("cluster_size", "1"))


def _durability(server: Asks, about: Mapping[str, str]) -> tuple[Durability | None, str]:
    if about.get("aof_enabled") != "1":
        return None, "it keeps no append-only file; set `appendonly yes`"
    synced = setting(server, "appendfsync")
    if synced is None:
        return None, "it hides how it syncs its append-only file; allow CONFIG GET"
    if synced == "no":
        return None, "it never syncs its append-only file; set `appendfsync everysec` or `always`"
    if setting(server, "no-appendfsync-on-rewrite") != "no":
        return None, "it skips syncs while it rewrites its file; set `no-appendfsync-on-rewrite no`"
    return Durability(synced), ""
