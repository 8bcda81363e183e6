"""Commands about the stored blocks: how many there are, whether they are good, and what nobody needs."""

from typing import Annotated, Final

import typer

from cwm_mcp.api import arguments as a
from cwm_mcp.cli.commands.frame import STORE, command
from cwm_mcp.cli.runner import Json, follow, parsed, print_result, run, with_bar
from cwm_mcp.cli.watch import watch_stats

app = typer.Typer()
_WATCH_S: Final = 2.0


@command(
    app,
    STORE,
    examples=["cwm stats", "cwm stats --watch 5", "cwm stats --watch --json | jq .kv_store.total_bytes"],
    exits={0: "done; with --watch: ended by Ctrl-C, SIGTERM or a reader that went away", 1: "an error"},
)
def stats(
    seconds: Annotated[
        float | None,
        typer.Argument(help="With --watch: how long to wait between two looks; 2 if not given.", min=0.1, max=86_400),
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Go on showing them until Ctrl-C.")] = False,
    as_json: Json = False,
) -> None:
    """Show what is stored where, and the hit rates.

    Blocks and bytes in each tier, how much is stored once but used by several windows, and how often vLLM found what
    it looked for, in its own prefix cache and in ours. What only a running engine knows is a dash without one. A watch
    goes on when the engine goes away and comes back; with --json it prints one line for each look.
    """
    if watch:
        follow(lambda cwm: watch_stats(cwm, seconds or _WATCH_S, as_json))
    elif seconds is not None:
        raise typer.BadParameter("seconds say how often to look again; give --watch with them")
    else:
        print_result(run(lambda cwm: cwm.stats(a.NoArguments())), as_json)


@command(
    app,
    STORE,
    examples=["cwm verify", "cwm verify --repair --rate 50"],
    exits={0: "every copy that could be read is good", 1: "an error, or a bad copy is left"},
)
def verify(
    repair: Annotated[bool, typer.Option("--repair", help="Replace bad copies from good ones in other tiers.")] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="From the beginning, not where it was broken off.")
    ] = False,
    rate: Annotated[float, typer.Option(help="MiB a second at most; 0 for no limit.")] = 200.0,
    as_json: Json = False,
) -> None:
    """Read and check every stored copy against its checksum.

    A bad copy is never used for a model, repaired or not: its tokens are computed again. The walk can be broken off
    with Ctrl-C and goes on there the next time. Needs the engine, which serves requests meanwhile.
    """
    args = parsed(a.VerifyArguments, repair=repair, restart=restart, rate_mb_s=rate)
    report = run(lambda cwm: with_bar("verifying", as_json, lambda on: cwm.verify(args, on)))
    print_result(report, as_json)
    if report.bad_copies > report.repaired:
        raise typer.Exit(1)


@command(app, STORE, "gc", examples=["cwm gc"])
def collect(as_json: Json = False) -> None:
    """Remove what no window refers to.

    That are blocks that a killed freeze or delete left behind, and the catalog's own slack. Windows are never touched.
    Needs the engine.
    """
    print_result(run(lambda cwm: cwm.collect(a.NoArguments())), as_json)
