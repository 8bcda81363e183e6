"""Makes `python -m context_window_manager` start the MCP server of `cwm_mcp`, as the user guide shows it."""
