"""The settings of both processes, read from `CWM_*` environment variables.

In the engine, values in vLLM's `kv_connector_extra_config` take precedence. A value that can't work stops the start
with one clear line. Nothing is repaired silently.

Settings are read once, when a process starts, and are immutable. The shell reads them for every command and every
Tab, so they need msgspec and no larger library.
"""

import enum
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Final, get_type_hints
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.memory import read_memory
from cwm_connector.core.units import GIB
from cwm_connector.core.urls import vllm_base

_PREFIX: Final = "CWM_"
_NAMESPACE: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_MAX_SOCKET_PATH = 107
"""Bytes that Linux allows for the path of a unix socket."""
_MOST_TRASH_HOURS = 876_000
_CPU_CACHE_SHARE = 8
"""The CPU tier takes this fraction of the memory by default."""
_MAX_DEFAULT_CPU_CACHE = 32 * GIB
"""A GPU machine page-locks it at about two GiB a second while vLLM starts."""


class CatalogKind(enum.StrEnum):
    """Where the catalog is stored."""

    SQLITE = "sqlite"
    """In CWM_HOME. The catalog belongs to one engine."""
    REDIS = "redis"
    """In Redis. All engines with the same URL and namespace share the catalog and the chunks in Redis."""


class PolicyName(enum.StrEnum):
    """The order in which chunks are evicted. Each policy has a module in tiers/policies."""

    LRU = "lru"
    """The least recently used chunk first."""
    SLRU = "slru"
    """Chunks that were used only once before chunks that were used again, each in the order of their last use."""


class AutoThaw(enum.StrEnum):
    """Which windows a request without a cache salt loads although nobody has thawed them. Never a private one."""

    SESSION = "session"
    """The windows of the session that it names, or else a window whose conversation it continues."""
    PREFIX = "prefix"
    """Any window that it begins with."""
    OFF = "off"
    """None."""


