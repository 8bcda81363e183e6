"""`python -m cwm_mcp`: the MCP server on stdin and stdout. Everything else it has to say goes to stderr."""

import gc
import sys


def main() -> None:
    # A client waits for the first answer. What imports make is no garbage: looking for some costs a sixth of the start.
    gc.disable()
    from cwm_connector.protocol import CWMError
    from cwm_mcp.server import build_server
    from cwm_mcp.settings import client_settings

    try:
        server = build_server(client_settings())
    except CWMError as problem:
        print(problem, file=sys.stderr)
        sys.exit(2)
    gc.freeze()
    gc.enable()
    server.run("stdio")


if __name__ == "__main__":
    main()
