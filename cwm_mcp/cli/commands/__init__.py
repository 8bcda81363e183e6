"""The commands of `cwm`, grouped by topic. `cwm_mcp.cli.app` puts them together."""
