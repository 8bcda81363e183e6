"""The commands of `cwm`, one module for each panel of its help; cli.py puts them together."""
