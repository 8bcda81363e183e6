"""The tools' arguments: their JSON schemas for a model, and their check, which answers with the contract's codes.

The MCP library is handed a tool's arguments unchecked (its own complaints carry no code), so that every wrong one ends
here: CWM-1001 for what is no session id, CWM-1002 for what is no window name, CWM-1003 for anything else, wrong types
and missing or unknown arguments included.
"""

import json
import os
from typing import Annotated, Any, Final, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.names import check_description, check_session_id, check_tags, check_window_name

CURRENT: Final = "current"
MAX_OFFSET: Final = (1 << 63) - 1
CURRENT_VARIABLE: Final = "CLAUDE_CODE_SESSION_ID"
_SHOWN: Final = 80
"""Characters of a wrong value that an error repeats."""


def _real_session_id(text: str) -> str:
    """The id itself; "current" stands for the conversation of the client that started this process."""
    if text != CURRENT:
        return check_session_id(text)
    current = os.environ.get(CURRENT_VARIABLE)
    if not current:
        raise CWMError(
            Code.SESSION_ID,
            "this client does not tell which session is the current one; pass its id, session_list shows them",
            session_id=text,
        )
    return check_session_id(current)


def _list_from_text(value: object) -> object:
    """A list that a client has sent as JSON text, which some do; anything else as it is."""
    if isinstance(value, str) and value.startswith("["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _countable(offset: int) -> int:
    """Refuses what neither the protocol nor SQLite can hold; a `maximum` in the schema would tell a model nothing."""
    if offset > MAX_OFFSET:
        raise CWMError(Code.ARGUMENT, "the offset is larger than any list; give 0 to begin at the start")
    return offset


SessionId = Annotated[str, AfterValidator(_real_session_id)]
WindowName = Annotated[str, AfterValidator(check_window_name)]
Tags = Annotated[list[str], BeforeValidator(_list_from_text), AfterValidator(check_tags)]
Description = Annotated[str, AfterValidator(check_description)]
Limit = Annotated[int, Field(ge=1, le=100)]
Offset = Annotated[int, Field(ge=0), AfterValidator(_countable)]
ComponentName = Literal["vllm", "engine", "catalog", "cpu", "disk", "redis"]


class Arguments(BaseModel):
    """Base of every tool's arguments: no coercion, no unknown names."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class FreezeArguments(Arguments):
    session_id: SessionId
    window_name: WindowName
    description: Description = ""
    tags: Tags = []
    head: str | None = None


class ThawArguments(Arguments):
    window_name: WindowName
    new_session_id: SessionId | None = None
    continuation_prompt: Annotated[str, Field(min_length=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=2048)] | None = None
    prewarm: bool = True

    @model_validator(mode="after")
    def _bounds_a_reply(self) -> Self:
        if self.max_tokens is not None and self.continuation_prompt is None:
            raise CWMError(Code.ARGUMENT, "max_tokens is the length of a reply; give a continuation_prompt with it")
        return self


class CloneArguments(Arguments):
    source_window: WindowName
    target_window: WindowName
    description: Description | None = None
    tags: Tags | None = None


class ListArguments(Arguments):
    tags: Tags = []
    model: str | None = None
    search: str | None = None
    session_id: SessionId | None = None
    created_after: str | None = None
    created_before: str | None = None
    sort_by: Literal["name", "created_at", "token_count", "size"] = "created_at"
    sort_order: Literal["asc", "desc"] = "desc"
    limit: Limit = 20
    offset: Offset = 0


class StatusArguments(Arguments):
    window_name: WindowName | None = None
    session_id: SessionId | None = None
    include_blocks: bool = False

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.window_name is None) == (self.session_id is None):
            raise CWMError(Code.ARGUMENT, "give either window_name or session_id, and not both")
        return self


class DeleteArguments(Arguments):
    window_name: WindowName
    force: bool = False


class TagArguments(Arguments):
    window_name: WindowName
    add: Tags = []
    remove: Tags = []
    description: Description | None = None


class TokensArguments(Arguments):
    window_name: WindowName


class SessionsArguments(Arguments):
    state_filter: Literal["active", "frozen", "thawed", "expired"] | None = None
    model: str | None = None
    limit: Limit = 50
    offset: Offset = 0


class VerifyArguments(Arguments):
    repair: bool = False
    restart: bool = False
    rate_mb_s: float = 200.0


class ExportArguments(Arguments):
    window_name: WindowName
    path: str
    force: bool = False


class ImportArguments(Arguments):
    path: str
    window_name: WindowName | None = None
    tags: Tags = []


class PolicyArguments(Arguments):
    enabled: bool | None = None
    idle_timeout_minutes: float | None = None
    token_threshold: int | None = None
    naming_pattern: str | None = None
    keep_last: int | None = None
    tags: Tags | None = None


class PolicyChange(PolicyArguments):
    """The command line's, which can also go back to the settings."""

    reset: bool = False


class NoArguments(Arguments):
    pass


class HealthArguments(Arguments):
    component: ComponentName | None = None


class MetricsArguments(Arguments):
    format: Literal["json", "prometheus"] = "json"
    prefix: str | None = None


A = TypeVar("A", bound=Arguments)


def parse(arguments: type[A], raw: dict[str, Any]) -> A:
    """The checked arguments. A null counts as left out, because many clients send every argument they know.

    Raises: CWM-1001, CWM-1002 or CWM-1003 for the first one that is wrong, missing or unknown.
    """
    try:
        return arguments.model_validate({name: value for name, value in raw.items() if value is not None})
    except ValidationError as invalid:
        fault = invalid.errors(include_url=False)[0]
        name = str(fault["loc"][0])
        raise CWMError(Code.ARGUMENT, _sentence(arguments, name, fault), argument=name) from None


def _sentence(arguments: type[Arguments], name: str, fault: ErrorDetails) -> str:
    if fault["type"] == "missing":
        return f"{name} is missing; give it and call again"
    if fault["type"] == "extra_forbidden":
        known = ", ".join(arguments.model_fields) or "none"
        return f"there is no argument {name!r}; the arguments are: {known}"
    value = repr(fault["input"])
    shown = value if len(value) <= _SHOWN else f"{value[:_SHOWN]}…"
    return f"{name} {fault['msg'].removeprefix('Input ')}, not {shown}; correct it and call again"
