"""middleware/: whom the recorded requests of real clients are attributed to, and that bodies arrive as they were sent.

The recordings are in tests/recordings. Each request goes through the middleware as ASGI messages.
"""

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cwm_connector import middleware
from cwm_connector.core.names import legal_session_id
from cwm_connector.core.speaker import RequestKind, Speaker, parse_speaker
from cwm_connector.middleware import HEADER, SessionHeader
from tests.support.recordings import Recorded, load, load_all

COMPLETIONS = "/v1/chat/completions"
KINDS = {"compaction": RequestKind.COMPACTION, "turn": RequestKind.TURN, "subagent": RequestKind.TURN}
"""The kind for a purpose. All others are side requests."""
GENERATING = [each for each in load_all() if each.method == "POST" and each.purpose != "count tokens"]


@dataclass
class Server:
    """An application that takes all of the messages of one request, and what the middleware made of its headers."""

    messages: Sequence[Mapping[str, Any]]
    taken: list[Mapping[str, Any]] = field(default_factory=list)
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        self.headers = scope["headers"]
        for _ in self.messages:
            self.taken.append(await receive())

    async def handle(self, method: str, path: str, headers: Sequence[tuple[str, str]]) -> bytes | None:
        """Return X-Session-ID as vLLM would read it."""
        left = iter(self.messages)

        async def receive() -> Any:
            return next(left)

        raw = [(name.lower().encode(), value.encode()) for name, value in headers]
        scope = {"type": "http", "method": method, "path": path.partition("?")[0], "headers": raw}
        await SessionHeader(self.app)(scope, receive, None)  # type: ignore[arg-type]
        assert self.taken == list(self.messages)
        return next((value for name, value in self.headers if name == HEADER), None)


def chunks(body: bytes, size: int = 1 << 20) -> list[dict[str, Any]]:
    parts = [body[start : start + size] for start in range(0, len(body), size)] or [b""]
    return [
        {"type": "http.request", "body": part, "more_body": number < len(parts)} for number, part in enumerate(parts, 1)
    ]


async def speaker_of(
    body: object, headers: Mapping[str, str] | None = None, path: str = COMPLETIONS, method: str = "POST"
) -> Speaker:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    value = await Server(chunks(content)).handle(method, path, list((headers or {}).items()))
    return parse_speaker(None if value is None else value.decode()) or Speaker(None)


async def speaker_in(request: Recorded) -> Speaker:
    return await speaker_of(request.body, dict(request.headers), request.path, request.method)


def expected_session(request: Recorded) -> tuple[str | None, str | None]:
    """What each client's documentation in facts says: read here by hand, not with the table."""
    said = {name.lower(): value for name, value in request.headers}
    body = request.body or {}
    match request.client:
        case "claude-code":
            return said["x-claude-code-session-id"], said.get("x-claude-code-agent-id")
        case "codex":
            return said["thread-id"], None
        case "opencode":
            return said["x-session-id"], None
        case "pi":
            return said.get("session_id", body.get("prompt_cache_key")), None
        case "open-webui":
            return said.get("x-openwebui-chat-id"), None
        case "litellm-proxy" if "x-claude-code-session-id" in said:
            return said["x-claude-code-session-id"], said.get("x-claude-code-agent-id")
        case "litellm-proxy" if "session_id" in body:
            return body["session_id"], None
        case "litellm-proxy":
            user = json.loads(body.get("metadata", {}).get("user_id", "{}"))
            return user.get("session_id", body.get("prompt_cache_key")), None
    return None, None


# --- recordings ---


@pytest.mark.parametrize("request_", GENERATING, ids=lambda request: request.name)
async def test_a_recorded_request_has_its_clients_session_and_its_purpose(request_: Recorded) -> None:
    speaker = await speaker_in(request_)
    assert (speaker.session_id, speaker.head) == expected_session(request_)
    if speaker != Speaker(None):
        assert speaker.hints.kind == KINDS.get(request_.purpose, RequestKind.SIDE)
        assert speaker.hints.has_tools == bool((request_.body or {}).get("tools"))
    else:
        assert request_.purpose == "turn"


