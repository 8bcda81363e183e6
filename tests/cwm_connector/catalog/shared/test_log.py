"""The log itself, as bytes and in a real Redis: what follows what, and what is no record of it."""

from collections.abc import Iterator
from contextlib import closing

import msgspec
import pytest

from cwm_connector.catalog.base import Binding
from cwm_connector.catalog.shared.changes import (
    Barrier,
    Bind,
    Change,
    Clone,
    Commit,
    Delete,
    Position,
    Sweep,
    Tag,
    beginning,
    open_record,
    position,
    record_after,
    seal_of,
)
from cwm_connector.catalog.shared.log import RedisLog
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.redis import RedisLink
from tests.cwm_connector.catalog.engines import namespace
from tests.cwm_connector.catalog.samples import at, chain, new_window
from tests.support.redis_server import RedisServer

CHANGES: list[Change] = [
    Commit(new_window("first", chain("x", 2), tags=["t"])),
    Clone("first", "second", None, None, at(1)),
    Clone("first", "third", "", (), at(1)),
    Delete("first", (chain("x", 1)[0].key,)),
    Sweep(()),
    Tag("second", ("a",), ("b",), "text", at(2)),
    Bind(Binding("second", "bob", b"1" * 32, at(3))),
    Barrier(),
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: type(change).__name__)
def test_a_record_holds_the_whole_change(change: Change) -> None:
    base = beginning()
    record = record_after(base, change, "engine")
    assert open_record(base, record.at.seal, record.body) == record
    assert record.change == change


def test_a_record_of_before_origins_were_recorded_is_read() -> None:
    base, new = beginning(), new_window("first", chain("x", 2), tags=["t"])
    number, token, engine, (kind, fields) = msgspec.msgpack.decode(record_after(base, Commit(new), "engine").body)
    del fields["origin"]
    old = msgspec.msgpack.encode([number, token, engine, [kind, fields]])
    assert open_record(base, seal_of(base.seal, old), old).change == Commit(new)


def test_a_record_continues_one_history_only() -> None:
    base, other = beginning(), beginning()
    first, same = record_after(base, Barrier(), "e"), record_after(base, Barrier(), "e")
    assert first.at.seal != same.at.seal
    second = record_after(first.at, Barrier(), "e")
    for wrong in (other, base, same.at, Position(base.log, 1, other.seal)):
        with pytest.raises(CWMError) as caught:
            open_record(wrong, second.at.seal, second.body)
        assert caught.value.code is Code.CORRUPT


def test_a_position_is_read_back_from_its_text() -> None:
    place = record_after(beginning(), Barrier(), "e").at
    assert position(str(place)) == place
    for damaged in ("", "1", f"{place} x", str(place)[:-2], str(place)[2:], str(place).replace(" 1 ", " -1 ")):
        with pytest.raises(ValueError):
            position(damaged)


@pytest.fixture
def log(server: RedisServer) -> Iterator[RedisLog]:
    with closing(RedisLog(RedisLink(server.url), namespace())) as opened_log:
        assert opened_log.look() is None
        opened_log.create()
        yield opened_log


def head(log: RedisLog) -> Position:
    view = log.look()
    assert view is not None
    return view.head


def test_a_record_goes_behind_the_last_one_and_nowhere_else(log: RedisLog) -> None:
    start = head(log)
    first = record_after(start, Barrier(), "e")
    assert log.append(start, first)
    assert not log.append(start, record_after(start, Barrier(), "e"))
    # The right place in another history, and a place that does not exist yet.
    elsewhere = Position(start.log, 1, b"?" * 16)
    beyond = Position(start.log, 2, b"?" * 16)
    another = first.at._replace(log=b"?" * 16)
    for wrong in (elsewhere, beyond, another):
        assert not log.append(wrong, record_after(wrong, Barrier(), "e"))
    assert head(log) == first.at
    assert log.read(start) == [first]
    assert log.append(first.at, record_after(first.at, Barrier(), "e"))


def test_a_log_is_created_once(log: RedisLog) -> None:
    start = head(log)
    log.create()
    assert head(log) == start


def test_the_log_tells_whose_record_has_a_place(log: RedisLog) -> None:
    start = head(log)
    first, other = record_after(start, Barrier(), "e"), record_after(start, Barrier(), "e")
    assert log.has(first) is None
    log.append(start, first)
    assert (log.has(first), log.has(other)) == (True, False)


def test_how_far_the_log_is_on_disk_only_grows(log: RedisLog) -> None:
    start = head(log)
    record = record_after(start, Barrier(), "e")
    log.append(start, record)
    log.mark_durable(record.at)
    log.mark_durable(start)
    log.mark_durable(record.at._replace(log=b"?" * 16, number=9))
    view = log.look()
    assert view is not None
    assert view.durable == 1
