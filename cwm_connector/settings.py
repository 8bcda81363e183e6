"""Settings of both processes: `CWM_*` in the environment; inside the engine `kv_connector_extra_config` wins.

A setting that can't work stops the start with one clear line; nothing is repaired silently.
"""

import enum
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.units import GIB

_MAX_SOCKET_PATH = 107
"""Linux's limit for a unix socket's path, in bytes."""


class CatalogKind(enum.StrEnum):
    """Where the catalog's truth lies."""

    SQLITE = "sqlite"
    """In CWM_HOME: one engine's own."""
    REDIS = "redis"
    """In Redis: shared by every engine with the same URL and namespace; chunks are shared with it."""


class PolicyName(enum.StrEnum):
    """Which chunks have to make room first; one file each in tiers/policies."""

    LRU = "lru"
    SLRU = "slru"


class Settings(BaseSettings):
    """What can be set; the field's name in capitals behind `CWM_` is its environment variable."""

    model_config = SettingsConfigDict(env_prefix="CWM_", extra="ignore", frozen=True)

    vllm_url: str = "http://localhost:8000"
    vllm_api_key: str | None = Field(default=None, repr=False)
    home: Path = Path("~/.cwm")
    socket: Path | None = None
    disk_path: Path | None = None
    cpu_cache_gb: float = Field(default=4, gt=0)
    disk_cache_gb: float = Field(default=50, gt=0)
    redis_url: str | None = Field(default=None, repr=False)
    redis_namespace: str = Field(default="cwm", pattern=r"^[A-Za-z0-9._-]{1,64}$")
    """Begins every key of ours in Redis: engines that share a catalog share it."""
    catalog: CatalogKind = CatalogKind.SQLITE
    tier_policy: PolicyName = PolicyName.LRU
    cold_after_hours: float = Field(default=168, gt=0)
    """Chunks that no freeze or thaw has touched for so long move from disk to Redis, where there is one."""
    chunk_tokens: int = Field(default=256, gt=0)
    auto_freeze_enabled: bool = False
    auto_freeze_idle_timeout_minutes: float = 30
    auto_freeze_token_threshold: int = 100_000
    auto_freeze_naming_pattern: str = "auto-{session_id}-{timestamp}"
    auto_freeze_keep_last: int = 3
    """What these five may be is checked where they become a policy (auto/policy.py)."""
    log_level: str = "INFO"

    @field_validator("home", "socket", "disk_path")
    @classmethod
    def _expand(cls, path: Path | None) -> Path | None:
        return None if path is None else path.expanduser().absolute()

    @field_validator("vllm_url")
    @classmethod
    def _http(cls, url: str) -> str:
        if urlsplit(url).scheme not in ("http", "https"):
            raise ValueError("it must begin with http:// or https://")
        return url.rstrip("/")

    @field_validator("redis_url")
    @classmethod
    def _redis(cls, url: str | None) -> str | None:
        if url is not None and urlsplit(url).scheme not in ("redis", "rediss", "unix"):
            raise ValueError("it must begin with redis://, rediss:// (TLS) or unix://")
        return url

    @field_validator("catalog")
    @classmethod
    def _has_a_server(cls, catalog: CatalogKind, info: ValidationInfo) -> CatalogKind:
        if catalog is CatalogKind.REDIS and info.data.get("redis_url") is None:
            raise ValueError("redis needs CWM_REDIS_URL; set it, or leave CWM_CATALOG out")
        return catalog

    @field_validator("log_level")
    @classmethod
    def _level(cls, level: str) -> str:
        if level.upper() not in ("DEBUG", "INFO", "WARNING", "ERROR"):
            raise ValueError("use DEBUG, INFO, WARNING or ERROR")
        return level.upper()

    @model_validator(mode="after")
    def _socket_fits(self) -> Self:
        if len(str(self.socket_path).encode()) > _MAX_SOCKET_PATH:
            raise ValueError(f"the socket's path is over {_MAX_SOCKET_PATH} bytes; set CWM_SOCKET to a shorter one")
        return self

    @property
    def socket_path(self) -> Path:
        return self.socket or self.home / "engine.sock"

    @property
    def catalog_path(self) -> Path:
        return self.home / "catalog.sqlite"

    @property
    def chunks_path(self) -> Path:
        return self.disk_path or self.home / "chunks"

    @property
    def cpu_cache_bytes(self) -> int:
        return int(self.cpu_cache_gb * GIB)

    @property
    def disk_cache_bytes(self) -> int:
        return int(self.disk_cache_gb * GIB)


def load_settings(overrides: Mapping[str, Any] | None = None) -> Settings:
    """The settings in force; `overrides` are `kv_connector_extra_config`'s, keyed by field name.

    Raises: CWM-1003 that names the setting, its value's fault and where it comes from.
    """
    try:
        return Settings(**dict(overrides or {}))
    except ValidationError as invalid:
        fault = invalid.errors(include_url=False, include_input=False)[0]
        name = str(fault["loc"][0]) if fault["loc"] else "socket"
        reason = fault["msg"].removeprefix("Value error, ")
        raise CWMError(Code.ARGUMENT, f"the setting CWM_{name.upper()} can't work: {reason}", setting=name) from None
