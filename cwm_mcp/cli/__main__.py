"""Run the command line as `python -m cwm_mcp.cli`."""

from cwm_mcp.cli import main

main()
