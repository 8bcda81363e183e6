"""The text of windows, their differences and the commands to copy, in a real browser and without an engine."""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from cwm_connector.catalog.sqlite.catalog import SqliteCatalog
from cwm_connector.settings import Settings
from tests.cwm_mcp import homes
from tests.cwm_mcp.ui.browser import Page, new_page
from tests.cwm_mcp.ui.conftest import READ, Shown, vllm
from tests.cwm_mcp.ui.serving import MARKUP, Served, serving

SHOWN = "document.querySelector('#text pre')"


def talks(settings: Settings) -> None:
    """Write a window of 1,034 tokens that begins with markup, and one that goes on otherwise after 600 of them."""
    catalog = SqliteCatalog.open(settings.catalog_path)
    stem = [0, *range(1, 1034)]
    for name, ids, day in (("stem", stem, 0), ("other-way", [*stem[:600], *range(5000, 5100)], 1)):
        chunks = len(ids) // homes.CHUNK_TOKENS
        window = homes.new_window(name, "talk", chunks, parent="stem" if day else None, day=day)
        catalog.commit_window(replace(window, token_ids=array("i", ids).tobytes()))
    catalog.close()


@pytest.fixture
def page(home: Path, settings: Settings, tmp_path: Path) -> Iterator[Page]:
    """Open the page where vLLM answers and no engine of ours does."""
    talks(settings)
    with vllm() as url, serving(tmp_path, "--no-browser", CWM_VLLM_URL=url) as served, new_page(tmp_path / "p") as page:
        page.look()
        page.open(served.url)
        page.until(READ)
        yield page
        page.value("0")
        assert page.faults == []


def opened(page: Page, name: str) -> None:
    """Open a window's details and wait for its text."""
    page.click(f"tr[data-name='{name}'] .label")
    page.until(SHOWN)


def words(numbers: Sequence[int]) -> str:
    """Return the text of token ids."""
    return " ".join(f"t{number}" for number in numbers)


# --- the conversation ---


def test_a_windows_text_is_read_page_by_page(page: Page) -> None:
    opened(page, "stem")
    assert page.text("#text pre") == f"{MARKUP} {words(range(1, 400))}"
    assert page.text("#text-range") == "tokens 0 to 400 of 1,034"
    page.click("#text-after")
    page.until("document.querySelector('#text-range').textContent === 'tokens 400 to 800 of 1,034'")
    assert page.text("#text pre") == words(range(400, 800))
    page.click("#text-end")
    page.until("document.querySelector('#text-range').textContent === 'tokens 634 to 1,034 of 1,034'")
    assert page.value("document.querySelector('#text-after').disabled")
    page.click("#text-before")
    page.until("document.querySelector('#text-range').textContent === 'tokens 234 to 634 of 1,034'")
    page.click("#text-start")
    page.until("document.querySelector('#text-before').disabled")


def test_markup_in_a_conversation_stays_text(page: Page) -> None:
    opened(page, "stem")
    assert MARKUP in page.text("#text")
    assert page.value("document.querySelectorAll('#text b, #text script').length") == 0
    assert page.value("document.title") == "Context Window Manager"


def test_without_vllm_the_token_ids_are_shown_and_why(home: Path, settings: Settings, tmp_path: Path) -> None:
    talks(settings)
    with serving(tmp_path, "--no-browser") as served, new_page(tmp_path / "p") as page:
        page.open(served.url)
        page.until(READ)
        opened(page, "other-way")
        assert page.text("#text pre").startswith("0 1 2 3 ")
        assert page.text("#text p").startswith("Token ids, because ")


