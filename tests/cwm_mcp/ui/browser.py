"""Drive a real headless Chromium over its debugging protocol."""

import base64
import itertools
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest
from websockets.sync.client import ClientConnection, connect

_NAMES: Final = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
_TIMEOUT_S: Final = 15.0
_KEYS: Final = {"Enter": (13, "\r"), "Escape": (27, ""), "Tab": (9, ""), "ArrowDown": (40, ""), "ArrowLeft": (37, "")}
SHOTS_VARIABLE: Final = "UI_SHOTS"
"""Names a folder for screenshots."""


def chromium() -> str:
    """Return the browser of this machine. Skip the test if there is none."""
    found = next(filter(None, map(shutil.which, _NAMES)), None)
    if found is None:
        pytest.skip(f"no Chromium found (looked for {', '.join(_NAMES)}); make setup installs one where it may")
    return found


@dataclass(slots=True)
class Page:
    """One tab. Records its errors and requests since its start."""

    _socket: ClientConnection
    _session: str = ""
    _ids: "itertools.count[int]" = field(default_factory=lambda: itertools.count(1))
    faults: list[str] = field(default_factory=list)
    """Errors on the console, uncaught errors, and violations of the page's security policy."""
    requests: list[str] = field(default_factory=list)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and return its answer. Record the events that come before it."""
        number = next(self._ids)
        message = {"id": number, "method": method, "params": params}
        self._socket.send(json.dumps({**message, "sessionId": self._session} if self._session else message))
        while True:
            answer = json.loads(self._socket.recv(timeout=_TIMEOUT_S))
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]
            self._note(answer.get("method", ""), answer.get("params", {}))

    def _note(self, event: str, params: dict[str, Any]) -> None:
        if event == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.faults.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        elif event == "Runtime.exceptionThrown":
            self.faults.append(str(params["exceptionDetails"]))
        elif event == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert"):
            self.faults.append(str(params["args"]))
        elif event == "Audits.issueAdded" and "contentSecurityPolicyIssueDetails" in params["issue"]["details"]:
            self.faults.append(str(params["issue"]))
        elif event == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])

    def open(self, url: str) -> None:
        """Open an address and wait until the page is loaded."""
        self.call("Page.navigate", url=url)
        self.until("document.readyState === 'complete'")

    def value(self, expression: str) -> Any:
        """Evaluate the expression in the page and return its value."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def text(self, selector: str) -> str:
        """Return the text of the first element that matches."""
        return self.value(f"document.querySelector({json.dumps(selector)}).innerText")

    def texts(self, selector: str) -> list[str]:
        """Return the texts of all elements that match."""
        return self.value(f"[...document.querySelectorAll({json.dumps(selector)})].map((each) => each.innerText)")

    def until(self, expression: str) -> None:
        """Wait until the expression is true in the page."""
        limit = time.monotonic() + _TIMEOUT_S
        while not self.value(f"Boolean({expression})"):
            assert time.monotonic() < limit, f"never came true: {expression}; faults: {self.faults}"
            time.sleep(0.05)

    def click(self, selector: str) -> None:
        """Click in the middle of the element with the mouse."""
        x, y = self.value(
            f"(() => {{ const seen = document.querySelector({json.dumps(selector)});"
            " seen.scrollIntoView({ block: 'center' });"
            " const box = seen.getBoundingClientRect();"
            " return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key: str) -> None:
        """Press and release a key."""
        code, text = _KEYS[key]
        for kind in ("keyDown", "keyUp"):
            typed = {"text": text} if text and kind == "keyDown" else {}
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **typed)

    def type(self, text: str) -> None:
        """Type a text into the focused element."""
        self.call("Input.insertText", text=text)

    def look(self, *, width: int = 1280, height: int = 800, dark: bool = False) -> None:
        """Set the size of the viewport and the colour scheme."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def shot(self, name: str) -> None:
        """Save a screenshot if the variable names a folder for them."""
        folder = os.environ.get(SHOTS_VARIABLE)
        if folder:
            Path(folder, f"{name}.png").write_bytes(self.picture())

    def picture(self) -> bytes:
        """Return what the browser shows as a PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])


@contextmanager
def new_page(profile: Path) -> Iterator[Page]:
    """Start a browser with a new profile and one tab. End it with the context."""
    command = [
        *(chromium(), "--headless", "--remote-debugging-port=0", f"--user-data-dir={profile}", "--no-first-run"),
        *("--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking", "--disable-component-update"),
        # The sandbox does not work as root, nor in most containers; the only page that is opened is ours.
        *("--no-sandbox", "--hide-scrollbars", "about:blank"),
    ]
    # A session of its own, because Debian's command is a shell script and the browser has further processes.
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, stdout=quiet, stderr=quiet, start_new_session=True)
    try:
        with connect(_endpoint(profile, process), max_size=None, open_timeout=_TIMEOUT_S) as socket:
            page = Page(socket)
            target = page.call("Target.createTarget", url="about:blank")["targetId"]
            page._session = page.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network", "Audits"):
                page.call(f"{domain}.enable")
            yield page
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=_TIMEOUT_S)


def _endpoint(profile: Path, process: "subprocess.Popen[bytes]") -> str:
    """Return where the browser listens, which it writes into its profile."""
    file = profile / "DevToolsActivePort"
    limit = time.monotonic() + 2 * _TIMEOUT_S
    while not (file.exists() and len(lines := file.read_text().splitlines()) == 2):
        assert process.poll() is None, f"the browser ended with {process.returncode}"
        assert time.monotonic() < limit, "the browser does not come up"
        time.sleep(0.05)
    return f"ws://127.0.0.1:{lines[0]}{lines[1]}"
