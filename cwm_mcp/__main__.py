"""`python -m cwm_mcp [--http [HOST:]PORT]`: the MCP server, on stdin and stdout or over HTTP.

Everything else it has to say goes to stderr.
"""

import gc
import sys


def main() -> None:
    # A client waits for the first answer. What imports make is no garbage: looking for some costs a sixth of the start.
    gc.disable()
    from cwm_connector.core.errors import CWMError
    from cwm_mcp.server.app import build_server
    from cwm_mcp.settings import client_settings

    address = _http_address(sys.argv[1:]) if len(sys.argv) > 1 else None
    try:
        settings = client_settings()
        if address is not None:
            from cwm_mcp.server import http_server

            gc.enable()
            http_server.run(settings, address)
            return
        server = build_server(settings)
    except CWMError as problem:
        print(problem, file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    gc.freeze()
    gc.enable()
    server.run("stdio")


def _http_address(arguments: list[str]) -> str | None:
    import argparse

    parser = argparse.ArgumentParser(
        prog="python -m cwm_mcp",
        description="The MCP server of Context Window Manager, on stdin and stdout unless --http is given.",
        epilog="Beyond loopback, clients must send a token: CWM_HTTP_TOKEN, or the one kept in $CWM_HOME/http-token. "
        "CWM_HTTP_HOSTS adds names, separated by commas, under which a proxy is addressed.",
    )
    parser.add_argument("--http", metavar="[HOST:]PORT", help="serve streamable HTTP at /mcp; 127.0.0.1 by default")
    address: str | None = parser.parse_args(arguments).http
    return address


if __name__ == "__main__":
    main()
