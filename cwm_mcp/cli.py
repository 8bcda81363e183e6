"""`cwm`: the contract's operations for a shell. It has the same arguments, answers and errors as the MCP tools.

Exit codes: 0 done; 1 an error, on stderr with its code; 2 a wrong command line or a setting that can't work.
"""

import os
import sys
from typing import Annotated

import typer

from cwm_connector.protocol import CWMError
from cwm_connector.settings import private_folder
from cwm_mcp import arguments as a
from cwm_mcp import serve as serving
from cwm_mcp.shell import Description, Json, Limit, Offset, Tags, failed, parsed, print_result, run, settings, with_bar

app = typer.Typer(
    help="Named, durable snapshots of an LLM session's KV cache in vLLM.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
def freeze(
    session_id: str,
    window_name: str,
    description: Description = None,
    tag: Tags = None,
    head: Annotated[str | None, typer.Option(help="Another head of the session than the one last active.")] = None,
    as_json: Json = False,
) -> None:
    """Save a session's KV cache as a new window."""
    args = parsed(
        a.FreezeArguments,
        session_id=session_id,
        window_name=window_name,
        description=description,
        tags=tag,
        head=head,
    )
    print_result(
        run(lambda cwm: with_bar(f"freezing {window_name}", as_json, lambda on: cwm.freeze(args, on))), as_json
    )


@app.command()
def thaw(
    window_name: str,
    session: Annotated[str | None, typer.Option(help="Session id to thaw into; a new one by default.")] = None,
    prewarm: Annotated[bool, typer.Option(help="Read and verify the blocks now.")] = True,
    prompt: Annotated[str | None, typer.Option(help="The user's next message; prints the model's reply.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="The reply's length, 1 to 2048.")] = None,
    as_json: Json = False,
) -> None:
    """Restore a window into a session; prints its session id and cache salt."""
    args = parsed(
        a.ThawArguments,
        window_name=window_name,
        new_session_id=session,
        continuation_prompt=prompt,
        max_tokens=max_tokens,
        prewarm=prewarm,
    )
    print_result(run(lambda cwm: with_bar(f"thawing {window_name}", as_json, lambda on: cwm.thaw(args, on))), as_json)


@app.command()
def clone(
    source_window: str, target_window: str, description: Description = None, tag: Tags = None, as_json: Json = False
) -> None:
    """Branch: a second, independent window over the same blocks."""
    args = parsed(
        a.CloneArguments, source_window=source_window, target_window=target_window, description=description, tags=tag
    )
    print_result(run(lambda cwm: cwm.clone(args)), as_json)


@app.command("ls")
def list_windows(
    tag: Tags = None,
    model: str | None = None,
    search: Annotated[str | None, typer.Option(help="Words in name, description and tags.")] = None,
    session: Annotated[str | None, typer.Option(help="Windows frozen from this session id.")] = None,
    after: Annotated[str | None, typer.Option(help="Created after, ISO 8601.")] = None,
    before: Annotated[str | None, typer.Option(help="Created before, ISO 8601.")] = None,
    sort: Annotated[str | None, typer.Option(help="name, created_at, token_count or size.")] = None,
    order: Annotated[str | None, typer.Option(help="asc or desc.")] = None,
    limit: Limit = None,
    offset: Offset = None,
    as_json: Json = False,
) -> None:
    """List windows; works without the engine."""
    args = parsed(
        a.ListArguments,
        tags=tag,
        model=model,
        search=search,
        session_id=session,
        created_after=after,
        created_before=before,
        sort_by=sort,
        sort_order=order,
        limit=limit,
        offset=offset,
    )
    print_result(run(lambda cwm: cwm.list_windows(args)), as_json)


@app.command()
def show(
    window_name: Annotated[str | None, typer.Argument()] = None,
    session: Annotated[str | None, typer.Option(help="Show a session instead of a window.")] = None,
    blocks: Annotated[bool, typer.Option("--blocks", help="List the stored blocks.")] = False,
    as_json: Json = False,
) -> None:
    """Details of one window or session."""
    args = parsed(a.StatusArguments, window_name=window_name, session_id=session, include_blocks=blocks)
    print_result(run(lambda cwm: cwm.status(args)), as_json)


@app.command()
def rm(
    window_name: str,
    force: Annotated[bool, typer.Option("--force", "-f", help="Don't ask.")] = False,
    as_json: Json = False,
) -> None:
    """Delete a window for good. Asks first where somebody can answer."""
    args = parsed(a.DeleteArguments, window_name=window_name, force=force)
    if not force and sys.stdin.isatty() and not typer.confirm(f"Delete window '{window_name}'?", err=True):
        raise typer.Exit(1)
    print_result(run(lambda cwm: cwm.delete(args)), as_json)


@app.command()
def tag(
    window_name: str,
    add: Annotated[list[str] | None, typer.Option("--add", "-a", help="Repeat for several.")] = None,
    remove: Annotated[list[str] | None, typer.Option("--remove", "-r", help="Repeat for several.")] = None,
    description: Description = None,
    as_json: Json = False,
) -> None:
    """Change a window's tags and description."""
    args = parsed(a.TagArguments, window_name=window_name, add=add, remove=remove, description=description)
    print_result(run(lambda cwm: cwm.tag(args)), as_json)


@app.command("gc")
def collect(as_json: Json = False) -> None:
    """Remove what no window refers to: chunks that a killed freeze or delete left, and the catalog's own slack."""
    print_result(run(lambda cwm: cwm.collect(a.NoArguments())), as_json)


@app.command()
def verify(
    repair: Annotated[bool, typer.Option("--repair", help="Replace bad copies from good ones in other tiers.")] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="From the beginning, not where it was broken off.")
    ] = False,
    rate: Annotated[float, typer.Option(help="MiB a second at most; 0 for no limit.")] = 200.0,
    as_json: Json = False,
) -> None:
    """Read and check every stored copy; exit code 1 if a bad one is left. Can be broken off and goes on there."""
    args = parsed(a.VerifyArguments, repair=repair, restart=restart, rate_mb_s=rate)
    report = run(lambda cwm: with_bar("verifying", as_json, lambda on: cwm.verify(args, on)))
    print_result(report, as_json)
    if report.bad_copies > report.repaired:
        raise typer.Exit(1)


@app.command()
def sessions(
    state: Annotated[str | None, typer.Option(help="active, frozen, thawed or expired.")] = None,
    model: str | None = None,
    limit: Limit = None,
    offset: Offset = None,
    as_json: Json = False,
) -> None:
    """List sessions."""
    args = parsed(a.SessionsArguments, state_filter=state, model=model, limit=limit, offset=offset)
    print_result(run(lambda cwm: cwm.sessions(args)), as_json)


@app.command()
def stats(as_json: Json = False) -> None:
    """What is stored where, and the hit rates."""
    print_result(run(lambda cwm: cwm.stats(a.NoArguments())), as_json)


@app.command()
def health(component: Annotated[str | None, typer.Argument()] = None, as_json: Json = False) -> None:
    """Health of all components or of one; exit code 1 if it is unhealthy."""
    args = parsed(a.HealthArguments, component=component)
    report = run(lambda cwm: cwm.health(args))
    print_result(report, as_json)
    if report.status == "unhealthy":
        raise typer.Exit(1)


@app.command()
def metrics(
    prefix: Annotated[str | None, typer.Argument(help="Only names that begin with it.")] = None,
    prometheus: Annotated[bool, typer.Option("--prometheus", help="In Prometheus' text format.")] = False,
    as_json: Json = False,
) -> None:
    """Metric samples."""
    args = parsed(a.MetricsArguments, prefix=prefix, format="prometheus" if prometheus else None)
    print_result(run(lambda cwm: cwm.metrics(args)), as_json)


@app.command(context_settings={"allow_extra_args": True, "allow_interspersed_args": False})
def serve(
    context: typer.Context,
    model: str,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the command and stop.")] = False,
) -> None:
    """Run vLLM with the connector. Everything behind MODEL goes to vLLM, and wins over our defaults."""
    options = [option for option in context.args if option != "--dry-run"]
    chosen = settings()
    try:
        command = serving.compose(serving.installed_build(), model, options, os.environ)
        print(command, flush=True)
        if dry_run or len(options) < len(context.args):
            return
        # The engine would find out after a minute of loading weights.
        private_folder(chosen.home, "CWM_HOME")
        private_folder(chosen.chunks_path, "CWM_DISK_PATH")
        serving.require_free_store(chosen.home)
        serving.run(command)
    except CWMError as problem:
        raise failed(problem) from None


def main() -> None:
    """The `cwm` command."""
    app(prog_name="cwm")


if __name__ == "__main__":
    main()
