"""Commands about stored chunks: statistics, verification and garbage collection."""

from typing import Annotated, Final

import typer

from cwm_connector.protocol import calls
from cwm_connector.protocol import results as m
from cwm_connector.protocol.calls import Op
from cwm_mcp.cli.commands.registration import STORAGE, command
from cwm_mcp.cli.runner import Json, ask, parsed, print_result, run, run_until_done, with_bar

app = typer.Typer()
_WATCH_S: Final = 2.0


@command(
    app,
    STORAGE,
    examples=["cwm stats", "cwm stats --watch 5", "cwm stats --watch --json | jq .kv_store.total_bytes"],
    exits={0: "success; with --watch: Ctrl-C, SIGTERM or a closed pipe", 1: "an error"},
)
def stats(
    seconds: Annotated[
        float | None,
        typer.Argument(help="With --watch, the seconds between updates; 2 by default.", min=0.1, max=86_400),
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Update the figures until Ctrl-C.")] = False,
    as_json: Json = False,
) -> None:
    """Show what each tier stores, and the cache hit rates.

    Shows chunks and bytes in each tier, how much space sharing between windows saves, and how often vLLM found tokens
    in its own prefix cache and in stored windows. Without the engine, values that only the engine knows are a dash.
    With --watch, the command keeps running when the engine stops and starts again. With --watch --json, it prints one
    line of JSON per update.
    """
    if watch:
        from cwm_mcp.cli.watch import watch as watch_repeatedly

        run_until_done(lambda cwm: watch_repeatedly(lambda: cwm.stats(calls.NoArgs()), seconds or _WATCH_S, as_json))
    elif seconds is not None:
        raise typer.BadParameter("seconds is the interval of --watch; add --watch or leave seconds out")
    else:
        print_result(run(lambda cwm: cwm.stats(calls.NoArgs())), as_json)


@command(
    app,
    STORAGE,
    examples=["cwm verify", "cwm verify --repair --rate 50"],
    exits={0: "every copy that could be read is good", 1: "an error, or a bad copy remains"},
)
def verify(
    repair: Annotated[bool, typer.Option("--repair", help="Replace bad copies with good ones of other tiers.")] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Start from the beginning, not where the last run was interrupted.")
    ] = False,
    rate: Annotated[float, typer.Option(help="The maximum read rate in MiB per second; 0 for no limit.")] = 200.0,
    as_json: Json = False,
) -> None:
    """Read every stored copy and check it against its checksum.

    A bad copy never reaches a model, whether or not it is repaired. Its tokens are computed again. You can interrupt
    the command with Ctrl-C, and the next run continues from there. Needs the engine, which keeps serving requests.
    """
    args = parsed(calls.VerifyArgs, repair=repair, restart=restart, rate_mb_s=rate)
    report = run(lambda cwm: with_bar("verifying", as_json, lambda on: cwm.verify(args, on)))
    print_result(report, as_json)
    if report.bad_copies > report.repaired:
        raise typer.Exit(1)


@command(app, STORAGE, "gc", examples=["cwm gc"])
def collect(as_json: Json = False) -> None:
    """Remove data that no window uses.

    Deletes chunks left behind by an interrupted freeze or delete and reclaims unused space in the catalog. Windows are
    never touched. Needs the engine.
    """
    print_result(ask(m.Collected, Op.COLLECT, calls.NoArgs()), as_json)
