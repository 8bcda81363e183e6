"""Where the project lies. Tests that start processes run them from there."""

from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
"""The folder that holds `cwm_connector`, `cwm_mcp` and `tests`."""
