"""The MCP server and the command line, clients of the engine's socket. Never imports torch, vLLM or LMCache."""
