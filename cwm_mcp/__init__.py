"""The facade: the MCP server and the command line. Neither torch, nor vLLM, nor LMCache is ever imported here."""
