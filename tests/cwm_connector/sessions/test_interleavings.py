"""After any interleaving of requests, aborts, preemptions, freezes and evictions a freeze takes the conversation."""

from array import array
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cwm_connector.core.identity import Geometry
from cwm_connector.core.types import salt_hash
from cwm_connector.metrics import Metrics
from cwm_connector.sessions.index import SessionIndex
from cwm_connector.sessions.thaw_bindings import BoundWindow, ThawBindings
from cwm_connector.sessions.views import HeadKind
from cwm_connector.step.chunk_locations import ChunkLocations
from cwm_connector.step.job_board import JobBoard
from cwm_connector.step.scheduler import SchedulerSide
from cwm_connector.step.step_queue import StepQueue
from cwm_connector.step.window_matches import WindowMatches
from tests.cwm_connector.sessions.talk import SYSTEM, words
from tests.support.surveys import everything
from tests.support.vllm_parts import BLOCK_TOKENS, new_pool, request

MAX_BYTES = 1_500_000
SIZES = st.integers(1, 90)


class Conversation(RuleBasedStateMachine):
    """A client with side requests, subagents, edits and aborts, and a reference of what it said.

    `said` is what its next prompt begins with. `chain` is what a freeze must take: `said`, and what an aborted prompt
    computed beyond it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pool = new_pool(400)
        self.bindings = bindings = ThawBindings()
        self.index = SessionIndex(
            "m",
            BLOCK_TOKENS,
            bindings.thawed_into,
            max_bytes=MAX_BYTES,
            chunk_tokens=32,
            resumes=bindings.resumes,
        )
        geometry = Geometry.of(BLOCK_TOKENS, 32)
        parts = (WindowMatches(geometry, bindings), JobBoard(1), StepQueue(lambda: None), ChunkLocations(1), Metrics())
        self.side = SchedulerSide(geometry, self.index, *parts)
        self.side.bind_pool(self.pool)
        self.seed = 10
        self.salt: str | None = None
        self.said: list[int] = []
        self.chain: list[int] = []
        self.earlier: list[tuple[list[int], str | None]] = []
        self.running: list[tuple[Any, list[int]]] = []
        self.computed: list[list[int]] = []

    # --- the engine ---

    def new(self, count: int) -> list[int]:
        self.seed += 1
        return words(self.seed, count)

    def begin(self, prompt: list[int], speaker: str = "alice") -> Any:
        one = request(prompt, f"r{self.seed}-{len(self.computed)}", session_id=speaker, cache_salt=self.salt)
        self.side.request_added(one)
        return one

    def compute(self, one: Any, count: int) -> None:
        """Let the engine have computed `count` tokens, and keep their full blocks in the prefix cache."""
        one.num_computed_tokens = count
        full = count // BLOCK_TOKENS
        free = self.pool.get_num_free_blocks()
        if 0 < full <= free:
            blocks = self.pool.get_new_blocks(full)
            self.pool.cache_full_blocks(one, blocks, 0, full, BLOCK_TOKENS, 0)
            self.pool.free_blocks(reversed(blocks))
        self.computed.append(list(one.all_token_ids[:count]))

    def whole(self, prompt: list[int], answer: list[int], speaker: str = "alice") -> list[int]:
        one = self.begin(prompt, speaker)
        one.append_output_token_ids([*answer, 7])
        self.compute(one, one.num_tokens - 1)
        self.side.request_finished(one)
        return [*prompt, *answer]

    def cut_off(self, prompt: list[int], count: int, speaker: str = "alice") -> None:
        one = self.begin(prompt, speaker)
        self.compute(one, count)
        self.side.request_finished(one)

    # --- the client ---

    @initialize(sizes=st.lists(SIZES, min_size=4, max_size=4))
    def greet(self, sizes: list[int]) -> None:
        self.said = SYSTEM
        for ask, answer in (sizes[:2], sizes[2:]):
            self.said = self.whole([*self.said, *self.new(ask)], self.new(answer))
        self.chain = self.said

    @rule(ask=SIZES, answer=st.integers(0, 90))
    def turn(self, ask: int, answer: int) -> None:
        self.said = self.chain = self.whole([*self.said, *self.new(ask)], self.new(answer))

    @rule(ask=SIZES, share=st.floats(0, 1))
    def aborted_turn(self, ask: int, share: float) -> None:
        prompt = [*self.said, *self.new(ask)]
        count = int(share * (len(prompt) - 5))
        self.cut_off(prompt, count)
        if prompt[: len(self.chain)] == self.chain and count > len(self.chain):
            self.chain = prompt[:count]

    @rule(share=st.floats(0, 1), repeats=st.integers(1, 12))
    def aborted_repetition(self, share: float, repeats: int) -> None:
        for _ in range(repeats):
            self.cut_off(self.said, int(share * (len(self.said) - 5)))

    @rule(at=st.floats(0, 1), ask=SIZES, answer=SIZES)
    def edit(self, at: float, ask: int, answer: int) -> None:
        kept = 300 + int(at * (len(self.said) - 300))
        self.earlier.append((self.said, self.salt))
        self.said = self.chain = self.whole([*self.said[:kept], *self.new(ask)], self.new(answer))

    @rule(at=st.floats(0, 1), ask=SIZES)
    def aborted_edit(self, at: float, ask: int) -> None:
        kept = 300 + int(at * (len(self.said) - 300 - 1))
        prompt = [*self.said[:kept], *self.new(ask + 10)]
        self.cut_off(prompt, min(kept + ask, len(prompt) - 5))
        if prompt[: len(self.chain)] == self.chain:
            self.chain = prompt[: max(len(self.chain), min(kept + ask, len(prompt) - 5))]

    @precondition(lambda self: self.earlier)
    @rule(which=st.integers(0, 10**6), ask=SIZES, answer=SIZES)
    def back_to_an_earlier_branch(self, which: int, ask: int, answer: int) -> None:
        said, self.salt = self.earlier[which % len(self.earlier)]
        self.said = self.chain = self.whole([*said, *self.new(ask)], self.new(answer))

    @rule(which=st.integers(0, 10**6), ask=SIZES, answer=SIZES, aborted=st.booleans(), read_late=st.booleans())
    def thaw_and_go_on(self, which: int, ask: int, answer: int, aborted: bool, read_late: bool) -> None:
        """Go on with a window under the salt of its thaw, which shares no block with anything before."""
        self.earlier.append((self.said, self.salt))
        said, _ = self.earlier[which % len(self.earlier)]
        self.salt, name = f"thaw-{self.seed}", f"window-{self.seed}"
        window = BoundWindow(name, array("i", said), (), 0)
        self.bindings.bind_name("alice", salt_hash(self.salt), name, private=False)
        if not read_late:
            self.bindings.bind("alice", salt_hash(self.salt), window)
        prompt = [*said, *self.new(ask)]
        if aborted:
            self.cut_off(prompt, 200)
            self.check()
        one = self.begin(prompt)
        self.bindings.remember(window, self.bindings.changes)
        one.append_output_token_ids([*self.new(answer), 7])
        self.compute(one, one.num_tokens - 1)
        self.side.request_finished(one)
        self.said = self.chain = list(one.all_token_ids[:-1])

    @rule(ask=SIZES, answer=SIZES, kind=st.sampled_from(["side", "compaction"]), over=st.booleans())
    def side_request(self, ask: int, answer: int, kind: str, over: bool) -> None:
        self.whole([*(self.said if over else []), *self.new(ask)], self.new(answer), f"alice;kind={kind}")

    @rule(ask=SIZES, answer=SIZES, share=st.floats(0, 1.5))
    def unrelated_request(self, ask: int, answer: int, share: float) -> None:
        prompt = self.new(ask)
        if share < 1:
            self.cut_off(prompt, int(share * len(prompt)))
        else:
            self.whole(prompt, self.new(answer))

    @rule(agent=st.integers(0, 3), ask=SIZES, answer=SIZES, over=st.booleans())
    def subagent(self, agent: int, ask: int, answer: int, over: bool) -> None:
        self.whole([*(self.said if over else []), *self.new(ask)], self.new(answer), f"alice/a{agent}")

    @rule(ask=SIZES, in_flight=st.integers(1, 40))
    def preempted(self, ask: int, in_flight: int) -> None:
        one = self.begin([*self.said, *self.new(ask)])
        one.num_computed_tokens, one.num_in_flight_tokens = 0, in_flight
        self.check()
        self.side.request_finished(one)

    @precondition(lambda self: not self.running)
    @rule(ask=SIZES, count=st.integers(0, 400))
    def begin_a_side_request(self, ask: int, count: int) -> None:
        prompt = [*self.said, *self.new(ask)]
        one = self.begin(prompt, "alice;kind=side")
        self.compute(one, min(count, len(prompt)))
        self.running.append((one, prompt))

    @precondition(lambda self: self.running)
    @rule(in_flight=st.integers(0, 40), preempt=st.booleans())
    def end_it(self, in_flight: int, preempt: bool) -> None:
        one, _ = self.running.pop()
        one.num_in_flight_tokens = in_flight
        one.num_computed_tokens = 0 if preempt else one.num_computed_tokens
        self.side.request_finished(one)

    # --- the rest of the world ---

    @rule()
    def evict(self) -> None:
        free = self.pool.get_num_free_blocks()
        self.pool.free_blocks(self.pool.get_new_blocks(free))

    @rule()
    def freeze(self) -> None:
        list(self.side.mark_frozen(self.side.snapshot("alice", None)))
        assert not any(head.is_default for head in everything(self.side.freezable(0.25)) if head.session_id == "alice")

    @rule(protect=st.booleans())
    def auto_freeze(self, protect: bool) -> None:
        self.side.protect_unfrozen(protect)

    @rule()
    def flood(self) -> None:
        for number in range(60):
            one = request(self.new(20), f"flood{self.seed}", cache_salt=f"{self.seed}-{number}")
            self.side.request_added(one)
            one.num_computed_tokens = 20
            self.side.request_finished(one)

    @invariant()
    def check(self) -> None:
        if not self.chain:
            return
        snapshot = self.side.snapshot("alice", None)
        assert list(snapshot.token_ids) == self.chain, "a freeze takes the conversation"
        for head in (snapshot.head, *(other.head for other in snapshot.others)):
            one = self.side.snapshot("alice", head)
            said_again = request(list(one.token_ids), cache_salt=one.cache_salt)
            taken = list(one.token_ids)
            assert any(each[: len(taken)] == taken for each in self.computed), "no token that was not computed"
            assert len(one.block_hashes) == len(taken) // BLOCK_TOKENS
            assert list(one.block_hashes) == said_again.block_hashes
        assert self.index.size_bytes <= MAX_BYTES
        for session in self.index.recent():
            heads = session.heads
            assert heads.sides == sum(head.kind is HeadKind.SIDE for head in heads.table.by_name.values())
        ((view, cached),) = [pair for pair in everything(self.side.session_views()) if pair[0].session_id == "alice"]
        assert view.head == snapshot.head and cached <= view.token_count == len(self.chain)
        for due in everything(self.side.freezable(0.25)):
            assert 0 < due.unfrozen_tokens <= due.token_count


TestConversation = Conversation.TestCase
TestConversation.settings = settings(
    max_examples=40,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
