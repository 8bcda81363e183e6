"""The thaws of windows (bindings), the proofs that a thaw can repeat, and the sessions of the embedded catalog.

The functions read and check the rows, and seal and write them.

Every function runs inside the caller's transaction.
"""

import json
import sqlite3
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final

from cwm_connector.catalog.base import Binding, Proof
from cwm_connector.catalog.session_pages import SessionEvent, SessionPage, SessionQuery, SessionRow
from cwm_connector.catalog.sqlite.chunks import next_id
from cwm_connector.catalog.sqlite.rows import damaged, damaged_window, seal
from cwm_connector.catalog.sqlite.windows import Window
from cwm_connector.core.types import Micros

BINDINGS: Final = 1024
"""The newest bindings that are kept. Each costs memory at every start, and an old thaw can be repeated."""
SESSIONS: Final = 1024
"""The newest sessions, which are kept although no window was frozen from them and none was thawed into them."""

_BINDING: Final = """
    SELECT w.name, b.id, b.window_id, b.session_id, b.salt_hash, b.created_at, b.digest
    FROM bindings b LEFT JOIN windows w ON w.id = b.window_id
"""
_SESSION: Final = "SELECT session_id, model, token_count, event, created_at, updated_at, digest FROM sessions"
_REMEMBER: Final = "INSERT OR REPLACE INTO sessions VALUES (?, ?, ?, ?, ?, ?, ?)"
_FROZEN: Final = "SELECT session_id, name FROM windows INDEXED BY windows_by_session WHERE cloned = 0"
_NEWEST_FIRST: Final = "ORDER BY created_at DESC, id DESC"
_NEWEST_EVENT_FIRST: Final = "ORDER BY updated_at DESC, session_id"
_FORGET: Final = f"""
    DELETE FROM sessions WHERE session_id IN (SELECT value FROM json_each(?))
        AND NOT EXISTS (SELECT 1 FROM windows w WHERE w.session_id = sessions.session_id)
        AND NOT EXISTS (SELECT 1 FROM bindings b WHERE b.session_id = sessions.session_id)
        AND session_id NOT IN (SELECT session_id FROM sessions {_NEWEST_EVENT_FIRST} LIMIT ?)
"""


def add_binding(db: sqlite3.Connection, window: int, binding: Binding) -> None:
    """Add a binding, which replaces an equal older one. Remove the oldest ones beyond `BINDINGS`."""
    values = (next_id(db, "bindings"), window, binding.session_id, binding.salt_hash, binding.created_at)
    db.execute(
        "INSERT OR REPLACE INTO bindings (id, window_id, session_id, salt_hash, created_at, digest) "
        "VALUES (?, ?, ?, ?, ?, ?)",
        (*values, seal("binding", *values)),
    )
    old = db.execute(f"SELECT id, session_id FROM bindings {_NEWEST_FIRST} LIMIT -1 OFFSET ?", (BINDINGS,)).fetchall()
    db.executemany("DELETE FROM bindings WHERE id = ?", ((number,) for number, _ in old))
    forget_unused_sessions(db, [session_id for _, session_id in old])


def all_bindings(db: sqlite3.Connection) -> tuple[Binding, ...]:
    """Return all bindings, oldest first. Raises `Code.CORRUPT` if one is damaged."""
    return tuple(_binding(fields) for fields in db.execute(f"{_BINDING} ORDER BY b.created_at, b.id"))


def last_thaw_into(db: sqlite3.Connection, session_id: str) -> Binding | None:
    """Return the newest binding of the session, or None. Raises `Code.CORRUPT` if it is damaged."""
    fields = db.execute(
        f"{_BINDING} WHERE b.session_id = ? ORDER BY b.created_at DESC, b.id DESC LIMIT 1", (session_id,)
    ).fetchone()
    binding = None if fields is None else _binding(fields)
    if binding is not None and binding.session_id != session_id:
        raise damaged("a thaw")
    return binding


def write_proof(db: sqlite3.Connection, snapshot: int, proof: Proof) -> None:
    """Store the proof of a snapshot in place of an older one."""
    db.execute("DELETE FROM proofs WHERE snapshot_id = ?", (snapshot,))
    values = (next_id(db, "proofs"), snapshot, proof.token_id, proof.logprob, proof.taken_at)
    db.execute("INSERT INTO proofs VALUES (?, ?, ?, ?, ?, ?)", (*values, seal("proof", *values)))


def read_proof(db: sqlite3.Connection, snapshot: int, name: str) -> Proof | None:
    """Return the proof of a snapshot, or None. Raises `Code.CORRUPT` if it is damaged, with the window's `name`."""
    fields = db.execute(
        "SELECT id, snapshot_id, token_id, logprob, taken_at, digest FROM proofs WHERE snapshot_id = ?", (snapshot,)
    ).fetchone()
    if fields is None:
        return None
    if seal("proof", *fields[:-1]) != fields[-1] or fields[1] != snapshot:
        raise damaged_window(name)
    return Proof(token_id=fields[2], logprob=fields[3], taken_at=fields[4])


