"""The CPU tier: a reservation waits, within bounds, for memory that others hold."""

import threading
import time

import pytest

from cwm_connector.core.errors import CWMError
from cwm_connector.tiers.cpu import CpuTier
from tests.cwm_connector.tiers.test_cpu import PAGE, chunk, tier

__all__ = ["tier"]


def test_a_reservation_waits_for_memory_that_others_hold(tier: CpuTier) -> None:
    tier.publish(chunk(1), tier.reserve(2 * PAGE))
    held = tier.reserve(2 * PAGE)
    taken = []
    for let_go in (lambda: tier.unpin(chunk(1)), lambda: tier.release(held)):
        timer = threading.Timer(0.05, let_go)
        timer.start()
        buffer = tier.reserve(2 * PAGE, wait_s=30)
        timer.join()
        assert tier.usage().used_bytes == 4 * PAGE
        taken.append(buffer)
    for buffer in taken:
        tier.release(buffer)


def test_a_reservation_waits_no_longer_than_it_may_and_not_for_what_can_t_be(tier: CpuTier) -> None:
    held = tier.reserve(3 * PAGE)
    started = time.monotonic()
    with pytest.raises(CWMError, match="CWM-7001"):
        tier.reserve(2 * PAGE, wait_s=0.05)
    assert time.monotonic() - started >= 0.05
    with pytest.raises(CWMError, match="CWM-7001"):
        tier.reserve(5 * PAGE, wait_s=600)
    tier.release(held)


def test_a_reservation_goes_on_waiting_only_while_others_give_memory_back(
    tier: CpuTier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cwm_connector.tiers.cpu.QUIET_S", 0.5)
    pages = [tier.reserve(PAGE) for _ in range(4)]

    def give_back_slowly() -> None:
        for page in pages[:3]:
            time.sleep(0.3)
            tier.release(page)

    giving = threading.Thread(target=give_back_slowly)
    giving.start()
    most = tier.reserve(3 * PAGE, wait_s=30)
    giving.join()
    started = time.monotonic()
    with pytest.raises(CWMError, match="CWM-7001"):
        tier.reserve(PAGE, wait_s=30)
    assert time.monotonic() - started < 10
    for buffer in (most, pages[3]):
        tier.release(buffer)
