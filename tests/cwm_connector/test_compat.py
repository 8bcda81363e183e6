"""The contract of compat with vLLM: each test fails loudly when the other side changes."""

import dataclasses
import inspect
import queue
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.output import CachedRequestData, NewRequestData, SchedulerOutput
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest, EngineCoreRequestType
from vllm.v1.engine.core import EngineCore, EngineCoreProc, EngineShutdownState
from vllm.v1.engine.output_processor import OutputProcessor
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
)
from vllm.v1.outputs import LogprobsLists
from vllm.v1.request import Request
from vllm.v1.sample.sampler import Sampler

from cwm_connector import compat
from cwm_connector.compat import running
from cwm_connector.core.errors import CWMError
from tests.support.surveys import everything
from tests.support.vllm_parts import BLOCK_TOKENS as BLOCK
from tests.support.vllm_parts import HASHER, compute, new_pool, request


def pool_with(cached: Request) -> tuple[BlockPool, list]:
    pool = new_pool(8)
    return pool, compute(pool, cached)


def test_cached_blocks_are_found_by_a_request_s_hashes_and_lost_ones_are_none() -> None:
    known = request(range(3 * BLOCK))
    pool, blocks = pool_with(known)
    assert compat.cached_blocks(pool, known.block_hashes) == blocks
    pool.evict_blocks({blocks[1].block_id})
    assert compat.cached_blocks(pool, known.block_hashes) == [blocks[0], None, blocks[2]]


def test_held_blocks_are_not_reused_and_let_go_ones_keep_their_content() -> None:
    known = request(range(2 * BLOCK))
    pool, blocks = pool_with(known)
    pool.free_blocks(reversed(blocks))
    compat.pin_blocks(pool, blocks)
    free = pool.get_num_free_blocks()
    taken = {block.block_id for block in pool.get_new_blocks(free)}
    assert not taken & {block.block_id for block in blocks}
    compat.unpin_blocks(pool, blocks)
    assert pool.get_num_free_blocks() == 2
    assert compat.cached_blocks(pool, known.block_hashes) == blocks


def test_a_block_is_given_back_by_its_last_holder() -> None:
    pool = new_pool(8)
    (block,) = compute(pool, request(range(BLOCK)))
    free = pool.get_num_free_blocks()
    compat.pin_blocks(pool, [block])
    assert not compat.is_held_once(block)
    compat.unpin_blocks(pool, [block])
    assert compat.is_held_once(block) and pool.get_num_free_blocks() == free
    compat.unpin_blocks(pool, [block])
    assert not compat.is_held_once(block) and pool.get_num_free_blocks() == free + 1


def test_the_blocks_taken_next_are_told_in_vllm_s_own_order() -> None:
    pool = new_pool(8)
    blocks = compute(pool, request(range(3 * BLOCK)))
    pool.free_blocks(reversed(blocks))
    told = set(everything(compat.next_evicted(pool, 5)))
    assert told == {block.block_id for block in pool.get_new_blocks(5)}
    assert blocks[2].block_id in told and blocks[1].block_id not in told
    assert len(everything(compat.next_evicted(pool, 100))) == pool.get_num_free_blocks() == 2


def test_the_walk_over_free_blocks_goes_on_when_vllm_uses_some_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "_WALKED_AT_ONCE", 4)
    pool = new_pool(32)
    walk = compat.next_evicted(pool, 12)
    first = next(walk)
    taken = [block.block_id for block in pool.get_new_blocks(6)]
    assert taken[:4] == first and len(taken) == 6
    rest = everything(walk)
    assert [block.block_id for block in pool.get_new_blocks(8)] == rest


def test_an_engine_says_when_it_is_shutting_down_and_one_in_process_never_is() -> None:
    told = [compat.is_shutting_down(SimpleNamespace(shutdown_state=state)) for state in EngineShutdownState]
    assert told == [state is not EngineShutdownState.RUNNING for state in EngineShutdownState]
    assert "shutdown_state" in inspect.getsource(EngineCoreProc._handle_shutdown)
    assert not compat.is_shutting_down(SimpleNamespace())


def test_a_request_has_the_fields_that_a_session_reads() -> None:
    one = request(range(2 * BLOCK + 3), session_id="alice", cache_salt="salt")
    assert (one.session_id, one.cache_salt, one.num_tokens, len(one.block_hashes)) == ("alice", "salt", 35, 2)
    assert list(one.all_token_ids[:2]) == [0, 1]
    assert one.num_computed_tokens == one.num_in_flight_tokens == 0
    assert compat.is_plain(one)


