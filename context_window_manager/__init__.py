"""The distribution's own name as a module: `python -m context_window_manager` starts the MCP server (`cwm_mcp`)."""
