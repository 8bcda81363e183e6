"""The MCP server: tools, resources and prompts, over stdio or HTTP.

The event loop of its process. Imports `api` and `settings`.
"""
