"""The version of this project, as both processes report it. pyproject.toml repeats it."""

from typing import Final

__version__: Final = "0.1.0"
