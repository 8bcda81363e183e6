"""Answers to what people type and complete most, without the library of the command line, on one thread.

Typer and pydantic take longer to import than a list takes to read. What this folder does not understand it leaves to
`cwm_mcp.cli.app`, which knows every option and explains every mistake.
"""
