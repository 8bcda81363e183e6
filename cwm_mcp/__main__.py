"""`python -m cwm_mcp`: the MCP server on stdin and stdout. Everything else it has to say goes to stderr."""

import sys

from cwm_connector.protocol import CWMError
from cwm_connector.settings import load_settings
from cwm_mcp.server import build_server


def main() -> None:
    try:
        settings = load_settings()
    except CWMError as problem:
        print(problem, file=sys.stderr)
        sys.exit(2)
    build_server(settings).run("stdio")


if __name__ == "__main__":
    main()
