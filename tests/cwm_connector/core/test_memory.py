"""memory.py: the memory that a machine or its control groups leave to this process."""

from pathlib import Path

import pytest

from cwm_connector.core.memory import Memory, read_memory
from cwm_connector.core.units import GIB, MIB
from cwm_connector.settings import load_settings

MACHINE = Memory(total=64 * GIB, available=48 * GIB)


def machine(root: Path, groups: str = "", files: dict[str, str] | None = None) -> Path:
    """Write the files that Linux shows on a machine of 64 GiB."""
    every = {
        "proc/meminfo": "MemTotal: 67108864 kB\nMemFree: 1 kB\nMemAvailable: 50331648 kB\n",
        "proc/self/cgroup": groups,
        **{f"sys/fs/cgroup/{name}": text for name, text in (files or {}).items()},
    }
    for name, text in every.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_without_a_limit_it_is_the_machine_s(tmp_path: Path) -> None:
    assert read_memory(machine(tmp_path, "0::/\n")) == MACHINE
    assert read_memory(machine(tmp_path, "0::/pod\n", {"pod/memory.max": "max\n"})) == MACHINE


def test_a_machine_without_control_groups_has_no_limit(tmp_path: Path) -> None:
    (machine(tmp_path) / "proc/self/cgroup").unlink()
    assert read_memory(tmp_path) == MACHINE


def test_a_container_s_limit_counts_and_its_page_cache_is_available(tmp_path: Path) -> None:
    files = {
        "memory.max": f"{8 * GIB}\n",
        "memory.current": f"{5 * GIB}\n",
        "memory.stat": f"anon {2 * GIB}\ninactive_file {3 * GIB}\nactive_file 7\n",
    }
    assert read_memory(machine(tmp_path, "0::/\n", files)) == Memory(8 * GIB, 6 * GIB)


def test_the_tightest_of_the_groups_around_the_process_counts(tmp_path: Path) -> None:
    files = {
        "slice/memory.max": f"{4 * GIB}\n",
        "slice/memory.current": f"{1 * GIB}\n",
        "slice/pod/memory.max": f"{16 * GIB}\n",
        "slice/pod/memory.current": f"{512 * MIB}\n",
    }
    assert read_memory(machine(tmp_path, "0::/slice/pod/leaf\n", files)) == Memory(4 * GIB, 3 * GIB)


def test_version_1_of_control_groups_is_understood(tmp_path: Path) -> None:
    files = {
        "memory/pod/memory.limit_in_bytes": f"{2 * GIB}\n",
        "memory/pod/memory.usage_in_bytes": f"{1 * GIB}\n",
        "memory/pod/memory.stat": f"inactive_file 5\ntotal_inactive_file {256 * MIB}\n",
        "memory/memory.limit_in_bytes": "9223372036854771712\n",
    }
    root = machine(tmp_path, "5:cpu,cpuacct:/x\n4:memory:/pod\n0::/\n", files)
    assert read_memory(root) == Memory(2 * GIB, 1 * GIB + 256 * MIB)


def test_the_path_of_the_host_that_a_container_does_not_see_is_passed_over(tmp_path: Path) -> None:
    files = {"memory/memory.limit_in_bytes": f"{2 * GIB}\n", "memory/memory.usage_in_bytes": "0\n"}
    root = machine(tmp_path, "4:memory:/docker/0a1b\n", files)
    assert read_memory(root) == Memory(2 * GIB, 2 * GIB)
    assert read_memory(machine(tmp_path, "4:memory:/../../pod\n", files)) == Memory(2 * GIB, 2 * GIB)


def test_a_group_over_its_limit_has_nothing_available(tmp_path: Path) -> None:
    files = {"memory.max": "1000\n", "memory.current": "2000\n"}
    assert read_memory(machine(tmp_path, "0::/\n", files)) == Memory(1000, 0)


def test_a_machine_that_does_not_say_what_is_available_is_refused(tmp_path: Path) -> None:
    (machine(tmp_path) / "proc/meminfo").write_text("MemTotal: 5 kB\n")
    with pytest.raises(RuntimeError, match="MemAvailable"):
        read_memory(tmp_path)


def test_the_cpu_tier_takes_a_share_of_the_memory_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CWM_CPU_CACHE_GB", raising=False)
    assert load_settings().cpu_cache_bytes == min(read_memory().total // 8, 32 * GIB)


def test_this_machine_s_memory_is_read() -> None:
    memory = read_memory()
    assert 0 < memory.available <= memory.total
