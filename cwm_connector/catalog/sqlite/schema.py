"""The tables of the embedded catalog, as the migration steps that lead from an empty file to today's schema.

The `user_version` of a file is the number of steps that were applied to it. A released step is never edited, unless a
later one removes all that it made.

The tables have these invariants beyond their foreign keys. `check.py` verifies all of them.

- `snapshots.windows` counts the windows over the snapshot, also those in the trash. A clone therefore costs one row,
  however long the context.
- `chunks.refs` counts the snapshots that hold the chunk, and `chunks.owners` is the sum of their ids. If one reference
  is left, the sum *is* the id of the owner, which is then found without an index over millions of rows.
- `snapshots.own_bytes` is the size of the chunks that no other snapshot holds. Every commit and deletion updates it, so
  a listing does not have to read chunks.
- `totals` is one row that triggers update. Every freeze reads it to check the size limit of the disk tier.
- Every chunk that a snapshot holds has its token ids in `chunk_tokens`. `snapshot_tokens` has those after the last one.
- `digest` is the checksum over the fields of a row (`rows.py`). That of a window covers its tags. That of a snapshot
  covers the checksums of its token ids and of the keys of its chunks in their order.
- Every value that decides which rows a query finds is stored in a table and in an index. A comparison of the two shows
  what is missing. The index over the texts of windows has no other purpose.
"""

import sqlite3
from collections.abc import Callable
from typing import Final

from cwm_connector.catalog.sqlite.sealing import seal_everything, seal_origins, seal_private
from cwm_connector.catalog.sqlite.tokens import split_by_chunk
from cwm_connector.catalog.words import searched_text

APPLICATION_ID: Final = 0x43574D63
"""'CWMc' in the header of the file, which distinguishes our files from those of other programs."""