@pytest.mark.parametrize("request_", GENERATING, ids=lambda request: request.name)
async def test_the_purpose_shows_in_the_body_alone_behind_a_proxy_that_drops_headers(request_: Recorded) -> None:
    speaker = await speaker_of(request_.body, {}, request_.path)
    assert speaker.hints.kind == KINDS.get(request_.purpose, RequestKind.SIDE)


async def test_what_generates_nothing_is_not_read_and_gets_no_hints() -> None:
    others = [each for each in load_all() if each.method != "POST" or each.purpose == "count tokens"]
    assert {each.purpose for each in others} == {"models", "ping", "count tokens"}
    for each in others:
        never_read = Server([])
        value = await never_read.handle(each.method, each.path, each.headers)
        assert value is None or b";" not in value


async def test_one_conversation_has_one_opening_and_others_have_others() -> None:
    for client, number in (("claude-code", 4), ("codex", 3), ("opencode", 4), ("qwen-code", 3), ("cline", 2)):
        openings: dict[str, set[str | None]] = {}
        for each in load(client):
            if each.purpose in ("turn", "title", "memory", "subagent") and each.method == "POST":
                speaker = await speaker_in(each)
                openings.setdefault(each.purpose, set()).add(speaker.hints.opening)
        kinds = list(openings.values())
        assert all(None not in kind for kind in kinds)
        assert sum(map(len, kinds)) == len(set().union(*kinds)), client
        assert len(set().union(*kinds)) >= number


async def test_claudes_billing_line_makes_no_other_opening() -> None:
    system = ["x-anthropic-billing-header: cc_version=2.1.332.{}; cc_entrypoint=cli;", "You are Claude Code."]
    openings = set()
    for build in ("a", "b"):
        parts = [{"type": "text", "text": text.format(build)} for text in system]
        body = {"system": parts, "messages": [{"role": "user", "content": "hi"}]}
        openings.add((await speaker_of(body, path="/v1/messages")).hints.opening)
        joined = "\n".join(text.format(build) for text in system)
        openings.add((await speaker_of({"messages": [{"role": "system", "content": joined}]})).hints.opening)
    plain = {"messages": [{"role": "system", "content": [{"type": "text", "text": "You are Claude Code."}]}]}
    assert openings == {(await speaker_of(plain)).hints.opening}


# --- identities ---

IDS = [
    ("x-claude-code-session-id", {}),
    ("thread-id", {}),
    ("x-codex-turn-metadata", {}),
    ("x-openwebui-chat-id", {}),
    ("x-opencode-session", {}),
    ("x-opencode-session-id", {}),
    ("x-session-affinity", {}),
    ("x-session-id", {}),
    ("x-litellm-session-id", {}),
    ("session_id", {}),
    ("session-id", {}),
    ("", {"session_id": "ID"}),
    ("", {"vllm_xargs": {"session_id": "ID"}}),
    ("", {"metadata": {"user_id": '{"device_id":"d","session_id":"ID"}'}}),
    ("", {"metadata": {"user_id": "user_0a1b_account_7c_session_ID"}}),
    ("", {"client_metadata": {"thread_id": "ID", "session_id": "other"}}),
    ("", {"prompt_cache_key": "ID"}),
]
"""Every field in order of precedence. Where the id goes in a body is written ID."""


def with_id(number: int, session: str) -> tuple[dict[str, str], dict[str, Any]]:
    header, body = IDS[number]
    value = json.dumps({"thread_id": session, "session_id": "family"}) if header.endswith("metadata") else session
    return {header: value} if header else {}, json.loads(json.dumps(body).replace("ID", session))


@pytest.mark.parametrize("number", range(len(IDS)))
async def test_each_field_names_the_session_and_wins_over_those_after_it(number: int) -> None:
    headers, body = with_id(number, "first")
    assert (await speaker_of(body, headers)).session_id == "first"
    for other in range(number + 1, len(IDS)):
        more, fields = with_id(other, "second")
        if not body.keys() & fields.keys():
            assert (await speaker_of({**fields, **body}, {**more, **headers})).session_id == "first", IDS[other]


