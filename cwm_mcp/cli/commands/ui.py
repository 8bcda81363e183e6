"""`cwm ui`: serve the page until Ctrl-C, and open it in the browser when run on a terminal.

The server's library is imported only when the command runs, because it would slow down every other command.
"""

import contextlib
import sys
from typing import Annotated

import typer

from cwm_connector.core.errors import CWMError
from cwm_mcp.cli.commands.registration import INSPECT, command
from cwm_mcp.cli.runner import failed, settings

app = typer.Typer()


@command(app, INSPECT, examples=["cwm ui", "cwm ui --port 8080 --no-browser"])
def ui(
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port on 127.0.0.1; 0 picks a free one.")] = 0,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in the browser.")] = True,
) -> None:
    """Show windows, sessions and tiers in the browser.

    Serves one page on 127.0.0.1 until Ctrl-C. The page refreshes itself and cannot change anything. Opening it takes
    the printed address, which contains a token that is new at each start.
    """
    from cwm_mcp.api.http_address import Address
    from cwm_mcp.ui import server
    from cwm_mcp.ui.open_browser import open_in_browser

    with contextlib.ExitStack() as files:

        def ready(url: str) -> None:
            print(f"open {url}\nPress Ctrl-C to stop.", flush=True)
            if browser and sys.stdout.isatty():
                files.enter_context(open_in_browser(url))

        try:
            server.run(settings(), Address(server.LOOPBACK, port), ready)
        except CWMError as problem:
            raise failed(problem) from None
        except KeyboardInterrupt:
            return  # Ctrl-C is how the user stops the server