_FIRST: Final = (
    f"PRAGMA application_id = {APPLICATION_ID}",
    """
    CREATE TABLE snapshots (
        id INTEGER PRIMARY KEY,
        restorable_tokens INTEGER NOT NULL,
        block_count INTEGER NOT NULL,
        own_bytes INTEGER NOT NULL DEFAULT 0,
        windows INTEGER NOT NULL DEFAULT 0,
        passport TEXT NOT NULL
    )
    """,
    # Not part of `snapshots`, whose counters change. SQLite rewrites whole rows, and this one can have a megabyte.
    """
    CREATE TABLE snapshot_tokens (
        snapshot_id INTEGER PRIMARY KEY REFERENCES snapshots ON DELETE CASCADE,
        token_ids BLOB NOT NULL
    )
    """,
    """
    CREATE TABLE chunks (
        id INTEGER PRIMARY KEY,
        key BLOB NOT NULL UNIQUE,
        tokens INTEGER NOT NULL,
        size_bytes INTEGER NOT NULL,
        refs INTEGER NOT NULL DEFAULT 0,
        owners INTEGER NOT NULL DEFAULT 0
    )
    """,
    "CREATE INDEX chunks_unreferenced ON chunks (id) WHERE refs = 0",
    "CREATE TABLE chunk_totals (chunks INTEGER NOT NULL, size_bytes INTEGER NOT NULL)",
    "INSERT INTO chunk_totals VALUES (0, 0)",
    """
    CREATE TRIGGER chunk_added AFTER INSERT ON chunks BEGIN
        UPDATE chunk_totals SET chunks = chunks + 1, size_bytes = size_bytes + new.size_bytes;
    END
    """,
    """
    CREATE TRIGGER chunk_gone AFTER DELETE ON chunks BEGIN
        UPDATE chunk_totals SET chunks = chunks - 1, size_bytes = size_bytes - old.size_bytes;
    END
    """,
    # There is no foreign key to chunks. With one, deleting a chunk would need an index over chunk_id or a table scan.
    """
    CREATE TABLE snapshot_chunks (
        snapshot_id INTEGER NOT NULL REFERENCES snapshots ON DELETE CASCADE,
        position INTEGER NOT NULL,
        chunk_id INTEGER NOT NULL,
        PRIMARY KEY (snapshot_id, position)
    ) WITHOUT ROWID
    """,
    # All columns that a listing filters or sorts by are here, for clones too. SQLite may run a join in quadratic time.
    """
    CREATE TABLE windows (
        id INTEGER PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        snapshot_id INTEGER NOT NULL REFERENCES snapshots,
        description TEXT NOT NULL,
        session_id TEXT NOT NULL,
        head TEXT NOT NULL,
        parent TEXT,
        cloned INTEGER NOT NULL,
        model TEXT NOT NULL,
        token_count INTEGER NOT NULL,
        size_bytes INTEGER NOT NULL,
        created_at INTEGER NOT NULL,
        updated_at INTEGER NOT NULL,
        thawed_at INTEGER
    )
    """,
    "CREATE INDEX windows_by_snapshot ON windows (snapshot_id)",
    "CREATE INDEX windows_by_session ON windows (session_id, created_at)",
    "CREATE INDEX windows_by_parent ON windows (parent, created_at)",
    "CREATE INDEX windows_by_created_at ON windows (created_at)",
    "CREATE INDEX windows_by_model ON windows (model)",
    "CREATE INDEX windows_by_token_count ON windows (token_count)",
    "CREATE INDEX windows_by_size ON windows (size_bytes)",
    """
    CREATE TABLE window_tags (
        window_id INTEGER NOT NULL REFERENCES windows ON DELETE CASCADE,
        position INTEGER NOT NULL,
        tag TEXT NOT NULL,
        PRIMARY KEY (window_id, position)
    ) WITHOUT ROWID
    """,
    "CREATE UNIQUE INDEX window_tags_by_tag ON window_tags (tag, window_id)",
    # The rowid is the id of the window. Short prefixes are indexed because a search matches the beginnings of words.
    "CREATE VIRTUAL TABLE window_words USING fts5 (name, description, tags, tokenize = 'unicode61', prefix = '1 2 3')",
    """
    CREATE TABLE bindings (
        id INTEGER PRIMARY KEY,
        window_id INTEGER NOT NULL REFERENCES windows ON DELETE CASCADE,
        session_id TEXT NOT NULL,
        salt_hash BLOB NOT NULL,
        created_at INTEGER NOT NULL,
        UNIQUE (window_id, session_id, salt_hash)
    )
    """,
    """
    CREATE TABLE sessions (
        session_id TEXT PRIMARY KEY,
        model TEXT NOT NULL,
        token_count INTEGER NOT NULL,
        event TEXT NOT NULL,
        created_at INTEGER NOT NULL,
        updated_at INTEGER NOT NULL
    ) WITHOUT ROWID
    """,
)

