"""Draw the rows of `benchmarks.gpu`: seconds to the first token by the length of the prompt.

python -m benchmarks.gpu_chart gpu.jsonl docs/gpu.png
"""

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SERIES: Final = {
    "cold_s": ("computed", "#6b7280", "o:"),
    "vllm_offload": ("vLLM's offload, CPU memory", "#d97706", "s--"),
    "vllm_files": ("vLLM's offload, files", "#b45309", "v--"),
    "thawed_from_disk_s": ("CWM, disk", "#60a5fa", "v-"),
    "thawed_from_redis_s": ("CWM, Redis", "#dc2626", "d-"),
    "thawed_from_memory_s": ("CWM, CPU memory", "#1d4ed8", "s-"),
    "prefix_hit_s": ("vLLM's prefix hit", "#059669", "o-"),
}
"""Where a row's time stands: its label, colour and style. A peer's key names the length, as do CWM's `tokens`."""
PEERS: Final = {"vllm_offload": "from_memory_s", "vllm_files": "from_disk_s"}


def points(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[int, float]]:
    """Return the seconds of each series by the length of the prompt in tokens."""
    found: dict[str, dict[int, float]] = {key: {} for key in SERIES}
    for row in rows:
        peer = next((key for key in PEERS if key in row), None)
        if peer is not None:
            found[peer][row[peer]] = row[PEERS[peer]]
            continue
        for key in SERIES:
            if key in row and "tokens" in row:
                found[key][row["tokens"]] = row[key]
    return {key: seconds for key, seconds in found.items() if seconds}


def draw(rows: Iterable[Mapping[str, Any]], target: Path) -> None:
    """Write the chart as a PNG. Both axes are logarithmic."""
    figure, axes = plt.subplots(figsize=(8, 5), dpi=120)
    lengths: set[int] = set()
    for key, seconds in points(rows).items():
        label, colour, style = SERIES[key]
        at = sorted(seconds)
        lengths.update(at)
        axes.plot(at, [seconds[length] for length in at], style, color=colour, label=label)
    axes.set(xscale="log", yscale="log", xlabel="tokens of the prompt", ylabel="seconds to the first token")
    axes.set_xticks(sorted(lengths), [f"{length:,}" for length in sorted(lengths)])
    axes.minorticks_off()
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(target)


def main() -> int:
    """Draw the file of the first argument into that of the second."""
    source, target = map(Path, sys.argv[1:3])
    draw([json.loads(line) for line in source.read_text().splitlines()], target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