@pytest.mark.parametrize("number", range(len(IDS)))
async def test_an_empty_field_is_passed_over(number: int) -> None:
    headers, body = with_id(number, " ")
    assert (await speaker_of({"prompt_cache_key": "next", **body}, headers)).session_id in ("next", None)
    if "prompt_cache_key" not in body:
        assert (await speaker_of({"prompt_cache_key": "next", **body}, headers)).session_id == "next"


async def test_what_changes_within_a_conversation_or_is_shared_by_many_names_nobody() -> None:
    headers = {
        "x-request-id": "r",
        "x-client-request-id": "c",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "user-agent": "QwenCode/0.24.4",
        "authorization": "Bearer key",
        "x-openwebui-user-email": "alice@example.com",
        "x-claude-code-agent-id": "a1",
        "x-parent-session-id": "parent",
        "x-codex-parent-thread-id": "parent",
    }
    body = {"user": '{"session_id":"u"}', "safety_identifier": "s", "metadata": {"user_id": "alice"}, "model": "m"}
    assert await speaker_of(body, headers) == Speaker(None)


async def test_subagents_of_codex_and_opencode_are_sessions_of_their_own() -> None:
    for client in ("codex", "opencode"):
        subagents = {(await speaker_in(each)).session_id for each in load(client) if each.purpose == "subagent"}
        others = {(await speaker_in(each)).session_id for each in load(client) if each.purpose == "turn"}
        assert len(subagents) > 2 and not subagents & others


async def test_the_clients_own_header_counts_before_a_proxys_and_vllms_header_is_sent_once() -> None:
    server = Server(chunks(b"{}"))
    headers = [("X-Session-ID", "proxy-1"), ("Thread-Id", "mine"), ("X-Session-ID", "proxy-2")]
    assert await server.handle("POST", COMPLETIONS, headers) == b"mine;tools=no"
    assert [name for name, _ in server.headers].count(HEADER) == 1


async def test_illegal_ids_in_headers_and_bodies_become_the_same_session() -> None:
    legal = legal_session_id("alice@example.com")
    for number in range(len(IDS)):
        headers, body = with_id(number, "alice@example.com")
        expected = None if "_session_" in str(body) else legal
        assert (await speaker_of(body, headers)).session_id == expected, IDS[number]


async def test_a_client_may_send_hints_itself() -> None:
    body = {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]}
    speaker = await speaker_of(body, {"x-session-id": "alice;kind=side"})
    assert (speaker.session_id, speaker.hints.kind) == ("alice", RequestKind.SIDE)


# --- kinds ---


def asked(*texts: str, **more: object) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text} for text in texts], **more}


SIDE_SCHEMA = {"type": "object", "properties": {"title": {"type": "string"}}}
WORK_SCHEMA = {"type": "object", "properties": {"title": {"type": "string"}, "amount": {"type": "number"}}}


def chat_format(schema: object) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}}


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (asked("Name it", **chat_format(SIDE_SCHEMA)), RequestKind.SIDE),
        (asked("Name it", text={"format": {"type": "json_schema", "schema": SIDE_SCHEMA}}), RequestKind.SIDE),
        (asked("Name it", output_config={"format": {"type": "json_schema", "schema": SIDE_SCHEMA}}), RequestKind.SIDE),
        (asked("Read the bill", **chat_format(WORK_SCHEMA)), RequestKind.TURN),
        (asked("Name it", tools=[{"function": {"name": "f"}}], **chat_format(SIDE_SCHEMA)), RequestKind.TURN),
        (asked("quota", max_tokens=1), RequestKind.SIDE),
        (asked("A long question", max_tokens=1), RequestKind.TURN),
        (asked("### Task:\nGenerate tags", stream=False), RequestKind.SIDE),
        (asked("### Task:\nGenerate tags", stream=True), RequestKind.TURN),
        (asked("Hello", "### Task:\nWrite it"), RequestKind.TURN),
        (asked("Say: [SUGGESTION MODE: …] is a marker"), RequestKind.TURN),
        ({"input": "You are performing a CONTEXT CHECKPOINT COMPACTION. …"}, RequestKind.COMPACTION),
    ],
)
async def test_a_kind_is_seen_by_what_only_a_program_writes(body: dict[str, Any], kind: RequestKind) -> None:
    assert (await speaker_of(body, {"x-session-id": "alice"})).hints.kind is kind