def remember_session(db: sqlite3.Connection, session_id: str, window: Window, event: SessionEvent, now: Micros) -> None:
    """Record that the session now is as `window` holds it. Raises `Code.CORRUPT` if its old row is damaged."""
    known = _session_fields(db, session_id)
    values = (session_id, window.model, window.token_count, event.value, known[4] if known else now, now)
    db.execute(_REMEMBER, (*values, seal("session", *values)))
    oldest = db.execute(f"SELECT session_id FROM sessions {_NEWEST_EVENT_FIRST} LIMIT 1 OFFSET ?", (SESSIONS,))
    forget_unused_sessions(db, [session_id for (session_id,) in oldest])


def sessions_bound_to(db: sqlite3.Connection, window: int) -> list[str]:
    """Return the session of a window and those that it was thawed into."""
    rows = db.execute(
        "SELECT session_id FROM windows WHERE id = ?1 UNION SELECT session_id FROM bindings WHERE window_id = ?1",
        (window,),
    )
    return [session_id for (session_id,) in rows]


def forget_unused_sessions(db: sqlite3.Connection, session_ids: Sequence[str]) -> None:
    """Remove those sessions that have neither windows nor thaws and are not among the newest `SESSIONS`.

    Call it for a session that may have lost its last window or thaw, or that is no longer among the newest. So no other
    row has to be looked at.
    """
    if session_ids:
        db.execute(_FORGET, (json.dumps(session_ids), SESSIONS))


def session_page(db: sqlite3.Connection, query: SessionQuery) -> SessionPage:
    """Return a page of the sessions. Raises `Code.CORRUPT` if one on it is damaged."""
    given = {"event": query.event, "model": query.model}
    where = " AND ".join(f"s.{field} = :{field}" for field, value in given.items() if value is not None) or "1"
    values = {**given, "without": json.dumps(list(query.without)), "limit": query.limit, "offset": query.offset}
    (total,) = db.execute(
        f"SELECT (SELECT count(*) FROM sessions s WHERE {where}) - "
        f"(SELECT count(*) FROM json_each(:without) CROSS JOIN sessions s ON s.session_id = value WHERE {where})",
        values,
    ).fetchone()
    rows = db.execute(
        f"{_SESSION} s WHERE {where} AND session_id NOT IN (SELECT value FROM json_each(:without)) "
        f"{_NEWEST_EVENT_FIRST} LIMIT :limit OFFSET :offset",
        values,
    )
    return SessionPage(_with_windows(db, rows.fetchall()), total)


def sessions_of(db: sqlite3.Connection, session_ids: Sequence[str]) -> dict[str, SessionRow]:
    """Return those of these sessions that are known. Raises `Code.CORRUPT` if one is damaged."""
    asked = json.dumps(list(session_ids))
    rows = db.execute(f"{_SESSION} WHERE session_id IN (SELECT value FROM json_each(?))", (asked,))
    return {row.session_id: row for row in _with_windows(db, rows.fetchall())}


def _with_windows(db: sqlite3.Connection, rows: Sequence[tuple[Any, ...]]) -> tuple[SessionRow, ...]:
    asked = json.dumps([fields[0] for fields in rows])
    names = defaultdict(list)
    for session_id, name in db.execute(
        f"{_FROZEN} AND session_id IN (SELECT value FROM json_each(?)) {_NEWEST_FIRST}", (asked,)
    ):
        names[session_id].append(name)
    return tuple(_session_row(_checked_session(fields), names) for fields in rows)


def _binding(fields: Sequence[Any]) -> Binding:
    name, *sealed, digest = fields
    if name is None or seal("binding", *sealed) != digest:
        raise damaged("a thaw") if name is None else damaged_window(name)
    _, _, session_id, salt_hash, created_at = sealed
    return Binding(window_name=name, session_id=session_id, salt_hash=salt_hash, created_at=created_at)


def _session_fields(db: sqlite3.Connection, session_id: str) -> tuple[Any, ...] | None:
    fields = db.execute(f"{_SESSION} WHERE session_id = ?", (session_id,)).fetchone()
    return None if fields is None else _checked_session(fields)


def _checked_session(fields: tuple[Any, ...]) -> tuple[Any, ...]:
    if seal("session", *fields[:-1]) != fields[-1]:
        raise damaged("a session")
    return fields[:-1]


def _session_row(fields: tuple[Any, ...], windows: Mapping[str, Sequence[str]]) -> SessionRow:
    session_id, model, tokens, event, created_at, updated_at = fields
    return SessionRow(
        session_id=session_id,
        model=model,
        token_count=tokens,
        event=SessionEvent(event),
        created_at=created_at,
        updated_at=updated_at,
        windows=tuple(windows.get(session_id, ())),
    )
