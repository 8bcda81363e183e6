"""Open the page in the user's browser without showing the token to other users of the machine.

Everyone can read a browser's command line in the list of processes. So the browser opens a private file that redirects
to the page.
"""

import contextlib
import html
import tempfile
import threading
import webbrowser
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def open_in_browser(url: str) -> Iterator[None]:
    """Open `url` in the browser, and keep the private file until the context ends.

    Use a thread, because a browser in the terminal returns only when the user quits it. Without a browser nothing
    happens, because the address is also printed.
    """
    with tempfile.TemporaryDirectory(prefix="cwm-ui-") as folder:
        # The folder has mode 0700.
        file = Path(folder) / "open.html"
        file.write_text(redirect_page(url))
        threading.Thread(target=webbrowser.open, args=(file.as_uri(),), name="cwm-ui-browser", daemon=True).start()
        yield


def redirect_page(url: str) -> str:
    """Return an HTML page that redirects to `url` at once."""
    return f'<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0; url={html.escape(url)}">\n'