def test_a_list_of_token_ids_is_sliced_and_compared_as_beginnings_do() -> None:
    one = request(range(20))
    assert one.all_token_ids[16:19] == [16, 17, 18]
    assert isinstance(one.block_hashes[0], bytes)


def test_the_tokenizer_is_the_model_s_and_none_where_vllm_does_without(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr("vllm.tokenizers.registry.cached_get_tokenizer", lambda name, **_: asked.append(name))
    model = {"tokenizer": "name", "runner_type": "generate", "tokenizer_mode": "auto", "tokenizer_revision": None}
    for skipped in (True, False):
        config = SimpleNamespace(**model, skip_tokenizer_init=skipped, trust_remote_code=False, hf_config=None)
        compat.tokenizer(SimpleNamespace(model_config=config))
    assert asked == ["name"]


def test_the_salt_changes_vllm_s_hashes_but_is_the_same_for_the_same_salt() -> None:
    plain, salted, again = (
        request(range(BLOCK)),
        request(range(BLOCK), cache_salt="a"),
        request(range(BLOCK), cache_salt="a"),
    )
    assert plain.block_hashes != salted.block_hashes == again.block_hashes


def test_the_middle_of_a_step_is_the_mean_position_of_its_tokens() -> None:
    assert compat.middle_of_step(SchedulerOutput.make_empty()) == 0
    step = SchedulerOutput.make_empty()
    new = NewRequestData("new", None, None, None, None, ([],), num_computed_tokens=1000, lora_request=None)
    step.scheduled_new_reqs = [new]
    step.scheduled_cached_reqs = CachedRequestData.make_empty()
    step.scheduled_cached_reqs.req_ids, step.scheduled_cached_reqs.num_computed_tokens = ["old"], [5000]
    step.num_scheduled_tokens, step.total_num_scheduled_tokens = {"new": 300, "old": 100}, 400
    assert compat.middle_of_step(step) == (300 * 1150 + 100 * 5050) // 400


def test_waking_puts_a_message_that_vllm_ignores_into_its_queue() -> None:
    inbox: queue.Queue = queue.Queue()
    compat.wake(SimpleNamespace(input_queue=inbox))
    kind, payload = inbox.get_nowait()
    assert EngineCoreProc._handle_client_request(SimpleNamespace(), kind, payload) is None
    assert "input_queue" in inspect.getsource(EngineCoreProc.__init__)


def test_a_prefill_of_ours_is_an_ordinary_request_for_one_token() -> None:
    inbox: queue.Queue = queue.Queue()
    engine = SimpleNamespace(
        input_queue=inbox,
        mm_receiver_cache=None,
        request_block_hasher=HASHER,
        structured_output_manager=None,
    )
    engine.preprocess_add_request = lambda each: EngineCore.preprocess_add_request(engine, each)
    compat.submit_prefill(engine, "cwm-1", range(2 * BLOCK), "salt", logprobs=0)
    kind, (added, wave) = inbox.get_nowait()
    assert added.sampling_params.num_logprobs == 0, "the token's own logprob and no other"
    assert kind is EngineCoreRequestType.ADD and wave == 0
    assert (added.request_id, added.max_tokens, added.cache_salt, added.num_tokens) == ("cwm-1", 1, "salt", 2 * BLOCK)
    assert added.block_hashes == request(range(2 * BLOCK), cache_salt="salt").block_hashes


def output_of(request_id: str, token_ids: list[int]) -> EngineCoreOutput:
    logprobs = LogprobsLists(np.array([[5, 9]]), np.array([[-0.25, -3.0]], dtype=np.float32), np.array([0]))
    return EngineCoreOutput(request_id, token_ids, new_logprobs=logprobs if token_ids else None)


def test_the_first_token_of_a_request_of_ours_is_read_from_what_goes_to_clients() -> None:
    outbox: queue.Queue = queue.Queue()
    answers: dict[str, Future[compat.FirstToken]] = {"ours": Future(), "aborted": Future()}
    compat.watch_first_tokens(SimpleNamespace(output_queue=outbox), answers)
    theirs, ours, aborted = (output_of(*each) for each in (("theirs", [3]), ("ours", [5]), ("aborted", [])))
    put = [EngineCoreProc.ENGINE_CORE_DEAD, (0, EngineCoreOutputs(outputs=[theirs, ours, aborted]))]
    for message in put:
        outbox.put_nowait(message)
    assert [outbox.get_nowait(), outbox.get_nowait()] == put
    assert answers["ours"].result(0) == compat.FirstToken(5, -0.25)
    with pytest.raises(CWMError, match="CWM-3001"):
        answers["aborted"].result(0)
    assert "self.output_queue.put_nowait(output)" in inspect.getsource(EngineCoreProc._process_engine_step)
    assert "token_id" not in repr(compat.FirstToken(5, -0.25)), "a token in a log"


def test_vllm_gives_a_token_s_own_logprob_first_and_alone_where_no_alternatives_are_asked_for() -> None:
    logprobs = torch.log_softmax(torch.tensor([[0.0, 3.0, 1.0], [1.0, 0.0, 5.0]]), -1)
    told = Sampler.gather_logprobs(logprobs, 0, torch.tensor([1, 2])).tolists().slice_request(1, 1)
    assert told.logprob_token_ids.tolist() == [[2]]
    assert told.logprobs.tolist() == [[logprobs[1][2].item()]]


def test_what_can_not_be_read_of_an_output_ends_no_engine() -> None:
    outbox: queue.Queue = queue.Queue()
    compat.watch_first_tokens(SimpleNamespace(output_queue=outbox), {"ours": Future()})
    outbox.put_nowait((0, "of another shape"))
    assert outbox.get_nowait() == (0, "of another shape")


@pytest.mark.parametrize(("pause", "executor", "paused"), [(0, False, False), (1, False, True), (0, True, True)])
def test_an_engine_says_when_it_begins_no_request(pause: int, executor: bool, paused: bool) -> None:
    engine = SimpleNamespace(
        scheduler=SimpleNamespace(pause_state=PauseState(pause)), model_executor=SimpleNamespace(is_sleeping=executor)
    )
    engine.is_scheduler_paused = lambda: EngineCore.is_scheduler_paused(engine)
    engine.is_sleeping = lambda: EngineCore.is_sleeping(engine)
    assert compat.is_paused(engine) is paused


def test_a_request_of_ours_is_aborted_as_a_client_s_would_be() -> None:
    inbox: queue.Queue = queue.Queue()
    compat.abort_request(SimpleNamespace(input_queue=inbox), "cwm-1")
    aborted: list[list[str]] = []
    EngineCoreProc._handle_client_request(SimpleNamespace(abort_requests=aborted.append), *inbox.get_nowait())
    assert aborted == [["cwm-1"]]
    compat.abort_request(SimpleNamespace(), "cwm-1")


def test_vllm_ignores_the_output_of_a_request_that_no_client_sent() -> None:
    source = inspect.getsource(OutputProcessor.process_outputs)
    assert "if req_state is None" in source and source.index("if req_state is None") < source.index(
        "_update_stats_from"
    )


def test_a_client_s_call_to_the_workers_still_reaches_them_and_is_noticed() -> None:
    class Core(EngineCore):
        model_executor: Any = SimpleNamespace(collective_rpc=lambda *given: [given])

        def __init__(self) -> None: ...

    engine, noticed = Core(), list[bool]()
    compat.watch_worker_calls(engine, lambda: noticed.append(True))
    given: tuple[Any, ...] = ("replace_weights", None, (), {})  # as vLLM's client sends it
    method = engine.collective_rpc
    assert method(*EngineCoreProc._convert_msgspec_args(method, given)) == [given]
    assert noticed == [True]


def test_an_engine_without_a_queue_is_refused_for_recomputing() -> None:
    with pytest.raises(CWMError, match="CWM-3001"):
        compat.submit_prefill(SimpleNamespace(), "r", [1], None)


def test_the_engine_is_found_on_the_stack_of_its_constructor() -> None:
    class Core(EngineCore):
        def __init__(self) -> None:
            self.found = compat.find_engine_core()

    core = Core()
    assert core.found is core
    assert compat.find_engine_core() is None


def config(*specs: Any) -> Any:
    groups = [KVCacheGroupSpec([f"layer{index}"], spec) for index, spec in enumerate(specs)]
    return KVCacheConfig(num_blocks=4, kv_cache_tensors=[], kv_cache_groups=groups)


def full() -> FullAttentionSpec:
    return FullAttentionSpec(block_size=BLOCK, num_kv_heads=2, head_size=8, dtype=torch.bfloat16)


def engine_config(**parallel: int) -> Any:
    sizes = {"data_parallel_size": 1, "decode_context_parallel_size": 1, "prefill_context_parallel_size": 1}
    return SimpleNamespace(
        parallel_config=SimpleNamespace(**{**sizes, **parallel}),
        cache_config=SimpleNamespace(enable_prefix_caching=True),
        kv_transfer_config=SimpleNamespace(kv_role="kv_both", kv_load_failure_policy="recompute"),
        speculative_config=None,
        observability_config=SimpleNamespace(otlp_traces_endpoint=None),
    )


def test_a_model_with_full_attention_is_supported() -> None:
    compat.check_supported(engine_config(), config(full()))
    assert compat.block_tokens(config(full())) == BLOCK
    assert compat.block_bytes(config(full())) == 2 * 2 * 8 * BLOCK * 2


def test_vllm_0_31_without_a_hash_unit_of_its_own_is_supported() -> None:
    """vLLM 0.31 can't be installed beside 0.32, so its config is the installed one less the field."""
    old = SimpleNamespace(kv_cache_groups=config(full()).kv_cache_groups)
    compat.check_supported(engine_config(), old)
    assert "hash_block_size" in {each.name for each in dataclasses.fields(KVCacheConfig)}


@pytest.mark.parametrize(
    "size", ["data_parallel_size", "decode_context_parallel_size", "prefill_context_parallel_size"]
)
def test_parallelism_that_would_mix_windows_up_is_refused(size: str) -> None:
    with pytest.raises(CWMError, match=r"CWM-3001.*parallel"):
        compat.check_supported(engine_config(**{size: 2}), config(full()))


def test_an_engine_that_would_fail_requests_with_bad_chunks_is_refused() -> None:
    strict = engine_config()
    strict.kv_transfer_config.kv_load_failure_policy = "fail"
    with pytest.raises(CWMError, match="kv_load_failure_policy"):
        compat.check_supported(strict, config(full()))


@pytest.mark.parametrize("role", ["kv_producer", "kv_consumer"])
def test_an_engine_that_may_reuse_blocks_under_a_load_is_refused(role: str) -> None:
    one_way = engine_config()
    one_way.kv_transfer_config.kv_role = role
    with pytest.raises(CWMError, match=rf'CWM-1003.*{role}.*"kv_role":"kv_both"'):
        compat.check_supported(one_way, config(full()))


def test_dummy_weights_are_known_by_their_seed() -> None:
    dummy = SimpleNamespace(
        model_config=SimpleNamespace(model="m", seed=3, revision=None), load_config=SimpleNamespace(load_format="dummy")
    )
    assert compat.weight_files(dummy) == ([], "dummy:3")


def test_the_weights_are_found_in_the_folder_that_vllm_downloads_to(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--org--model" / "snapshots" / "1234"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "models--org--model" / "refs").mkdir()
    (tmp_path / "models--org--model" / "refs" / "main").write_text("1234")
    downloaded = SimpleNamespace(
        model_config=SimpleNamespace(model="org/model", revision=None),
        load_config=SimpleNamespace(load_format="auto", download_dir=str(tmp_path)),
    )
    assert compat.weight_files(downloaded) == ([snapshot / "model.safetensors"], "auto")


def test_the_request_message_has_the_fields_that_a_prefill_fills() -> None:
    assert {"request_id", "prompt_token_ids", "sampling_params", "cache_salt", "arrival_time"} <= set(
        EngineCoreRequest.__struct_fields__
    )


def test_layers_come_in_the_model_s_order_wherever_they_lie_in_memory() -> None:
    memory = torch.zeros((3, 4, 2, BLOCK, 16), dtype=torch.bfloat16)
    placed = {"layer0": memory[2], "layer1": memory[0], "layer2": memory[1]}
    groups = [KVCacheGroupSpec(list(placed), full())]
    told = KVCacheConfig(num_blocks=4, kv_cache_tensors=[], kv_cache_groups=groups)
    (ordered,) = compat.layers_in_order(told, dict(reversed(placed.items())))
    assert [layer.data_ptr() for layer in ordered] == [cache.data_ptr() for cache in placed.values()]
