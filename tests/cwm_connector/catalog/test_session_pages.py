"""Pages of sessions: those of the engine first, then those that only the catalog knows."""

from dataclasses import replace

import pytest

from cwm_connector.catalog.results import session_item, session_page
from cwm_connector.catalog.session_pages import SessionEvent, SessionPage, SessionQuery, SessionRow
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.protocol.calls import SessionsArgs
from cwm_connector.protocol.results import SessionList
from tests.cwm_connector.catalog.samples import at

SESSION = SessionRow("alice", "small", 773, SessionEvent.FROZEN, at(0), at(5), ("stem", "root"))


def test_sessions_are_filtered_and_paged() -> None:
    thawed = replace(SESSION, session_id="bob", event=SessionEvent.THAWED, model="large")
    rows = (SESSION, thawed, replace(SESSION, session_id="carol"))
    items = [session_item(row) for row in rows]

    def nothing(query: SessionQuery) -> SessionPage:
        return SessionPage((), 0)

    assert session_page(items, SessionsArgs(), nothing) == SessionList(sessions=items, total=3, has_more=False)
    assert session_page(items, SessionsArgs(state_filter="thawed"), nothing).sessions == [items[1]]
    assert session_page(items, SessionsArgs(model="small"), nothing).sessions == [items[0], items[2]]
    assert session_page(items, SessionsArgs(state_filter="expired"), nothing).total == 0
    second = session_page(items, SessionsArgs(limit=1, offset=1), nothing)
    assert (second.sessions, second.total, second.has_more) == ([items[1]], 3, True)
    assert session_page(items, SessionsArgs(limit=1, offset=2), nothing).has_more is False


def test_a_page_of_sessions_goes_on_with_those_that_only_the_catalog_knows() -> None:
    live = [session_item(SESSION)]
    asked: list[SessionQuery] = []

    def stored(query: SessionQuery) -> SessionPage:
        asked.append(query)
        return SessionPage((replace(SESSION, session_id="bob"),)[: query.limit], 5)

    first = session_page(live, SessionsArgs(limit=2), stored)
    assert ([item.session_id for item in first.sessions], first.total, first.has_more) == (["alice", "bob"], 6, True)
    session_page(live, SessionsArgs(limit=2, offset=4, state_filter="frozen", model="small"), stored)
    assert asked == [
        SessionQuery(without=["alice"], limit=1),
        SessionQuery(SessionEvent.FROZEN, "small", without=["alice"], limit=2, offset=3),
    ]
    assert session_page(live, SessionsArgs(state_filter="active"), stored).total == 0
    assert len(asked) == 2


@pytest.mark.parametrize("wrong", [{"state_filter": "asleep"}, {"limit": 0}, {"limit": 101}, {"offset": -1}], ids=str)
def test_a_wrong_argument_for_sessions_is_refused(wrong: dict) -> None:
    with pytest.raises(CWMError) as refused:
        session_page([], SessionsArgs(**wrong), lambda query: SessionPage((), 0))
    assert refused.value.code is Code.ARGUMENT
