"""`python -m cwm_mcp [--http [HOST:]PORT [--no-token]]`: run the MCP server on stdin and stdout, or over HTTP.

Messages to people go to stderr.
"""

import gc
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse


def main() -> None:
    """Run the server with the arguments and the environment of this process."""
    # A client waits for the first answer. Imports make no garbage, and collecting it takes a sixth of the start.
    gc.disable()
    from cwm_connector.core.errors import Code, CWMError
    from cwm_mcp.process import prepare
    from cwm_mcp.server.app import build_server
    from cwm_mcp.settings import client_settings

    prepare()
    wanted = _options(sys.argv[1:]) if len(sys.argv) > 1 else None
    try:
        settings = client_settings()
        if wanted is not None and wanted.http is not None:
            from cwm_mcp.server import http_server

            gc.enable()
            http_server.run(settings, wanted.http, with_token=not wanted.no_token)
            return
        if sys.stdin is None:
            raise CWMError(Code.ARGUMENT, "stdin is closed; an MCP client starts this, or use --http 8765")
        server = build_server(settings)
    except CWMError as problem:
        print(problem, file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    gc.freeze()
    gc.enable()
    server.run("stdio")


def _options(arguments: list[str]) -> "argparse.Namespace":
    import argparse

    parser = argparse.ArgumentParser(
        prog="python -m cwm_mcp",
        description="Run the MCP server of Context Window Manager on stdin and stdout, or with --http over HTTP.",
        epilog="Clients must send the token from CWM_HTTP_TOKEN or $CWM_HOME/http-token. "
        "CWM_HTTP_HOSTS lists, separated by commas, further host names under which clients reach the server.",
    )
    parser.add_argument(
        "--http", metavar="[HOST:]PORT", help="serve streamable HTTP at /mcp; the default HOST is 127.0.0.1"
    )
    parser.add_argument(
        "--no-token", action="store_true", help="serve every user and program of this machine; on loopback only"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
