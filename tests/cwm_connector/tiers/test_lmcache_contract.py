"""What this project relies on in LMCache. A failure here says that a new release changed it: read, then adapt the tier.

The tiers' own tests would fail as well, but not say why.
"""

import select
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

from cwm_connector.tiers.lmcache_parts import LMCacheFSClient, MixedMemoryAllocator, TensorMemoryAllocator
from tests.cwm_connector.tiers.chunks import aligned_buffer

HASH = "ab" * 32
KEY = f"cwm@0000002a@0@{HASH}"
FILE = f"cwm@0x0000002a@0@{HASH}.data"


def write(client: Any, source: memoryview) -> tuple[bool, str, list[bool] | None]:
    # `source` outlives the call here: the client keeps no reference to it.
    return outcome(client, client.submit_batch_set([KEY], [source]))


def read(client: Any, target: memoryview) -> tuple[bool, str, list[bool] | None]:
    return outcome(client, client.submit_batch_get([KEY], [target]))


def outcome(client: Any, submitted: int) -> tuple[bool, str, list[bool] | None]:
    ready, _, _ = select.select([client.event_fd()], [], [], 10)
    assert ready, "the event descriptor was not signalled"
    ((number, ok, reason, results),) = client.drain_completions()
    assert number == submitted
    return ok, reason, results


@pytest.fixture
def client(tmp_path: Path) -> Any:
    client = LMCacheFSClient(str(tmp_path), 1, "", True, 0)
    yield client
    client.close()


def test_it_is_the_release_that_was_read() -> None:
    assert version("lmcache") == "0.5.6"


def test_a_client_with_no_temporary_folder_makes_no_folder(client: Any, tmp_path: Path) -> None:
    assert list(tmp_path.iterdir()) == []


def test_a_write_has_no_result_per_key_and_its_file_is_named_by_the_key(client: Any, tmp_path: Path) -> None:
    assert write(client, aligned_buffer(8192)) == (True, "", None)
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    assert (tmp_path / FILE).stat().st_size == 8192


def test_a_write_over_a_file_keeps_the_old_one_and_reports_success(client: Any, tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"old")
    assert write(client, aligned_buffer(8192)) == (True, "", None)
    assert (tmp_path / FILE).read_bytes() == b"old"


def test_a_read_says_per_key_whether_it_was_found_whole(client: Any, tmp_path: Path) -> None:
    target = aligned_buffer(8192)
    assert read(client, target) == (True, "", [False])
    (tmp_path / FILE).write_bytes(b"x" * 8191)
    assert read(client, target) == (True, "", [False])
    (tmp_path / FILE).write_bytes(b"y" * 8192 + b"more")
    assert read(client, target) == (True, "", [True])
    assert bytes(target) == b"y" * 8192


def test_a_failed_write_is_named_in_words_only(client: Any, tmp_path: Path) -> None:
    tmp_path.rmdir()
    ok, reason, results = write(client, aligned_buffer(8192))
    tmp_path.mkdir()
    assert (ok, results) == (False, None)
    assert reason.endswith(f"{FILE.removesuffix('.data')}.tmp: No such file or directory")


def test_a_buffer_off_the_alignment_is_refused(client: Any) -> None:
    ok, reason, _ = write(client, aligned_buffer(16384)[512 : 512 + 8192])
    assert not ok
    assert "not aligned" in reason


def test_a_length_is_counted_in_items_so_buffers_must_be_of_bytes(client: Any, tmp_path: Path) -> None:
    write(client, aligned_buffer(8192).cast("I"))
    assert (tmp_path / FILE).stat().st_size == 2048


def test_the_pool_is_one_stretch_of_memory_whose_allocator_can_be_replaced() -> None:
    memory = MixedMemoryAllocator(1 << 20, align_bytes=4096)
    whole = (memory.buffer.shape, memory.buffer.dtype)
    assert whole == (torch.Size([1 << 20]), torch.uint8)
    memory.pin_allocator = TensorMemoryAllocator(memory.buffer[: 1 << 19], align_bytes=4096)
    (piece,) = memory.batched_allocate([torch.Size([5000])], [torch.uint8], 1)
    assert (piece.tensor.shape, piece.tensor.dtype) == (torch.Size([5000]), torch.uint8)
    assert piece.tensor.data_ptr() == memory.buffer.data_ptr()
    assert piece.get_physical_size() == 8192
    assert memory.batched_allocate([torch.Size([1 << 19])], [torch.uint8], 1) is None
    memory.batched_free([piece])
    (everything,) = memory.batched_allocate([torch.Size([1 << 19])], [torch.uint8], 1)
    memory.batched_free([everything])
    memory.close()
    memory.close()


def test_importing_the_parts_prints_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import cwm_connector.tiers.lmcache_parts"], capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("", "")
