"""A conversation that goes on from a window, turn by turn, over vLLM's HTTP API. Runs on the client's event loop."""
