"""Commands that show how windows hang together and which tokens are in them, with or without an engine."""

import sys
from typing import Annotated

import typer

from cwm_connector.protocol import calls
from cwm_mcp.api.diff import diff_windows
from cwm_mcp.api.operations import Operations
from cwm_mcp.api.tree import WindowTree, all_windows, tree_of
from cwm_mcp.cli import render_reports, shell_completion  # noqa: F401 - render_reports registers its renderers
from cwm_mcp.cli.commands.passages import read_text
from cwm_mcp.cli.commands.registration import INSPECT, command
from cwm_mcp.cli.runner import Json, Window, parsed, print_result, run
from cwm_mcp.cli.units import printable

app = typer.Typer()


@command(app, INSPECT, examples=["cwm tree", "cwm tree project-kickoff", "cwm tree --json | jq '.roots[].name'"])
def tree(
    window_name: Annotated[
        str | None,
        typer.Argument(
            help="Only the tree that contains this window.", autocompletion=shell_completion.windows, show_default=False
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Draw windows as a tree, each under the one it was made from.

    A clone appears under its source. A freeze of a session that a window was thawed into appears under that window.
    Each line gives the window's tokens and size, and how much of it is shared with other windows. A window whose parent
    was deleted is a root, and its line names the parent. Descendants beyond the twelfth generation appear side by side.
    Works without the engine.
    """
    if window_name is not None:
        parsed(calls.TokensArgs, window_name=window_name)

    async def read_tree(cwm: Operations) -> WindowTree:
        return tree_of(await all_windows(cwm), window_name)

    print_result(run(read_tree), as_json)


@command(
    app,
    INSPECT,
    "cat",
    examples=["cwm cat project-kickoff --tail 200", "cwm cat project-kickoff --from 100 --to 200"],
)
def read_window(
    window_name: Window,
    head: Annotated[int | None, typer.Option(min=0, help="Only the first N tokens.", metavar="N")] = None,
    tail: Annotated[int | None, typer.Option(min=0, help="Only the last N tokens.", metavar="N")] = None,
    first: Annotated[int | None, typer.Option("--from", min=0, help="Begin at this token, from 0.")] = None,
    end: Annotated[int | None, typer.Option("--to", min=0, help="End before this token.")] = None,
    as_json: Json = False,
) -> None:
    """Print the conversation in a window, or a part of it.

    Prints the text as the model saw it, special tokens included. The text comes from vLLM. Without vLLM, prints token
    ids and says why on stderr. Thaws nothing and changes nothing.
    """
    if sum((head is not None, tail is not None, (first, end) != (None, None))) > 1:
        raise typer.BadParameter("give only one of --head, --tail and a range with --from and --to")
    name = parsed(calls.TokensArgs, window_name=window_name).window_name
    start = -tail if tail else first or 0
    stop = head if head is not None else 0 if tail == 0 else end
    text = run(lambda cwm: read_text(cwm, name, start, stop))
    if as_json:
        print_result(text, as_json)
    elif text.text is not None:
        print("\n".join(printable(line) for line in text.text.split("\n")))
    else:
        print(*text.token_ids or ())
        print(f"Token ids are shown instead of text: {text.text_missing}", file=sys.stderr)


@command(app, INSPECT, examples=["cwm diff idea-a idea-b", "cwm diff idea-a idea-b --context 200 --json"])
def diff(
    window_a: Annotated[str, typer.Argument(help="The first window.", autocompletion=shell_completion.windows)],
    window_b: Annotated[str, typer.Argument(help="The second window.", autocompletion=shell_completion.windows)],
    context: Annotated[
        int, typer.Option(help="Tokens to show before and after the first difference.", min=0, max=2000)
    ] = 40,
    as_json: Json = False,
) -> None:
    """Show where two windows begin to differ, in tokens and in text.

    Counts the leading tokens that are exactly the same, the tokens that only one window has, and the chunks that are
    stored once for both. Then shows the last common words and how each window continues. The text comes from vLLM;
    without vLLM, token ids are shown instead. The counts need neither vLLM nor the engine.
    """
    one, other = (parsed(calls.TokensArgs, window_name=name).window_name for name in (window_a, window_b))
    print_result(run(lambda cwm: diff_windows(cwm, one, other, context)), as_json)