_SECOND: Final = (
    # One bit for each durable tier, see `chunks.py`. Older chunks are on disk.
    "ALTER TABLE chunks ADD COLUMN tiers INTEGER NOT NULL DEFAULT 1",
    "ALTER TABLE chunks ADD COLUMN claim TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE chunks ADD COLUMN digest INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE snapshots ADD COLUMN tokens_digest INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE snapshots ADD COLUMN chunks_digest INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE snapshots ADD COLUMN digest INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE windows ADD COLUMN digest INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE bindings ADD COLUMN digest INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE sessions ADD COLUMN digest INTEGER NOT NULL DEFAULT 0",
    "CREATE INDEX snapshot_chunks_by_chunk ON snapshot_chunks (chunk_id)",
    # Covering indexes for `uses_after`, the windows of a session and the children of a window.
    "DROP INDEX windows_by_snapshot",
    "CREATE INDEX windows_by_snapshot ON windows (snapshot_id, created_at, thawed_at)",
    "DROP INDEX windows_by_session",
    "CREATE INDEX windows_by_session ON windows (session_id, created_at, cloned, name)",
    "DROP INDEX windows_by_parent",
    "CREATE INDEX windows_by_parent ON windows (parent, created_at, name)",
    "CREATE INDEX sessions_by_update ON sessions (updated_at)",
    "CREATE INDEX bindings_by_time ON bindings (created_at)",
    "CREATE INDEX bindings_by_session ON bindings (session_id, created_at)",
    """
    CREATE TABLE notes (
        id INTEGER PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        note TEXT NOT NULL,
        digest INTEGER NOT NULL
    )
    """,
    "DROP TRIGGER chunk_added",
    "DROP TRIGGER chunk_gone",
    "DROP TABLE chunk_totals",
    """
    CREATE TABLE totals (
        windows INTEGER NOT NULL,
        referenced_bytes INTEGER NOT NULL,
        chunks INTEGER NOT NULL,
        size_bytes INTEGER NOT NULL,
        disk_chunks INTEGER NOT NULL,
        disk_bytes INTEGER NOT NULL,
        redis_chunks INTEGER NOT NULL,
        redis_bytes INTEGER NOT NULL,
        digest INTEGER NOT NULL
    )
    """,
    """
    INSERT INTO totals
    SELECT (SELECT count(*) FROM windows), (SELECT ifnull(sum(size_bytes), 0) FROM windows),
        count(*), ifnull(sum(size_bytes), 0), count(*), ifnull(sum(size_bytes), 0), 0, 0, 0 FROM chunks
    """,
    """
    CREATE TRIGGER chunk_added AFTER INSERT ON chunks BEGIN
        UPDATE totals SET chunks = chunks + 1, size_bytes = size_bytes + new.size_bytes,
            disk_chunks = disk_chunks + (new.tiers & 1),
            disk_bytes = disk_bytes + (new.tiers & 1) * new.size_bytes,
            redis_chunks = redis_chunks + (new.tiers >> 1 & 1),
            redis_bytes = redis_bytes + (new.tiers >> 1 & 1) * new.size_bytes;
    END
    """,
    """
    CREATE TRIGGER chunk_gone AFTER DELETE ON chunks BEGIN
        UPDATE totals SET chunks = chunks - 1, size_bytes = size_bytes - old.size_bytes,
            disk_chunks = disk_chunks - (old.tiers & 1),
            disk_bytes = disk_bytes - (old.tiers & 1) * old.size_bytes,
            redis_chunks = redis_chunks - (old.tiers >> 1 & 1),
            redis_bytes = redis_bytes - (old.tiers >> 1 & 1) * old.size_bytes;
    END
    """,
    """
    CREATE TRIGGER chunk_placed AFTER UPDATE OF tiers ON chunks BEGIN
        UPDATE totals SET
            disk_chunks = disk_chunks + (new.tiers & 1) - (old.tiers & 1),
            disk_bytes = disk_bytes + ((new.tiers & 1) - (old.tiers & 1)) * new.size_bytes,
            redis_chunks = redis_chunks + (new.tiers >> 1 & 1) - (old.tiers >> 1 & 1),
            redis_bytes = redis_bytes + ((new.tiers >> 1 & 1) - (old.tiers >> 1 & 1)) * new.size_bytes;
    END
    """,
    """
    CREATE TRIGGER window_added AFTER INSERT ON windows BEGIN
        UPDATE totals SET windows = windows + 1, referenced_bytes = referenced_bytes + new.size_bytes;
    END
    """,
    """
    CREATE TRIGGER window_gone AFTER DELETE ON windows BEGIN
        UPDATE totals SET windows = windows - 1, referenced_bytes = referenced_bytes - old.size_bytes;
    END
    """,
    # One row: the id of the home that the catalog belongs to ("" if it has none yet), the checksum of all definitions.
    "CREATE TABLE about (store TEXT NOT NULL, definitions INTEGER NOT NULL)",
    "INSERT INTO about VALUES ('', 0)",
)


def _run(*statements: str) -> Callable[[sqlite3.Connection], None]:
    def step(db: sqlite3.Connection) -> None:
        for statement in statements:
            db.execute(statement)

    return step


def _second(db: sqlite3.Connection) -> None:
    _run(*_SECOND)(db)
    seal_everything(db)


def _third(db: sqlite3.Connection) -> None:
    # Whether a window was frozen under a cache salt. Older versions did not record it.
    db.execute("ALTER TABLE windows ADD COLUMN private INTEGER NOT NULL DEFAULT 0")
    seal_private(db)


