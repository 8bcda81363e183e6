"""Which writes a sync may vouch for, whoever asks."""

from concurrent.futures import ThreadPoolExecutor

from cwm_connector.tiers.redis.written import Written


def test_writes_to_the_server_of_now_are_settled_for_good() -> None:
    written = Written()
    written.note(b"first")
    assert written.confirm(b"first", written.count())
    assert written.confirm(b"second", written.count())  # settled before it started


def test_a_write_to_an_earlier_start_is_told_once_to_each_thread() -> None:
    written = Written()
    written.note(b"first")
    written.note(b"second")
    count = written.count()
    assert not written.confirm(b"second", count)
    assert written.confirm(b"second", count)
    with ThreadPoolExecutor(1) as other:
        assert not other.submit(written.confirm, b"second", count).result()
        assert other.submit(written.confirm, b"second", count).result()


def test_a_write_that_ends_while_a_sync_is_under_way_is_left_to_the_next() -> None:
    written = Written()
    written.note(b"first")
    count = written.count()
    written.note(b"first")
    assert written.confirm(b"first", count)
    assert not written.confirm(b"second", written.count())
