"""Sessions with adapters, images and embeddings, over real tiers and vLLM's own requests. Only the model is missing."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from vllm.lora.request import LoRARequest

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.protocol.calls import Op
from cwm_connector.sessions.extras.adapters import Adapters
from tests.cwm_connector.sessions.extras.test_adapters import adapter
from tests.cwm_connector.sessions.extras.test_carried import CAT, DOG, embeds, image
from tests.support.miniature import Miniature
from tests.support.vllm_parts import BLOCK_TOKENS

TEXT = range(1000, 1000 + 9 * BLOCK_TOKENS)  # four chunks and one block
PICTURED: dict[str, Any] = {"mm_features": [image(70, CAT)]}


@pytest.fixture
def poet(tmp_path: Path) -> LoRARequest:
    return adapter(tmp_path / "poet", b"of a poet")


async def freeze(engine: Miniature, **more: Any) -> dict[str, Any]:
    return await engine.call(Op.FREEZE, session_id="alice", window_name="w", **more)


async def restarted(engine: Miniature, home: Path) -> Miniature:
    engine.close()
    return await Miniature.started(home)


async def test_a_session_with_an_adapter_is_thawed_for_that_adapter_alone(
    thaw_only: Miniature, poet: LoRARequest, tmp_path: Path
) -> None:
    other = adapter(tmp_path / "other", b"of another", "other")
    await thaw_only.serve(TEXT, "alice", lora_request=poet)
    assert (await freeze(thaw_only))["captured_tokens"] == 144
    thawed = await thaw_only.call(Op.THAW, window_name="w", new_session_id="bob")
    assert await thaw_only.resume(TEXT, session_id="bob", lora_request=poet) == 144
    assert await thaw_only.resume(TEXT, salt=thawed["cache_salt"], lora_request=poet) == 144
    assert await thaw_only.resume(TEXT, session_id="bob") == 0
    assert await thaw_only.resume(TEXT, session_id="bob", lora_request=other) == 0


@pytest.mark.parametrize(("weights", "loaded"), [(b"of a poet", 144), (b"of a thief", 0)])
async def test_other_weights_under_the_same_name_and_path_load_nothing_after_a_restart(
    tmp_path: Path, weights: bytes, loaded: int
) -> None:
    place = tmp_path / "poet"
    engine = await Miniature.started(tmp_path / "home")
    await engine.serve(TEXT, "alice", lora_request=adapter(place, b"of a poet"))
    await freeze(engine)
    engine = await restarted(engine, tmp_path / "home")
    again = adapter(place, weights)
    assert await engine.resume(TEXT, session_id="alice", lora_request=again) == loaded  # found without a thaw
    thawed = await engine.call(Op.THAW, window_name="w")
    assert await engine.resume(TEXT, salt=thawed["cache_salt"], lora_request=again) == loaded
    assert await engine.resume(TEXT, session_id="alice") == 0
    engine.close()


async def test_two_adapters_of_equal_weights_share_their_chunks_and_two_others_none(
    engine: Miniature, poet: LoRARequest, tmp_path: Path
) -> None:
    same, other = adapter(tmp_path / "same", b"of a poet", "same"), adapter(tmp_path / "other", b"-", "other")
    new_bytes = []
    for number, each in enumerate((poet, same, other, None)):
        await engine.serve(TEXT, f"s{number}", lora_request=each)
        frozen = await engine.call(Op.FREEZE, session_id=f"s{number}", window_name=f"w{number}")
        new_bytes.append(frozen["new_bytes"] > 0)
    assert new_bytes == [True, False, True, True]


async def test_a_session_that_mixes_requests_with_and_without_an_adapter_has_a_head_for_each(
    engine: Miniature, poet: LoRARequest
) -> None:
    await engine.serve(TEXT, "alice")
    await engine.serve([*TEXT, *range(40)], "alice", lora_request=poet)
    for head, name in (("h1", "plain"), ("h2", "poet")):
        await engine.call(Op.FREEZE, session_id="alice", window_name=name, head=head)
    await engine.call(Op.THAW, window_name="plain", new_session_id="plain")
    await engine.call(Op.THAW, window_name="poet", new_session_id="poet")
    assert await engine.resume(TEXT, session_id="plain") == 144
    assert await engine.resume([*TEXT, *range(40)], session_id="poet", lora_request=poet) == 176


async def test_evicted_blocks_are_computed_again_with_the_sessions_adapter(
    thaw_only: Miniature, poet: LoRARequest
) -> None:
    await thaw_only.serve(TEXT, "alice", lora_request=poet)
    await thaw_only.evict()
    assert (await freeze(thaw_only))["recomputed_tokens"] > 0
    await thaw_only.call(Op.THAW, window_name="w", new_session_id="bob")
    assert await thaw_only.resume(TEXT, session_id="bob", lora_request=poet) == 144  # its pages are the adapter's


async def test_a_freeze_is_refused_when_the_adapters_files_have_changed(
    engine: Miniature, poet: LoRARequest, tmp_path: Path
) -> None:
    await engine.serve(TEXT, "alice", lora_request=poet)
    adapter(tmp_path / "poet", b"of another")
    with pytest.raises(CWMError, match="changed while vLLM served it") as refused:
        await freeze(engine)
    assert refused.value.code is Code.STATE
    engine.parts.adapters.loaded(poet)
    assert await engine.drop_cache()
    with pytest.raises(CWMError, match="have changed since the session used it"):
        await freeze(engine)
    await engine.serve([*TEXT, *range(40)], "alice", lora_request=poet)
    assert (await freeze(engine))["captured_tokens"] == 176


async def test_a_request_waits_for_its_adapters_digest_and_not_for_long(
    engine: Miniature, poet: LoRARequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    await engine.serve(TEXT, "alice", lora_request=poet)
    await freeze(engine)
    go_on, check = threading.Event(), Adapters._check
    monkeypatch.setattr(Adapters, "_check", lambda *args: go_on.wait(30) and check(*args))
    assert await asyncio.wait_for(engine.resume(TEXT, session_id="alice", lora_request=poet), 10) == 0
    go_on.set()
    assert await engine.resume(TEXT, session_id="alice", lora_request=poet) == 144


async def test_a_proof_is_taken_and_repeated_with_the_adapter(tmp_path: Path, poet: LoRARequest) -> None:
    engine = await Miniature.started(tmp_path / "home")
    await engine.serve(TEXT, "alice", lora_request=poet)
    assert (await freeze(engine, prove=True))["proof"]
    engine = await restarted(engine, tmp_path / "home")
    proved = await engine.call(Op.PROVE, window_name="w")
    assert proved["proof"] == "none" and "no request has used the window's adapter" in proved["proof_check"]["because"]
    await engine.serve(range(40), "somebody", lora_request=poet)
    assert (await engine.call(Op.PROVE, window_name="w"))["proof"] == "equal"
    engine.close()


async def test_a_session_with_an_image_is_loaded_up_to_where_the_image_differs(tmp_path: Path) -> None:
    engine = await Miniature.started(tmp_path / "home")
    await engine.serve(TEXT, "alice", **PICTURED)
    assert (await freeze(engine))["captured_tokens"] == 144
    engine = await restarted(engine, tmp_path / "home")
    await engine.call(Op.THAW, window_name="w", new_session_id="bob")
    same = [image(70, CAT), image(146, DOG, 1)]  # the session went on with another image
    assert await engine.resume(TEXT, session_id="bob", mm_features=same) == 144
    assert await engine.resume(TEXT, session_id="bob", mm_features=[image(70, DOG)]) == 64
    assert await engine.resume(TEXT, session_id="bob", mm_features=[image(71, CAT)]) == 64
    assert await engine.resume(TEXT, session_id="bob") == 64
    assert await engine.resume(TEXT, session_id="alice", **PICTURED) == 144  # found without a thaw
    engine.close()


async def test_what_comes_before_an_image_is_stored_once(engine: Miniature) -> None:
    await engine.serve(TEXT, "plain")
    plain = await engine.call(Op.FREEZE, session_id="plain", window_name="plain")
    await engine.serve(TEXT, "alice", **PICTURED)
    assert 0 < (await freeze(engine))["new_bytes"] < plain["new_bytes"]


async def test_a_window_with_an_image_ends_where_vllm_has_evicted_it(engine: Miniature) -> None:
    await engine.serve(TEXT, "alice", **PICTURED)
    blocks = engine.pool.get_num_free_blocks()
    engine.pool.free_blocks(engine.pool.get_new_blocks(blocks - 6))  # the end of the session is gone
    frozen = await freeze(engine)
    assert (frozen["captured_tokens"], frozen["recomputed_tokens"]) == (96, 0)
    assert frozen["not_resumable"] == "the rest was evicted, and images or embeddings can't be computed again"
    await engine.call(Op.THAW, window_name="w", new_session_id="bob")
    assert await engine.resume(TEXT, session_id="bob", **PICTURED) == 96


async def test_a_session_whose_image_is_gone_from_the_first_block_on_is_refused(engine: Miniature) -> None:
    await engine.serve(TEXT, "alice", **PICTURED)
    await engine.evict()
    with pytest.raises(CWMError, match="images or embeddings can't be computed again") as refused:
        await freeze(engine)
    assert refused.value.code is Code.CHUNK_MISSING


async def test_an_image_with_an_id_that_its_client_chose_is_refused(engine: Miniature) -> None:
    await engine.serve(TEXT, "alice", mm_features=[image(70, "holiday-1")])
    with pytest.raises(CWMError, match="an id that the client chose") as refused:
        await freeze(engine)
    assert refused.value.code is Code.STATE


async def test_a_window_of_embeddings_is_loaded_for_the_same_ones(engine: Miniature) -> None:
    ours, others = embeds(145, *range(10)), embeds(145, 0, 1, 2, 9, 4, 5, 6, 7, 8, 9)
    await engine.serve([0] * 144, "alice", **embeds(144, *range(9)))
    await freeze(engine)
    await engine.call(Op.THAW, window_name="w", new_session_id="bob")
    assert await engine.resume([0] * 144, session_id="bob", **ours) == 144
    assert await engine.resume([0] * 144, session_id="bob", **others) == 48
    assert await engine.resume([0] * 144, session_id="bob") == 0


async def test_no_proof_is_taken_of_an_image(engine: Miniature) -> None:
    await engine.serve(TEXT, "alice", **PICTURED)
    assert "a window with images or embeddings can't be proved" in (await freeze(engine, prove=True))["no_proof"]


async def test_a_window_with_extras_is_cloned_verified_and_taken_to_another_engine(
    tmp_path: Path, poet: LoRARequest
) -> None:
    engine, other = await Miniature.started(tmp_path / "a"), await Miniature.started(tmp_path / "b")
    await engine.serve(TEXT, "alice", lora_request=poet, **PICTURED)
    await freeze(engine)
    await engine.call(Op.CLONE, source_window="w", target_window="clone")
    await engine.call(Op.DELETE, window_name="w")
    assert (await engine.call(Op.VERIFY))["bad_copies"] == 0
    await engine.call(Op.EXPORT, window_name="clone", path=str(tmp_path / "file.cwm"))
    await other.call(Op.IMPORT, path=str(tmp_path / "file.cwm"), window_name="came")
    await other.call(Op.THAW, window_name="came", new_session_id="bob")
    assert await other.resume(TEXT, session_id="bob", lora_request=poet, **PICTURED) == 144
    assert await other.resume(TEXT, session_id="bob", lora_request=poet) == 64
    assert await other.resume(TEXT, session_id="bob", **PICTURED) == 0
    engine.close()
    other.close()