def _fourth(db: sqlite3.Connection) -> None:
    # Token ids once for each chunk. `snapshot_tokens` keeps those after the last chunk.
    db.execute(
        """
        CREATE TABLE chunk_tokens (
            chunk_id INTEGER PRIMARY KEY REFERENCES chunks ON DELETE CASCADE,
            token_ids BLOB NOT NULL
        )
        """
    )
    split_by_chunk(db)


_PROOFS: Final = (
    # `snapshot_id` is not the key of the rows, so that the index tells when a row is missing.
    """
    CREATE TABLE proofs (
        id INTEGER PRIMARY KEY,
        snapshot_id INTEGER NOT NULL UNIQUE REFERENCES snapshots ON DELETE CASCADE,
        token_id INTEGER NOT NULL,
        logprob REAL NOT NULL,
        taken_at INTEGER NOT NULL,
        digest INTEGER NOT NULL
    )
    """,
)


_TRASH: Final = (
    # The columns of `windows`, the tags as JSON, and when and by which command the window was deleted.
    """
    CREATE TABLE trash (
        id INTEGER PRIMARY KEY,
        name TEXT NOT NULL,
        snapshot_id INTEGER NOT NULL REFERENCES snapshots,
        description TEXT NOT NULL,
        session_id TEXT NOT NULL,
        head TEXT NOT NULL,
        parent TEXT,
        cloned INTEGER NOT NULL,
        model TEXT NOT NULL,
        token_count INTEGER NOT NULL,
        size_bytes INTEGER NOT NULL,
        created_at INTEGER NOT NULL,
        updated_at INTEGER NOT NULL,
        thawed_at INTEGER,
        private INTEGER NOT NULL,
        tags TEXT NOT NULL,
        trashed_at INTEGER NOT NULL,
        command TEXT NOT NULL,
        digest INTEGER NOT NULL
    )
    """,
    "CREATE INDEX trash_by_snapshot ON trash (snapshot_id)",
    "CREATE INDEX trash_by_name ON trash (name, trashed_at)",
    "CREATE INDEX trash_by_parent ON trash (parent)",
    """
    CREATE TRIGGER trash_added AFTER INSERT ON trash BEGIN
        UPDATE totals SET referenced_bytes = referenced_bytes + new.size_bytes;
    END
    """,
    """
    CREATE TRIGGER trash_gone AFTER DELETE ON trash BEGIN
        UPDATE totals SET referenced_bytes = referenced_bytes - old.size_bytes;
    END
    """,
)


def _eighth(db: sqlite3.Connection) -> None:
    # Where imported content came from, as JSON. Older versions did not record it.
    db.execute("ALTER TABLE snapshots ADD COLUMN origin TEXT NOT NULL DEFAULT ''")
    seal_origins(db)


def _ninth(db: sqlite3.Connection) -> None:
    # What a search looks at. To scan it takes less time than to combine the index of words that was there before.
    db.execute("DROP TABLE window_words")
    db.execute(
        """
        CREATE TABLE window_texts (
            window_id INTEGER PRIMARY KEY REFERENCES windows ON DELETE CASCADE,
            text TEXT NOT NULL
        )
        """
    )
    for window, name, description in db.execute("SELECT id, name, description FROM windows").fetchall():
        rows = db.execute("SELECT tag FROM window_tags WHERE window_id = ? ORDER BY position", (window,))
        text = searched_text(name, description, [tag for (tag,) in rows])
        db.execute("INSERT INTO window_texts (window_id, text) VALUES (?, ?)", (window, text))
    db.execute("CREATE INDEX window_texts_by_text ON window_texts (text)")


_NOTHING: Final = _run()
"""The sixth step rebuilt the index of words, which the ninth replaces."""
MIGRATIONS: Final = (
    *(_run(*_FIRST), _second, _third, _fourth),
    *(_run(*_PROOFS), _NOTHING, _run(*_TRASH), _eighth, _ninth),
)
"""The steps, each a function that runs inside the caller's transaction."""
SCHEMA_VERSION: Final = len(MIGRATIONS)