class LoadPolicy(enum.StrEnum):
    """The choice between loading a window and computing its tokens, where computing is faster."""

    ALWAYS = "always"
    """Load it. A conversation goes on with the window's own KV, bit for bit."""
    AUTO = "auto"
    """Compute them. What is computed again is right, but not bit for bit equal to the window."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings. `cpu_cache_gb` is set by the environment variable `CWM_CPU_CACHE_GB`, the others likewise.

    `load_settings` makes and checks them.
    """

    vllm_url: str = "http://localhost:8000"
    """The URL of vLLM's HTTP server, or unix:///PATH for its --uds. A /v1 at its end is left
    out. Default: http://localhost:8000."""
    vllm_api_key: str | None = field(default=None, repr=False)
    """The API key that vLLM expects from its clients. Default: none."""
    home: Path = Path("~/.cwm")
    """The folder with the catalog, the socket and, unless `disk_path` is set, the chunks. Default: ~/.cwm."""
    socket: Path | None = None
    """The path of the control socket, at most 107 bytes. Default: engine.sock in `home`."""
    disk_path: Path | None = None
    """The folder of the disk tier. Default: chunks in `home`."""
    cpu_cache_gb: Annotated[float, Meta(gt=0)] | None = None
    """The size of the CPU tier in GiB, for all ranks together. Above 0. Default: an eighth of the memory, up to 32."""
    disk_cache_gb: Annotated[float, Meta(gt=0)] = 50
    """The size limit of the disk tier in GiB, above 0. Default: 50."""
    redis_url: str | None = field(default=None, repr=False)
    """The URL of the Redis server: redis://, rediss:// (TLS) or unix://. Default: none, so there is no Redis tier."""
    redis_namespace: str = "cwm"
    """The first part of all keys in Redis. Engines that share a catalog have the same one. Default: cwm."""
    catalog: CatalogKind = CatalogKind.SQLITE
    """Where the catalog is stored, sqlite or redis. redis needs `redis_url`. Default: sqlite."""
    tier_policy: PolicyName = PolicyName.LRU
    """The order in which chunks are evicted from CPU memory and moved from the disk, lru or slru. Default: lru."""
    cold_after_hours: Annotated[float, Meta(gt=0)] = 168
    """Hours without a freeze or thaw after which a chunk moves from the disk to Redis, if there is a Redis tier.
    Above 0. Default: 168, a week."""
    trash_hours: Annotated[float, Meta(ge=0, le=_MOST_TRASH_HOURS)] = 24
    """Hours for which `cwm undo` can bring back what `cwm rm` has deleted. It goes earlier if the disk tier needs its
    room. 0 deletes at once. Up to 876,000, a century. Default: 24."""
    chunk_tokens: Annotated[int, Meta(gt=0)] = 256
    """Tokens in a chunk, rounded up to whole blocks of vLLM. Above 0. Default: 256."""
    auto_freeze_enabled: bool = False
    """True to freeze sessions automatically. Default: false."""
    auto_freeze_idle_timeout_minutes: float = 30
    """Minutes without a request after which a session is frozen. 0 switches this off. Default: 30."""
    auto_freeze_token_threshold: int = 100_000
    """Tokens by which a session grows before it is frozen again. 0 switches this off. Default: 100,000."""
    auto_freeze_naming_pattern: str = "auto-{session_id}-{timestamp}"
    """The names of automatic windows, up to 80 characters. {session_id}, {timestamp} and {generation} may each appear
    once. Default: auto-{session_id}-{timestamp}."""
    auto_freeze_keep_last: int = 3
    """Automatic windows of each kind that are kept for a session. 0 keeps all. Default: 3.

    The limits of these five settings are checked in operations/auto_freeze/policy.py."""
    auto_thaw: AutoThaw = AutoThaw.SESSION
    """Which windows requests load without a thaw, session, prefix or off. Default: session."""
    load: LoadPolicy = LoadPolicy.ALWAYS
    """Whether windows are loaded although computing would be faster, always or auto. Default: always."""
    log_level: str = "INFO"
    """The lowest level of the connector's log lines: DEBUG, INFO, WARNING or ERROR. Default: INFO."""

    @property
    def socket_path(self) -> Path:
        """Return the path of the control socket."""
        return self.socket or self.home / "engine.sock"

    @property
    def passport_path(self) -> Path:
        """Return the path of the file with the engine's passport, as the engine last knew it."""
        return self.home / "passport.json"

    @property
    def catalog_path(self) -> Path:
        """Return the path of the catalog's SQLite file."""
        return self.home / "catalog.sqlite"

    @property
    def chunks_path(self) -> Path:
        """Return the folder of the disk tier."""
        return self.disk_path or self.home / "chunks"

    @property
    def cpu_cache_bytes(self) -> int:
        """Return the size of the CPU tier. By default it is a share of what the machine or its control group has."""
        if self.cpu_cache_gb is None:
            return min(read_memory().total // _CPU_CACHE_SHARE, _MAX_DEFAULT_CPU_CACHE)
        return int(self.cpu_cache_gb * GIB)

    @property
    def disk_cache_bytes(self) -> int:
        """Return the size limit of the disk tier."""
        return int(self.disk_cache_gb * GIB)


def load_settings(overrides: Mapping[str, Any] | None = None) -> Settings:
    """Return the settings. `overrides` are the values of `kv_connector_extra_config`, by field name.

    Raises `Code.ARGUMENT` with the name of the setting and the reason why its value can't work.
    """
    given = {**_from_environment(), **(overrides or {})}
    types = get_type_hints(Settings, include_extras=True)
    values: dict[str, Any] = {}
    for each in fields(Settings):
        value = _converted(each.name, given[each.name], types[each.name]) if each.name in given else each.default
        values[each.name] = None if value is None else _checked(each.name, value)
    settings = Settings(**values)
    if settings.catalog is CatalogKind.REDIS and settings.redis_url is None:
        raise _unusable("catalog", "redis needs CWM_REDIS_URL; set it, or unset CWM_CATALOG")
    if len(os.fsencode(settings.socket_path)) > _MAX_SOCKET_PATH:
        raise _unusable(
            "socket", f"the socket's path is over {_MAX_SOCKET_PATH} bytes; set CWM_SOCKET to a shorter one"
        )
    return settings


def _from_environment() -> dict[str, str]:
    """Return the values of the environment by field name. An empty one counts as none."""
    found = {each.name: os.environ.get(f"{_PREFIX}{each.name.upper()}") for each in fields(Settings)}
    return {name: value for name, value in found.items() if value}


def _unusable(name: str, reason: str) -> CWMError:
    return CWMError(Code.ARGUMENT, f"the setting {_PREFIX}{name.upper()} can't work: {reason}", setting=name)


def _converted(name: str, value: Any, kind: Any) -> Any:
    """Return a value, which is text in the environment, as the field's type. An error does not repeat the value."""
    plain = str(value) if isinstance(value, Path) else value
    plain = plain.strip() if isinstance(plain, str) and kind is not str else plain
    plain = _SWITCHES.get(plain.lower(), plain) if kind is bool and isinstance(plain, str) else plain
    try:
        return msgspec.convert(plain, kind, strict=False, dec_hook=_decoded)
    except msgspec.ValidationError as fault:
        raise _unusable(name, _expected(kind, str(fault))) from None


def _decoded(kind: type, value: Any) -> Any:
    """Return a text as a path, which is the only type that msgspec does not know."""
    if isinstance(value, str):
        return kind(value)
    raise ValueError("it must be a text")


def _expected(kind: Any, fault: str) -> str:
    """Return in words which values a type has."""
    if kind is bool:
        return "it must be true or false"
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return f"it must be one of {', '.join(str(each.value) for each in kind)}"
    number = "a whole number" if "`int" in fault else "a number" if "`float" in fault else "text"
    if ">= 0.0" in fault or "<= " in fault:
        return f"it must be {number} from 0 to {_MOST_TRASH_HOURS:,}"
    return f"it must be {number}{' above 0' if '> ' in fault or '>= ' in fault else ''}"


def _checked(name: str, value: Any) -> Any:
    """Return a value as it is used. Raises `Code.ARGUMENT` for one that can't be."""
    check = _CHECKS.get(name)
    try:
        return value if check is None else check(value)
    except ValueError as fault:
        raise _unusable(name, str(fault)) from None


def _expanded(path: Path) -> Path:
    """Return the absolute path. Without it, a home would move with the folder that a program is started in."""
    try:
        return path.expanduser().absolute()
    except RuntimeError:
        raise ValueError(f"{path} needs a home folder, and this user has none; set it to an absolute path") from None
    except OSError:
        raise ValueError(f"{path} is relative to a folder that is gone; set it to an absolute path") from None


def _api_key(key: str) -> str:
    """Return the key without the white space around it, with which it would not fit into a header."""
    key = key.strip().removeprefix("Bearer ").strip()
    if key and not (key.isascii() and key.isprintable()):
        raise ValueError("it has characters that no key has; paste it again")
    return key


def _redis_url(url: str) -> str:
    if urlsplit(url).scheme not in ("redis", "rediss", "unix"):
        raise ValueError("it must begin with redis://, rediss:// (TLS) or unix://")
    return url


def _namespace(name: str) -> str:
    if not _NAMESPACE.fullmatch(name):
        raise ValueError("it must be 1 to 64 of A-Z, a-z, 0-9 and . _ -")
    return name


def _log_level(level: str) -> str:
    if level.upper() not in ("DEBUG", "INFO", "WARNING", "ERROR"):
        raise ValueError("use DEBUG, INFO, WARNING or ERROR")
    return level.upper()


_CHECKS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "home": _expanded,
    "socket": _expanded,
    "disk_path": _expanded,
    "vllm_url": vllm_base,
    "vllm_api_key": _api_key,
    "redis_url": _redis_url,
    "redis_namespace": _namespace,
    "log_level": _log_level,
}
_SWITCHES: Final = dict.fromkeys(("1", "true", "yes", "on", "t", "y"), True) | dict.fromkeys(
    ("0", "false", "no", "off", "f", "n"), False
)
"""Ways to write true and false in the environment."""
