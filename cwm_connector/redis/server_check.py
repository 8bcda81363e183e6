"""What a Redis or Valkey server says of itself, and whether chunks may be left to it."""

from dataclasses import dataclass
from typing import Final

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.redis.link import Durability, NoReply, RedisLink, info

_OLDEST: Final = 6
_MIB: Final = 1 << 20
_SYNCED: Final = {Durability.EACH_WRITE: "with every write", Durability.EACH_SECOND: "every second"}


@dataclass(frozen=True, slots=True)
class ServerState:
    """Memory in bytes; a `maxmemory` of 0 is no limit of its own. `snapshots` is None where the server doesn't tell."""

    version: str
    maxmemory: int
    maxmemory_policy: str
    used_memory: int
    append_file: bool
    snapshots: bool | None
    durable: bool
    """What is acknowledged after a `sync` is there after a crash and a power cut."""
    sentence: str
    """All of it, for people."""


def look(link: RedisLink) -> ServerState:
    """One thread at a time.

    Raises: CWM-5002 for a server that is away, too old, a replica, one node of several, or that may evict chunks.
    """
    about = info(link, "all")
    version = _version(about)
    policy = about.get("maxmemory_policy", "unknown")
    if policy != "noeviction":
        raise _unfit(f"evicts keys at its limit ({policy}); set maxmemory-policy noeviction, then try again")
    if about.get("role") == "slave":
        raise _unfit("is a replica; give the primary's address")
    if about.get("cluster_enabled") == "1" and int(info(link, "INFO", "CLUSTER").get("cluster_size", "1")) > 1:
        raise _unfit("is one node of a cluster of several, which the tier can't use; give a server that has all keys")
    durable, kept = _durability(link)
    used, limit = int(about.get("used_memory", 0)), int(about.get("maxmemory", 0))
    room = f"of {limit / _MIB:,.0f} MiB" if limit else "without a limit of its own"
    return ServerState(
        version=version,
        maxmemory=limit,
        maxmemory_policy=policy,
        used_memory=used,
        append_file=about.get("aof_enabled") == "1",
        snapshots=_snapshots(link),
        durable=durable,
        sentence=f"{version}, {used / _MIB:,.0f} MiB used {room}; {kept}",
    )


def _version(about: dict[str, str]) -> str:
    if valkey := about.get("valkey_version"):
        return f"Valkey {valkey}"
    version = about.get("redis_version", "")
    major = version.partition(".")[0]
    if not major.isdecimal() or int(major) < _OLDEST:
        raise _unfit(f"is no Redis {_OLDEST} or newer, nor Valkey (it says {version[:20] or 'nothing'}); take one")
    return f"Redis {version}"


def _durability(link: RedisLink) -> tuple[bool, str]:
    try:
        durability = link.server().durability
    except CWMError as problem:
        if problem.code is not Code.ARGUMENT:
            raise
        return False, str(problem.context["reason"])
    return True, f"its append-only file is synced {_SYNCED[durability]}"


def _snapshots(link: RedisLink) -> bool | None:
    try:
        reply = link.call("CONFIG", "GET", "save")
    except NoReply:
        raise
    except CWMError:
        return None
    return bool(reply[1]) if reply else None


def _unfit(what: str) -> CWMError:
    return CWMError(Code.BACKEND, f"the Redis server {what}")
