"""`cwm serve` and `cwm stop`: start vLLM with the connector, in the foreground or in the background, and end it."""

import asyncio
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Final

import typer

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.folders import private_folder
from cwm_connector.settings import Settings
from cwm_mcp import serve as serving
from cwm_mcp import serve_process
from cwm_mcp.api.vllm_http import vllm_health
from cwm_mcp.cli.commands.registration import ENGINE, command
from cwm_mcp.cli.runner import Json, Quiet, failed, print_result, settings
from cwm_mcp.cli.sentences import Stopped

app = typer.Typer()
_OURS: Final = frozenset({"--dry-run", "--detach"})
_LOOK_EVERY_S: Final = 0.5
_LOG_LINES: Final = 15
"""Lines of its log that are shown of an engine that did not start."""
_STOP_LIMIT_S: Final = 90.0
"""vLLM gives its requests and the last freezes 20 seconds, and then ends its processes."""


@command(
    app,
    ENGINE,
    examples=[
        "cwm serve Qwen/Qwen3-8B --port 8000 --max-model-len 32768",
        "cwm serve --detach Qwen/Qwen3-8B    # until cwm stop",
        "cwm serve --dry-run Qwen/Qwen3-8B    # only print the command",
    ],
    exits={1: "vLLM could not be started", 2: "a wrong command line or an invalid setting"},
    context={"allow_extra_args": True, "allow_interspersed_args": False},
)
def serve(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="The model, as for vllm serve. vLLM's own options follow.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the command and exit.")] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Run in the background. Return once vLLM answers.")] = False,
) -> None:
    """Run vLLM with the connector.

    Prints the complete command, then replaces itself with vLLM. Options after MODEL are passed to vLLM and override
    these defaults: the connector, prefix caching, the middleware that recognizes the sessions of known clients, cached
    tokens in the usage, and 20 seconds for a clean shutdown. With --detach, vLLM outlives the terminal and writes to
    engine.log in CWM_HOME.
    """
    options = [option for option in context.args if option not in _OURS]
    dry_run, detach = dry_run or "--dry-run" in context.args, detach or "--detach" in context.args
    checked = settings()
    try:
        composed = serving.compose(serving.installed_build(), model, options, os.environ)
        print(composed, flush=True)
        if dry_run:
            return
        # Fail now. The engine would fail only after a minute of loading weights.
        private_folder(checked.home, "CWM_HOME")
        private_folder(checked.chunks_path, "CWM_DISK_PATH")
        serving.require_unused_home(checked.home)
        if detach:
            _start(composed, checked, options)
            return
        serve_process.remember(checked.home, os.getpid())
        serving.run(composed)
    except CWMError as problem:
        raise failed(problem) from None


@command(app, ENGINE, examples=["cwm stop"], exits={0: "it has ended", 1: "an error, or no engine to stop"})
def stop(as_json: Json = False, quiet: Quiet = False) -> None:
    """Stop the engine that cwm serve has started in this CWM_HOME.

    Asks vLLM to end, as Ctrl-C does, and waits for it. Freezes that are under way are completed, and with auto-freeze
    on, every session is frozen first. Windows stay as they are.
    """
    checked = settings()
    pid = serve_process.serving(checked.home)
    try:
        if pid is None:
            raise CWMError(
                Code.ENGINE_UNREACHABLE, f"no engine runs in {checked.home} that cwm serve has started; see cwm health"
            )
        seconds = serve_process.stop(pid, _STOP_LIMIT_S)
    except CWMError as problem:
        raise failed(problem) from None
    print_result(Stopped(pid=pid, seconds=round(seconds, 1)), as_json, quiet)


def _start(composed: serving.Command, checked: Settings, options: Sequence[str]) -> None:
    """Start vLLM and wait until it answers. Raises: `Code.STATE` with the end of its log if it ends before."""
    started = time.monotonic()
    process = serve_process.start(composed.argv, composed.environment, checked.home)
    log = serve_process.log_path(checked.home)
    print(f"Starting vLLM in the background (process {process.pid}), which writes to {log}", file=sys.stderr)
    url = serving.address_of(options)
    reached = replace(checked, vllm_url=url)
    while process.poll() is None:
        if asyncio.run(vllm_health(reached)).status == "healthy":
            print(f"vLLM answers at {url} after {time.monotonic() - started:.0f} s.\nNext: cwm sessions, or cwm stop")
            return
        time.sleep(_LOOK_EVERY_S)
    print(*serve_process.last_lines(log, _LOG_LINES), sep="\n", file=sys.stderr)
    raise CWMError(Code.STATE, f"vLLM has ended with exit code {process.returncode}; {log} says why")
