"""Opens the page in the person's browser without telling the machine's other users its token.

What stands on a browser's command line everybody can read in the list of processes. So the browser is given a private
file that leads on to the page.
"""

import contextlib
import html
import tempfile
import threading
import webbrowser
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def in_browser(url: str) -> Iterator[None]:
    """Opens `url` on a thread, because a browser in the terminal comes back when it is left. The file lives meanwhile.

    Where there is no browser nothing happens: the address has been printed too.
    """
    with tempfile.TemporaryDirectory(prefix="cwm-ui-") as folder:
        # The folder has mode 0700.
        file = Path(folder) / "open.html"
        file.write_text(page_to(url))
        threading.Thread(target=webbrowser.open, args=(file.as_uri(),), name="cwm-ui-browser", daemon=True).start()
        yield


def page_to(url: str) -> str:
    """A page that goes on to `url` at once."""
    return f'<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0; url={html.escape(url)}">\n'
