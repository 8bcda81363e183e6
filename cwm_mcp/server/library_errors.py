"""CWMError in resources and prompts, where the protocol has no result to put it in. The code is in text and data."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from mcp.server.mcpserver.exceptions import ResourceNotFoundError
from mcp.shared.exceptions import MCPError
from mcp.types import INTERNAL_ERROR, INVALID_PARAMS

from cwm_connector.core.errors import Code, CWMError
from cwm_mcp.api.results import META_KEY, error_fields

_NOT_FOUND: Final = frozenset({Code.WINDOW_NOT_FOUND, Code.WINDOW_NAME})
_WRONG: Final = _NOT_FOUND | {Code.ARGUMENT, Code.SESSION_ID}


@contextmanager
def prompt_errors() -> Iterator[None]:
    """Turn a CWMError into an MCPError whose code says if the client's arguments are wrong."""
    try:
        yield
    except CWMError as problem:
        code = INVALID_PARAMS if problem.code in _WRONG else INTERNAL_ERROR
        raise MCPError(code, str(problem), {META_KEY: error_fields(problem)}) from None


@contextmanager
def resource_errors() -> Iterator[None]:
    """Turn a CWMError into ResourceNotFoundError for a window that does not exist, or into MCPError."""
    with prompt_errors():
        try:
            yield
        except CWMError as problem:
            if problem.code not in _NOT_FOUND:
                raise
            raise ResourceNotFoundError(str(problem)) from None
