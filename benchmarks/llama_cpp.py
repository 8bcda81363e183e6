"""`python -m benchmarks.llama_cpp`: save and restore a slot with llama.cpp, on the same model and prompts as the TTFT
benchmark.

The model of `make model` is written as a GGUF file with float32 weights, and llama.cpp keeps float32 keys and values,
as vLLM does on a CPU without bf16 instructions. A restore brings back as many tokens as a thaw does, and the rest of
the prompt is computed, so both do the same work. llama.cpp comes from `tools/llama_cpp.sh`. Without it nothing is
measured. If `benchmarks.ttft` ran before, its ratios stand beside those of llama.cpp.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from gguf import GGUFWriter, LlamaFileType
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file
from transformers import AutoTokenizer

from benchmarks.ttft import FOLDER, PROMPT_TOKENS
from benchmarks.ttft_report import Spread
from tests.support.engine import ROOT, model_folder
from tests.support.machine import describe
from tests.support.texts import project_log

PEER: Final = ROOT / "build" / "llama_cpp"
BLOCK: Final = 128
"""vLLM's blocks on the CPU. A thaw restores whole ones."""
FLOAT32: Final = 0
"""GGML's number of the type."""
AGAIN: Final = 3
_TENSORS: Final = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_OUTER: Final = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}


