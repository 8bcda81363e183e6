"""Put the commands of `cwm` together. They have the same arguments, results and errors as the MCP tools.

Exit codes: 0 for success, 1 for an error, 2 for a wrong command line or an invalid setting. Errors go to stderr.
"""

from typing import Annotated

import typer
from typer._completion_classes import completion_init

from cwm_connector.version import __version__
from cwm_mcp.cli.group import CommandGroup
from cwm_mcp.process import one_line_for_faults, prepare

_EPILOG = """\
[bold]Environment[/bold]
  CWM_HOME            folder of the catalog, disk tier and socket (~/.cwm)
  CWM_SOCKET          the engine's socket, if it is not in CWM_HOME
  CWM_VLLM_URL        address of vLLM (http://localhost:8000)
  CWM_VLLM_API_KEY    vLLM's --api-key, if it has one
  CWM_DISK_CACHE_GB   size limit of the disk tier in GiB (50)
  CWM_CPU_CACHE_GB    size of the memory tier in GiB (an eighth of the memory)
  CWM_REDIS_URL       a Redis server as a third, colder tier (none)
  docs/settings.md lists all settings.

[bold]Exit codes[/bold]
  0  success
  1  an error: one line on stderr with its code and what to do next
  2  a wrong command line or an invalid setting"""

app = typer.Typer(
    cls=CommandGroup,
    help="Named, durable snapshots of an LLM session's KV cache in vLLM.",
    epilog=_EPILOG,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    # `cwm completion` prints the scripts. Typer's own options would edit the user's shell start-up files.
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"cwm {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the `cwm` command with the arguments of this process."""
    prepare()
    completion_init()
    with one_line_for_faults():
        app(prog_name="cwm")


if __name__ == "__main__":
    main()