@pytest.mark.parametrize("first", ["-1", "x", "", "1e3", "9" * 10, "٣"])
def test_a_page_that_is_no_number_is_refused(home: Path, settings: Settings, tmp_path: Path, first: str) -> None:
    talks(settings)
    with serving(tmp_path, "--no-browser") as served, httpx.Client(base_url=served.origin) as client:
        client.get(served.url)
        refused = client.get("/api/windows/stem/text", params={"from": first})
        assert (refused.status_code, refused.text.count("\n")) == (400, 1)
        assert client.get("/api/windows/no-such/text").status_code == 404
        assert client.get("/api/windows/stem/diff?with=no-such").status_code == 404
        assert client.get("/api/windows/stem/diff?with=../etc").status_code == 400
        assert client.get("/api/windows/stem/diff").status_code == 400


# --- two windows ---


def test_two_windows_are_compared_where_they_part(page: Page) -> None:
    opened(page, "stem")
    assert page.value("document.querySelector('#diff-other').value") == "other-way"
    page.click("#diff-form button")
    page.until("document.querySelector('#diff-result figure')")
    assert page.text("#diff-result p").startswith("The first 600 tokens are the same, and 2 chunks (8.0 KiB)")
    both, one, other = page.texts("#diff-result pre")
    assert both == words(range(540, 600))
    assert one == words(range(600, 660))
    assert other == words(range(5000, 5060))
    assert "stem goes on for 434 tokens" in page.text("#diff-result .one")


def test_a_comparison_with_no_window_says_so(page: Page) -> None:
    opened(page, "stem")
    page.value("document.querySelector('#diff-other').value = '<b>nobody</b>'")
    page.click("#diff-form button")
    page.until("document.querySelector('#diff-result .notice')")
    assert page.text("#diff-result").startswith("CWM-")
    assert page.value("document.querySelectorAll('#diff-result b').length") == 0
    page.faults.clear()  # the browser notes the answer's status


# --- what to type next ---


def allow_the_clipboard(served: Served, page: Page) -> None:
    """Let the page write to the clipboard, as browsers do for a page on loopback that has the focus."""
    page.call(
        "Browser.grantPermissions", origin=served.origin, permissions=["clipboardReadWrite", "clipboardSanitizedWrite"]
    )
    page.call("Page.bringToFront")


def test_a_command_is_copied_and_said(shown: Shown) -> None:
    page = shown.page
    allow_the_clipboard(shown.served, page)
    page.click("tr[data-name='stem'] .label")
    page.until("document.querySelector('#details [data-copy]')")
    commands = ["cwm thaw stem", "cwm clone stem stem-2", "cwm cat stem", "cwm export stem"]
    assert page.texts("#details .command code") == commands
    page.click("#details [data-copy='cwm thaw stem']")
    page.until("document.querySelector('#details .said-aloud').textContent === 'Copied: cwm thaw stem'")
    assert page.value("navigator.clipboard.readText()") == "cwm thaw stem"


def test_the_heads_of_a_session_are_offered_as_the_shell_takes_them(shown: Shown) -> None:
    page = shown.page
    heads = "[data-heads='session-1']"
    assert page.text(f"{heads} summary") == "2 heads A freeze takes main; it spoke last."
    page.click(f"{heads} summary")
    page.until(f'document.querySelector("{heads}").open')
    assert page.texts(f"{heads} code") == ["cwm freeze session-1/main", "cwm freeze 'session-1/sub agent'\\''s'"]
    assert page.texts("tr[data-id='session-2'] code") == ["cwm freeze session-2"]


def test_unfolded_heads_stay_so_when_the_page_is_refreshed(shown: Shown) -> None:
    page = shown.page
    page.click("[data-heads='session-1'] summary")
    page.until("document.querySelector('[data-heads]').open")
    page.value("document.querySelector('[data-heads]').marked = true")
    listed = shown.engine.answers
    sessions = next(answer for answer in listed.values() if isinstance(answer, dict) and "sessions" in answer)
    sessions["sessions"][0]["token_count"] = 4321
    page.until("document.querySelector('tr[data-id=session-1]').innerText.includes('4,321')")
    assert not page.value("document.querySelector('[data-heads]').marked")
    assert page.value("document.querySelector('[data-heads]').open")
