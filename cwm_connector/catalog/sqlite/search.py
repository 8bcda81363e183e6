"""The words that a reader of the embedded catalog searches.

An index of words is compared with its words by a statement that only a writer may run. So a reader makes its own, in
memory, from rows that it has checked: milliseconds for hundreds of windows, 0.3 s for 10,000.
"""

import sqlite3

from cwm_connector.catalog.sqlite.windows import read_window, write_words
from cwm_connector.core.errors import CWMError

_TABLE = "CREATE VIRTUAL TABLE temp.window_words USING fts5 (name, description, tags, tokenize = 'unicode61')"


def gather_words(db: sqlite3.Connection) -> None:
    """Statements of this connection that name `window_words` find these from now on."""
    db.execute("DROP TABLE IF EXISTS temp.window_words")
    db.execute(_TABLE)
    for (window,) in db.execute("SELECT id FROM windows").fetchall():
        try:
            write_words(db, read_window(db, window))
        except CWMError:
            # Its own record is damaged: the copy of its words decides whether it is listed, by its name.
            db.execute(
                "INSERT INTO temp.window_words (rowid, name, description, tags) "
                "SELECT rowid, name, description, tags FROM main.window_words WHERE rowid = ?",
                (window,),
            )
