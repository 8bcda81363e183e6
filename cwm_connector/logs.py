"""Write the connector's log lines to the engine's log, in one format, at CWM_LOG_LEVEL.

Token ids, prompts, salts and environment variables are never logged, at any level.
"""

import logging
import sys
from typing import Final

_FORMAT: Final = "%(levelname)s %(asctime)s [cwm %(module)s] %(message)s"


def configure(level: str) -> None:
    """Set the level and, once for each process, the handler of the package's loggers. May be called repeatedly."""
    package = logging.getLogger("cwm_connector")
    package.setLevel(level)
    if not package.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter(_FORMAT, datefmt="%m-%d %H:%M:%S"))
        package.addHandler(handler)
        package.propagate = False