def gguf_of(model: Path, path: Path) -> Path:
    """Write the checkpoint as a GGUF file without a vocabulary, unless it is there, and return its path."""
    if path.exists():
        return path
    config = json.loads((model / "config.json").read_text())
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    unfinished = path.with_suffix(".unfinished")
    writer = GGUFWriter(unfinished, "llama")
    writer.add_file_type(LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(config["vocab_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_rope_dimension_count(config["head_dim"])
    for name, tensor in load_file(model / "model.safetensors").items():
        values = tensor.to(torch.float32).numpy()
        if "q_proj" in name or "k_proj" in name:
            values = interleaved(values, heads if "q_proj" in name else kv_heads)
        writer.add_tensor(gguf_name(name), values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return unfinished.rename(path)


def gguf_name(name: str) -> str:
    """Return llama.cpp's name of a tensor of a Llama checkpoint."""
    if name in _OUTER:
        return _OUTER[name]
    _, _, layer, part = name.removesuffix(".weight").split(".", 3)
    return f"blk.{layer}.{_TENSORS[part]}.weight"


def interleaved(weights: np.ndarray, heads: int) -> np.ndarray:
    """Return query or key weights with the halves of each head interleaved: llama.cpp rotates neighbours."""
    halves = weights.reshape(heads, 2, weights.shape[0] // heads // 2, weights.shape[1])
    return halves.swapaxes(1, 2).reshape(weights.shape)


def prompts(count: int, tokens: int) -> list[list[int]]:
    """Return the prompts of the TTFT benchmark."""
    tokenizer = AutoTokenizer.from_pretrained(model_folder())
    texts = (project_log(seed, entries=tokens // 40 + 4) for seed in range(count))
    return [tokenizer.encode(text, add_special_tokens=False)[:tokens] for text in texts]


def run_peer(repetitions: int, tokens: int) -> dict[str, Any]:
    """Run llama.cpp in its own environment and return its samples."""
    with tempfile.TemporaryDirectory(dir=PEER) as folder:
        task = {
            "model": str(gguf_of(model_folder(), PEER / f"{model_folder().name}.f32.gguf")),
            "prompts": prompts(repetitions, tokens),
            "kept": (tokens - 1) // BLOCK * BLOCK,
            "context": tokens + BLOCK,
            "threads": len(os.sched_getaffinity(0)),
            "number_type": FLOAT32,
            "again": AGAIN,
            "folder": folder,
        }
        path = Path(folder) / "task.json"
        path.write_text(json.dumps(task))
        # -P: "llama_cpp" is to be the installed package, and not this module.
        script = Path(__file__).with_name("llama_cpp_peer.py")
        command = [str(PEER / "venv" / "bin" / "python"), "-P", str(script), str(path)]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    samples: dict[str, Any] = json.loads(done.stdout)
    return samples


# --- the report -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ratio:
    """A ratio that both have: of llama.cpp's samples of a prompt, and of CWM's."""

    name: str
    theirs: Callable[[dict[str, Any]], float]
    ours: Callable[[dict[str, Any]], float]


def _middle(one: dict[str, Any], name: str) -> float:
    value = one[name]
    return statistics.median(value) if isinstance(value, list) else value


RATIOS: Final = (
    Ratio(
        "restored from memory / prefix hit",
        lambda one: _middle(one, "restored_memory_s") / _middle(one, "hit_s"),
        lambda one: _middle(one, "thawed_cpu_s") / _middle(one, "prefix_hit_s"),
    ),
    Ratio(
        "restored from disk / prefix hit",
        lambda one: one["restored_disk_s"] / _middle(one, "hit_s"),
        lambda one: one["thawed_disk_s"] / _middle(one, "hit_after_disk_s"),
    ),
    Ratio(
        "cold / restored from memory",
        lambda one: one["cold_s"] / _middle(one, "restored_memory_s"),
        lambda one: one["cold_s"] / _middle(one, "thawed_cpu_s"),
    ),
    Ratio(
        "cold / restored from disk",
        lambda one: one["cold_s"] / one["restored_disk_s"],
        lambda one: one["cold_s"] / one["thawed_disk_s"],
    ),
)
_SERIES: Final = {
    "cold": "cold_s",
    "prefix hit": "hit_s",
    "save to a file": "save_s",
    "fsync of that file, by us": "sync_s",
    "copy to memory": "copy_out_s",
    "restored from memory, and the last tokens": "restored_memory_s",
    "restored from the page cache, and the last tokens": "restored_file_s",
    "restored from disk, and the last tokens": "restored_disk_s",
}


def print_report(console: Console, peer: dict[str, Any], tokens: int, ours: list[dict[str, Any]]) -> None:
    """Print llama.cpp's times, both sides' ratios, and what llama.cpp's file promises."""
    samples, machine = peer["samples"], describe()
    console.print(
        f"llama-cpp-python {peer['version']}, float32, {tokens:,} prompt tokens. {machine['cpu']}, {machine['cores']} "
        f"cores, {machine['date']}. The state file has {samples[0]['file_bytes'] / 1e6:.0f} MB."
    )
    times = Table("llama.cpp", "median (min–max)", "samples", title="Seconds")
    for title, name in _SERIES.items():
        spread = Spread.of([value for one in samples for value in _all(one[name])])
        times.add_row(title, spread.shown(" s"), str(spread.samples))
    console.print(times)
    ratios = Table("ratio, each within its own run", "llama.cpp", "CWM", title="Beside each other")
    for ratio in RATIOS:
        theirs = Spread.of([ratio.theirs(one) for one in samples]).shown("x")
        mine = Spread.of([ratio.ours(one) for one in ours]).shown("x") if ours else "not measured"
        ratios.add_row(ratio.name, theirs, mine)
    console.print(ratios)
    for where in ("memory", "file"):
        equal = sum(one[f"equal_{where}"] for one in samples)
        console.print(
            f"Restored from {where}: {equal} of {len(samples)} gave the logits of the hit bit for bit, and the tokens "
            "of a slot that was never interrupted."
        )
    refused = sum(one["flipped_bit_is_refused"] for one in samples)
    fsync = "calls" if peer["calls_fsync"] else "never calls"
    console.print(f"llama.cpp refused {refused} of {len(samples)} files with a flipped bit, and {fsync} fsync.")


def _all(value: float | list[float]) -> list[float]:
    return value if isinstance(value, list) else [value]


def our_samples(tokens: int) -> list[dict[str, Any]]:
    """Return the repetitions of the last TTFT benchmark, or none if it had other prompts."""
    path = FOLDER / "ttft.json"
    if not path.exists():
        return []
    run = json.loads(path.read_text())
    repetitions: list[dict[str, Any]] = run["repetitions"] if run["prompt_tokens"] == tokens else []
    return repetitions


def main() -> int:
    """Run the benchmark, print its tables and write its samples."""
    parser = argparse.ArgumentParser(description="Save and restore a slot with llama.cpp, as a peer of a thaw.")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=PROMPT_TOKENS)
    options = parser.parse_args()
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 110)
    if not (PEER / "venv" / "bin" / "python").exists():
        console.print("Skipped llama.cpp: llama-cpp-python is not installed. `tools/llama_cpp.sh` compiles it.")
        return 0
    peer = run_peer(options.repetitions, options.tokens)
    print_report(console, peer, options.tokens, our_samples(options.tokens))
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "llama_cpp.json").write_text(json.dumps({"machine": describe(), **peer}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
