"""kv_options.py and the passport: whatever option decides the KV, a window made with another one is refused by name."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import vllm
from transformers import Phi3Config
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.config.attention import AttentionConfig
from vllm.config.kernel import KernelConfig
from vllm.model_executor.layers.rotary_embedding import phi3_long_rope_scaled_rope as longrope
from vllm.v1.kv_cache_interface import FullAttentionSpec, MambaSpec

from cwm_connector import compat
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.identity import ADDED_LATER, Passport
from cwm_connector.protocol.calls import Op
from cwm_connector.weights_digest import files_digest
from tests.cwm_connector.test_compat import config, full
from tests.support.miniature import Miniature

ORIGINAL, LONG = 2048, 4096
FACTORS = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
TEXT = list(range(100, 170))


def phi3(vocabulary: int = 1000) -> Phi3Config:
    return Phi3Config(
        vocab_size=vocabulary,
        pad_token_id=0,
        hidden_size=64,
        num_attention_heads=8,
        max_position_embeddings=LONG,
        original_max_position_embeddings=ORIGINAL,
        rope_parameters={"rope_type": "longrope", "rope_theta": 10000.0, **FACTORS},
    )


class Engine:
    """The configuration that the passport is made of, of a small Phi-3 with LongRoPE, and what the workers report."""

    def __init__(self) -> None:
        self.model = SimpleNamespace(
            hf_config=phi3(),
            max_model_len=ORIGINAL,
            dtype=torch.bfloat16,
            quantization=None,
            quantization_config=None,
            using_transformers_backend=lambda: False,
        )
        self.cache = SimpleNamespace(cache_dtype="auto", kv_cache_dtype_skip_layers=[], mamba_cache_mode="align")
        self.parallel = SimpleNamespace(tensor_parallel_size=1, pipeline_parallel_size=1)
        self.attention, self.kernels = AttentionConfig(), KernelConfig()
        self.compilation = SimpleNamespace(mode=SimpleNamespace(name="VLLM_COMPILE"))
        self.speculative: Any = None
        self.layout = "LBHNC"
        self.groups: list[Any] = [full()]
        self.workers = {"weights": "w", "drafter_weights": "none", "layout": "l", "backend": "CPU_ATTN", "isa": "AVX2"}

    def passport(self) -> Passport:
        kv = config(*self.groups)
        kv.kv_cache_layout = self.layout
        told = SimpleNamespace(
            model_config=self.model,
            cache_config=self.cache,
            parallel_config=self.parallel,
            attention_config=self.attention,
            kernel_config=self.kernels,
            compilation_config=self.compilation,
            speculative_config=self.speculative,
        )
        return Passport({**compat.passport_fields(told, kv, **self.workers), "format": "1"})


def put(part: str, name: str, value: Any) -> Callable[[Engine], None]:
    return lambda engine: setattr(getattr(engine, part), name, value)


def worker(name: str) -> Callable[[Engine], None]:
    return lambda engine: engine.workers.update({name: "other"})


def blocks_of(tokens: int) -> FullAttentionSpec:
    return FullAttentionSpec(block_size=tokens, num_kv_heads=2, head_size=8, dtype=torch.bfloat16)


STATE = MambaSpec(block_size=16, shapes=((2, 8),), dtypes=(torch.float32,))
EAGLE = SimpleNamespace(method="eagle", draft_model_config=SimpleNamespace(hf_config=phi3(500)))
MUTATIONS: dict[str, Callable[[Engine], None]] = {
    "weights": worker("weights"),
    "config": put("model", "hf_config", phi3(2000)),
    "dtype": put("model", "dtype", torch.float16),
    "cache_dtype": put("cache", "cache_dtype", "fp8"),
    "quantization": put("model", "quantization", "fp8"),
    "block_tokens": lambda engine: setattr(engine, "groups", [blocks_of(32)]),
    "layout": worker("layout"),
    "attention_backend": worker("backend"),
    "instruction_set": worker("isa"),
    "tensor_parallel": put("parallel", "tensor_parallel_size", 2),
    "pipeline_parallel": put("parallel", "pipeline_parallel_size", 2),
    "vllm": lambda engine: None,
    "rotary": put("model", "max_model_len", LONG),
    "model_impl": put("model", "using_transformers_backend", lambda: True),
    "quantization_options": put("model", "quantization_config", {"linear": "int8"}),
    "cache_skip_layers": put("cache", "kv_cache_dtype_skip_layers", ["0", "1"]),
    "mamba_cache": lambda engine: setattr(engine, "groups", [full(), STATE]),
    "groups": lambda engine: setattr(engine, "groups", [full(), full()]),
    "drafter": lambda engine: setattr(engine, "speculative", EAGLE),
    "drafter_weights": worker("drafter_weights"),
    "attention_options": put("attention", "flash_attn_version", 3),
    "moe_backend": put("kernels", "moe_backend", "triton"),
    "linear_backend": put("kernels", "linear_backend", "cutlass"),
    "compilation": put("compilation", "mode", SimpleNamespace(name="NONE")),
    "batch_invariant": lambda engine: None,
}


def mutated(field: str, monkeypatch: pytest.MonkeyPatch) -> Passport:
    """Return the passport of an engine with one other option."""
    engine = Engine()
    MUTATIONS[field](engine)
    with monkeypatch.context() as patched:
        if field == "vllm":
            patched.setattr(vllm, "__version__", "0.99.1")
        if field == "batch_invariant":
            patched.setenv("VLLM_BATCH_INVARIANT", "1")
        return engine.passport()


async def test_whatever_option_differs_the_refusal_names_its_field_and_both_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = Engine().passport()
    assert {*MUTATIONS, "format"} == set(base.fields), "a field without a test"
    first = await Miniature.started(tmp_path, passport=base)
    await first.serve(TEXT, "alice")
    await first.call(Op.FREEZE, session_id="alice", window_name="w")
    first.close()
    for field in MUTATIONS:
        passport = mutated(field, monkeypatch)
        other = await Miniature.started(tmp_path, passport=passport)
        with pytest.raises(CWMError) as refused:
            await other.call(Op.THAW, window_name="w")
        other.close()
        assert refused.value.code is Code.PASSPORT
        assert refused.value.context == {"field": field, "engine": passport.fields[field], "window": base.fields[field]}


def test_a_longrope_model_s_rotary_factors_are_those_that_vllm_chooses() -> None:
    """vLLM takes the long factors for all positions as soon as `--max-model-len` is beyond the original length."""
    chosen, told = [], []
    for length in (ORIGINAL, LONG):
        engine = Engine()
        engine.model.max_model_len = length
        told.append(engine.passport().fields["rotary"])
        current = VllmConfig()
        current.model_config = engine.model
        with set_current_vllm_config(current, check_compile=False):
            rope = longrope.Phi3LongRoPEScaledRotaryEmbedding(
                8, 8, LONG, ORIGINAL, 10000, True, torch.float32, **FACTORS
            )
        chosen.append(rope.use_long_rope)
    assert chosen == [False, True]
    assert told == ["longrope, short factors", "longrope, long factors"]


@pytest.mark.parametrize(
    "parameters",
    [
        {"rope_type": "longrope", **FACTORS},
        {"full_attention": {"rope_type": "longrope"}, "sliding": {"rope_type": "a"}},
    ],
)
def test_longrope_is_found_for_all_layers_and_for_each_kind_of_layer(parameters: dict[str, Any]) -> None:
    engine = Engine()
    engine.model.hf_config = SimpleNamespace(
        to_dict=dict, rope_parameters=parameters, original_max_position_embeddings=ORIGINAL
    )
    assert engine.passport().fields["rotary"] == "longrope, short factors"


def test_other_models_do_not_depend_on_the_longest_context() -> None:
    engine = Engine()
    engine.model.hf_config = Phi3Config(hidden_size=64)
    shorter = engine.passport()
    engine.model.max_model_len = LONG
    assert engine.passport().fields == shorter.fields and shorter.fields["rotary"] == "as configured"


def test_a_version_of_vllm_without_an_option_has_its_default() -> None:
    old, new = Engine(), Engine()
    del old.cache.kv_cache_dtype_skip_layers, old.model.quantization_config
    old.attention = old.kernels = None
    assert old.passport().fields == new.passport().fields


async def test_an_older_window_is_refused_only_where_an_added_field_matters(tmp_path: Path) -> None:
    """A window from before the added fields counts as made without special options."""
    engine = Engine()
    engine.workers["layout"] = ""  # an import compares it with the miniature engine's pages
    fields = engine.passport().fields
    older = Passport({name: value for name, value in fields.items() if name not in ADDED_LATER})
    first = await Miniature.started(tmp_path, passport=older)
    await first.serve(TEXT, "alice")
    await first.call(Op.FREEZE, session_id="alice", window_name="w")
    first.close()
    plain = Passport({**fields, "rotary": "as configured"})
    for passport, fits in ((plain, True), (Passport(fields), False)):
        later = await Miniature.started(tmp_path, passport=passport)
        if fits:
            thawed = await later.call(Op.THAW, window_name="w", new_session_id="bob")
            assert await later.resume(TEXT, session_id="bob") == thawed["restorable_tokens"] == 64
            target = str(tmp_path.parent / f"{tmp_path.name}.cwm")
            await later.call(Op.EXPORT, window_name="w", path=target)
            await later.call(Op.IMPORT, window_name="again", path=target)
            await later.call(Op.EXPORT, window_name="again", path=target, force=True)
        else:
            with pytest.raises(CWMError, match=r"CWM-5003.*rotary 'absent'.*'longrope, short factors'"):
                await later.call(Op.THAW, window_name="w")
        later.close()


def drafting(model: Path, drafter: Path | None, method: str = "eagle") -> Any:
    """An engine with a model and a drafter in these folders. Without a drafter, vLLM names the model itself."""
    target, load = SimpleNamespace(model=str(model), revision=None), SimpleNamespace(load_format="auto")
    draft = target if drafter is None else SimpleNamespace(model=str(drafter), revision=None)
    speculative = SimpleNamespace(method=method, draft_model_config=draft, target_model_config=target)
    return SimpleNamespace(model_config=target, load_config=load, speculative_config=speculative)


def test_a_drafter_is_known_by_its_files_and_one_inside_the_model_by_the_model_s(tmp_path: Path) -> None:
    model, digests = tmp_path / "model", []
    for name in ("model", "one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(name.encode())
    for name in ("one", "other"):
        files, source = compat.drafter_weight_files(drafting(model, tmp_path / name))
        assert (files, source) == ([tmp_path / name / "model.safetensors"], "auto")
        digests.append(files_digest(files, tmp_path / "drafter.json"))
    assert len(set(digests)) == 2
    assert compat.drafter_weight_files(drafting(model, tmp_path / "model", "mtp")) == ([], "none")
    assert compat.drafter_weight_files(drafting(model, None, "ngram")) == ([], "none")
    without = drafting(model, None)
    without.speculative_config = None
    assert compat.drafter_weight_files(without) == ([], "none")


def test_a_drafter_without_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CWMError, match=r"CWM-3001.*no weight files"):
        compat.drafter_weight_files(drafting(tmp_path / "model", tmp_path))