async def test_a_system_message_after_the_users_hides_no_marker() -> None:
    body = asked("[SUGGESTION MODE: …]")
    body["messages"].append({"role": "system", "content": "# Environment"})
    assert (await speaker_of(body, {"x-session-id": "alice"})).hints.kind is RequestKind.SIDE


async def test_codexs_own_labels_count() -> None:
    for said, kind in (
        ({"request_kind": "compaction"}, RequestKind.COMPACTION),
        ({"request_kind": "turn", "thread_source": "thread_title"}, RequestKind.SIDE),
        ({"request_kind": "turn", "thread_source": "user"}, RequestKind.TURN),
        ({"request_kind": ["odd"], "thread_source": {}}, RequestKind.TURN),
    ):
        text = json.dumps(said)
        assert (await speaker_of({}, {"thread-id": "t", "x-codex-turn-metadata": text})).hints.kind is kind
        assert (
            await speaker_of({"client_metadata": {"thread_id": "t", "x-codex-turn-metadata": text}})
        ).hints.kind is kind


# --- bodies ---

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=15,
)
FIELDS = st.sampled_from(sorted({*middleware.body._Fields.__struct_fields__, "prompt", "model"}))


@given(
    st.binary() | st.dictionaries(FIELDS, JSON, max_size=8).map(lambda body: json.dumps(body).encode()),
    st.lists(st.tuples(st.sampled_from([name.decode() for name in middleware._KNOWN]), st.text(max_size=20))),
    st.integers(1, 40),
    st.sampled_from([*middleware._GENERATES, "/tokenize", "/v1/messages/count_tokens"]),
)
def test_nothing_makes_it_fail_and_every_message_arrives_as_it_was(
    body: bytes, headers: list[tuple[str, str]], size: int, path: str
) -> None:
    asyncio.run(Server(chunks(body, size)).handle("POST", path, headers))


async def test_a_client_that_leaves_in_the_middle_of_its_body_is_seen_to_leave() -> None:
    messages: list[dict[str, Any]] = [
        {"type": "http.request", "body": b'{"prompt_cache_key"', "more_body": True},
        {"type": "http.disconnect"},
    ]
    assert await Server(messages).handle("POST", COMPLETIONS, [("thread-id", "t")]) == b"t"


async def test_messages_after_the_body_come_from_the_server() -> None:
    messages: list[dict[str, Any]] = [*chunks(b"{}"), {"type": "http.disconnect"}]
    assert await Server(messages).handle("POST", COMPLETIONS, []) is None


async def test_a_large_body_goes_on_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(middleware, "MAX_BODY_BYTES", 100)
    body = json.dumps(asked("x" * 200, prompt_cache_key="k")).encode()
    said = [("thread-id", "t")]
    assert await Server(chunks(body, 40)).handle("POST", COMPLETIONS, said) == b"t"
    assert await Server(chunks(body)).handle("POST", COMPLETIONS, [*said, ("content-length", str(len(body)))]) == b"t"
    assert await Server(chunks(b"{}")).handle("POST", COMPLETIONS, said) == b"t;tools=no"
    for odd in ("", "-1", "²", "9" * 5000):
        assert await Server(chunks(b"{}")).handle("POST", COMPLETIONS, [*said, ("content-length", odd)]) is not None


async def test_a_body_is_read_no_further_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(middleware, "MAX_BODY_BYTES", 100)
    given: list[int] = []

    async def receive() -> Any:
        given.append(len(given))
        return {"type": "http.request", "body": b"x" * 40, "more_body": True}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert given == [0, 1, 2]

    await SessionHeader(app)({"type": "http", "method": "POST", "path": COMPLETIONS, "headers": []}, receive, None)  # type: ignore[arg-type]


async def test_an_odd_field_spoils_no_other() -> None:
    body = {"messages": 7, "tools": "none", "metadata": [], "client_metadata": None, "prompt_cache_key": "k"}
    assert (await speaker_of(body)).session_id == "k"
    assert await speaker_of([body]) == Speaker(None)
    assert await speaker_of(b"[" * 100_000) == Speaker(None)
    assert (await speaker_of(b'{"tools": ' + b"[" * 100_000 + b"}", {"thread-id": "t"})).session_id == "t"
