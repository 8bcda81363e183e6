"""Commands that create, change and delete windows. All of them need the engine."""

import re
from datetime import UTC, datetime
from typing import Annotated, Final

import typer

from cwm_connector.protocol import calls
from cwm_connector.protocol import results as m
from cwm_connector.protocol.calls import Op
from cwm_mcp.api import arguments as a
from cwm_mcp.cli import shell_completion
from cwm_mcp.cli.commands.registration import WINDOWS, command
from cwm_mcp.cli.runner import Description, Json, Quiet, Tags, Window, ask, parsed, print_result, run, with_bar
from cwm_mcp.cli.sentences import Renamed

app = typer.Typer()
_NOT_IN_A_NAME: Final = re.compile(r"[^A-Za-z0-9._-]+")
_SESSION_SHOWN: Final = 80
"""Characters of the session in a name that is made for a window."""


@command(
    app,
    WINDOWS,
    examples=[
        "cwm freeze my-session project-kickoff --tag planning -d 'design agreed'",
        "cwm freeze my-session    # named after the session and the time",
        "cwm freeze current before-lunch    # in Claude Code: this conversation",
    ],
)
def freeze(
    session_id: Annotated[
        str,
        typer.Argument(
            help="The session id from cwm sessions, or 'current'.", autocompletion=shell_completion.sessions
        ),
    ],
    window_name: Annotated[
        str | None,
        typer.Argument(
            help="A new name: up to 128 letters, digits, dots, underscores and dashes. By default one is made.",
            show_default=False,
        ),
    ] = None,
    description: Description = None,
    tag: Tags = None,
    head: Annotated[str | None, typer.Option(help="A head of the session; the conversation by default.")] = None,
    prove: Annotated[bool, typer.Option("--prove", help="Take a proof that a thaw can repeat.")] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace a window of that name, once the new one is safe.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Save a session's KV cache as a new window.

    Pins the session's blocks in vLLM's prefix cache, copies them out and makes them durable. Tokens whose blocks were
    evicted in the meantime are computed again, and the result says how many. Once the command returns, the window
    survives kill -9 and a power cut. Content that is already stored is not stored twice. The session continues
    undisturbed. With --prove, the model's next token and its logprob are stored with the window.
    """
    if window_name is None:
        window_name = made_name(session_id, datetime.now(UTC))
    args = parsed(
        calls.FreezeArgs,
        session_id=session_id,
        window_name=window_name,
        description=description,
        tags=tag,
        head=head,
        prove=prove,
    )
    from cwm_mcp.api.operations import Operations
    from cwm_mcp.cli.commands.replacing import freeze_again

    label = f"freezing {window_name}"
    save = freeze_again if replace else Operations.freeze
    print_result(run(lambda cwm: with_bar(label, as_json or quiet, lambda on: save(cwm, args, on))), as_json, quiet)


def made_name(session: str, now: datetime) -> str:
    """Return a window's name for a freeze without one: the session and the time."""
    words = _NOT_IN_A_NAME.sub("-", session).strip(".-")[:_SESSION_SHOWN] or "window"
    return f"{words}-{now:%Y%m%d-%H%M%S}"


@command(
    app,
    WINDOWS,
    examples=[
        "cwm thaw project-kickoff",
        "cwm thaw project-kickoff --session idea-a --prompt 'Where were we?'",
    ],
)
def thaw(
    window_name: Window,
    session: Annotated[
        str | None,
        typer.Option(
            help="The session id to thaw into; by default the one it was frozen from.",
            autocompletion=shell_completion.sessions,
        ),
    ] = None,
    prewarm: Annotated[bool, typer.Option(help="Read and verify the chunks now, not at the first request.")] = True,
    prompt: Annotated[
        str | None, typer.Option(help="The user's next message. Sends it to vLLM and prints the model's reply.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(help="The reply's maximum length in tokens, 1 to 2048.")] = None,
    prove: Annotated[bool, typer.Option("--prove", help="Repeat the proof of the freeze, as cwm prove does.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Restore a window into a session and print its session id and cache salt.

    Reads the window's chunks into memory, verifies their checksums, and binds the window to a session id and a fresh
    cache salt. A request with either of them that begins with the window's tokens loads the stored chunks and computes
    only the rest. A damaged chunk never reaches the model. It is computed again.
    """
    args = parsed(
        a.ThawArguments,
        window_name=window_name,
        new_session_id=session,
        continuation_prompt=prompt,
        max_tokens=max_tokens,
        prewarm=prewarm,
        prove=prove,
    )
    thawed = run(lambda cwm: with_bar(f"thawing {window_name}", as_json or quiet, lambda on: cwm.thaw(args, on)))
    print_result(thawed, as_json, quiet)


@command(
    app,
    WINDOWS,
    examples=["cwm prove project-kickoff", "cwm prove project-kickoff --json | jq .proof_check.difference"],
    exits={0: "equal", 1: "an error, a difference, or not all of the window was loaded"},
)
def prove(window_name: Window, as_json: Json = False) -> None:
    """Repeat a window's proof: the same next token with the same logprob?

    A freeze with --prove stores the greedy token that comes after the window's tokens, and its logprob. This command
    loads the window for a request that nobody sees, under a salt that is used once, and compares. It is equal only if
    every stored token was really loaded. Other requests in the same batch can change a logprob, so prove while the
    engine is idle. The window is not thawed for anybody.
    """
    args = parsed(calls.ProveArgs, window_name=window_name)
    proved = run(lambda cwm: with_bar(f"proving {window_name}", as_json, lambda on: cwm.prove(args, on)))
    print_result(proved, as_json)
    if proved.proof != "equal":
        raise typer.Exit(1)


@command(app, WINDOWS, examples=["cwm mv my-session-20260123-093000 kickoff"])
def mv(
    window_name: Window,
    new_name: Annotated[str, typer.Argument(help="The new name.")],
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Give a window another name.

    The content, the times and the lineage stay, and so does everything that may load the window. A name that another
    window has is refused.
    """
    args = parsed(calls.TagArgs, window_name=window_name, new_name=new_name)
    renamed = ask(m.Tagged, Op.TAG, args)
    print_result(Renamed(window_name, renamed.window_name) if not as_json else renamed, as_json, quiet)


@command(app, WINDOWS, examples=["cwm clone project-kickoff idea-b --tag experiment"])
def clone(
    source_window: Annotated[
        str, typer.Argument(help="The window to branch from.", autocompletion=shell_completion.windows)
    ],
    target_window: Annotated[str, typer.Argument(help="The new window's name.")],
    description: Description = None,
    tag: Tags = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Branch a window into a second, independent one that shares its chunks.

    Copies nothing, so it takes about a millisecond and no extra space. Each window stays complete when the other one is
    deleted. Without --tag and --description, the clone inherits those of its source. With --tag it has only the tags
    given.
    """
    args = parsed(
        calls.CloneArgs, source_window=source_window, target_window=target_window, description=description, tags=tag
    )
    print_result(ask(m.Cloned, Op.CLONE, args), as_json, quiet)


@command(
    app,
    WINDOWS,
    examples=["cwm tag project-kickoff --add keep --remove draft", "cwm tag project-kickoff -d 'signed off'"],
)
def tag(
    window_name: Window,
    add: Annotated[
        list[str] | None,
        typer.Option("--add", "-a", help="A tag to add. Repeat for several.", autocompletion=shell_completion.tags),
    ] = None,
    remove: Annotated[
        list[str] | None,
        typer.Option(
            "--remove", "-r", help="A tag to remove. Repeat for several.", autocompletion=shell_completion.tags
        ),
    ] = None,
    description: Description = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Change a window's tags and description.

    Changes only what you specify. The window's content never changes. Prints the resulting tags and description.
    """
    args = parsed(calls.TagArgs, window_name=window_name, add=add, remove=remove, description=description)
    print_result(ask(m.Tagged, Op.TAG, args), as_json, quiet)
