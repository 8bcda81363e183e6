"""Whether an embedded catalog keeps its promises: the file's structure, and all that is counted or kept twice."""

import sqlite3

_COUNTED: dict[str, str] = {
    "a window lists a chunk that is not stored": """
        SELECT count(*) FROM snapshot_chunks h LEFT JOIN chunks c ON c.id = h.chunk_id WHERE c.id IS NULL
    """,
    "a chunk's references are miscounted": """
        SELECT count(*) FROM chunks c LEFT JOIN (
            SELECT chunk_id, count(*) AS refs, sum(snapshot_id) AS owners FROM snapshot_chunks GROUP BY chunk_id
        ) h ON h.chunk_id = c.id
        WHERE c.refs != ifnull(h.refs, 0) OR c.owners != ifnull(h.owners, 0)
    """,
    "the chunks' totals are miscounted": """
        SELECT count(*) FROM chunk_totals
        WHERE chunks != (SELECT count(*) FROM chunks)
            OR size_bytes != (SELECT ifnull(sum(size_bytes), 0) FROM chunks)
    """,
    "a snapshot's windows are miscounted, or it has none": """
        SELECT count(*) FROM snapshots s
        WHERE s.windows = 0 OR s.windows != (SELECT count(*) FROM windows w WHERE w.snapshot_id = s.id)
    """,
    "a snapshot's chunks or sizes are miscounted": """
        SELECT count(*) FROM snapshots s LEFT JOIN (
            SELECT h.snapshot_id AS id, count(*) AS blocks, max(h.position) + 1 AS positions, sum(c.size_bytes) AS size,
                sum(iif(c.refs = 1, c.size_bytes, 0)) AS own
            FROM snapshot_chunks h JOIN chunks c ON c.id = h.chunk_id GROUP BY h.snapshot_id
        ) found ON found.id = s.id JOIN windows w ON w.snapshot_id = s.id
        WHERE s.block_count != ifnull(found.blocks, 0) OR s.block_count != ifnull(found.positions, 0)
            OR w.size_bytes != ifnull(found.size, 0) OR s.own_bytes != ifnull(found.own, 0)
    """,
    "a window's token ids are missing or cut short": """
        SELECT count(*) FROM windows w LEFT JOIN snapshot_tokens t ON t.snapshot_id = w.snapshot_id
        WHERE length(t.token_ids) IS NOT 4 * w.token_count
    """,
    "a window can't be found by its words": """
        SELECT count(*) FROM windows w LEFT JOIN window_words f ON f.rowid = w.id
        WHERE f.name IS NOT w.name OR f.description IS NOT w.description OR f.tags IS NOT ifnull((
            SELECT group_concat(tag, ' ')
            FROM (SELECT tag FROM window_tags t WHERE t.window_id = w.id ORDER BY t.position)
        ), '')
    """,
    "the words of a deleted window are kept": """
        SELECT count(*) FROM window_words WHERE rowid NOT IN (SELECT id FROM windows)
    """,
}


def first_inconsistency(db: sqlite3.Connection) -> str | None:
    """What is wrong first, in words; None if nothing is. Reads the whole file: seconds where it is large."""
    (verdict,) = db.execute("PRAGMA integrity_check(1)").fetchone()
    if verdict != "ok":
        return str(verdict)
    dangling = db.execute("PRAGMA foreign_key_check").fetchone()
    if dangling is not None:
        return f"a row of {dangling[0]} refers to a missing row of {dangling[2]}"
    for fault, sql in _COUNTED.items():
        (found,) = db.execute(sql).fetchone()
        if found:
            return f"{fault} ({found} times)"
    return None
