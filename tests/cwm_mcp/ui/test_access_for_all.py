"""The page by keyboard alone, on a telephone, in the reader's own time, and before the rules of axe-core."""

import json
from pathlib import Path
from typing import Final

import pytest

from tests.cwm_mcp.ui.browser import Page
from tests.cwm_mcp.ui.conftest import Shown
from tests.support.clients.npm import installed

_AXE: Final = {"axe-core": "4.14.1"}
TELEPHONE: Final = 390
_DETAILS: Final = "document.querySelector('#details dl')"


@pytest.fixture(scope="module")
def axe() -> str:
    """Return axe-core's source. Skip the test with the reason if npm cannot install it."""
    return (installed("axe-core", _AXE) / "axe-core" / "axe.min.js").read_text()


def violations(page: Page, axe: str) -> list[str]:
    """Return what axe-core finds wrong in the page as it stands, with the elements."""
    page.value(f"{axe}; 0")
    found = page.value(
        "axe.run(document, { resultTypes: ['violations'] }).then((run) => JSON.stringify(run.violations))"
    )
    return [f"{each['id']}: {[node['html'][:160] for node in each['nodes']]}" for each in json.loads(found)]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, TELEPHONE])
def test_axe_core_finds_no_violation(shown: Shown, axe: str, width: int, dark: bool) -> None:
    page = shown.page
    page.look(width=width, dark=dark)
    page.click("[data-heads] summary")
    assert violations(page, axe) == []
    page.click("tr[data-name='stem'] .label")
    page.until(f"{_DETAILS} && document.querySelector('#text pre')")
    page.click("#diff-form button")
    page.until("document.querySelector('#diff-result').textContent")
    assert violations(page, axe) == []
    shown.page.shot(f"axe-{width}-{dark}")


def tab_stops(page: Page, most: int = 60) -> list[str]:
    """Press Tab until the focus comes round or leaves the page, and return what it stood on."""
    stops: list[str] = []
    described = (
        "(() => { const one = document.activeElement;"
        " return one.id || one.dataset.copy || one.dataset.name || one.tagName + one.textContent; })()"
    )
    for _ in range(most):
        page.press("Tab")
        stop = page.value(described)
        if stop.startswith("BODY") or stop in stops:
            break
        stops.append(stop)
    return stops


def test_everything_is_reached_with_the_tab_key(shown: Shown) -> None:
    page = shown.page
    page.click("[data-heads] summary")
    page.value("document.querySelector('#search').focus()")
    stops = tab_stops(page)
    assert {"stem", "cwm freeze session-1/main", "cwm freeze session-2"} <= set(stops)
    page.value("document.querySelector('tr[data-name=stem]').focus()")
    page.press("Enter")
    page.until(_DETAILS)
    inside = tab_stops(page)
    assert {"cwm thaw stem", "text", "diff-other"} <= set(inside)


def test_what_has_the_focus_can_be_seen(shown: Shown) -> None:
    page = shown.page
    for selector in ("#search", "tr[data-name=stem]", "[data-copy]", "summary"):
        page.value(f"document.querySelector({json.dumps(selector)}).focus()")
        page.press("Tab")  # so that the browser takes the keyboard for what is used
        assert page.value("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_on_a_telephone_a_name_has_the_row_and_the_page_scrolls(shown: Shown) -> None:
    page = shown.page
    page.look(width=TELEPHONE, height=844)
    assert page.value("document.documentElement.scrollWidth") <= TELEPHONE
    for row in ("tr[data-name=branch]", "tr[data-id=session-2]"):
        width = page.value(f"document.querySelector('{row} td').getBoundingClientRect().width")
        assert width > TELEPHONE * 0.8, row
    boxes = "[...document.querySelectorAll('.scroll')].every((box) => box.scrollHeight === box.clientHeight)"
    assert page.value(boxes)
    tokens = "getComputedStyle(document.querySelector('tr[data-name=branch] td.number'), '::before').content"
    assert "tokens" in page.value(tokens)


def test_on_a_telephone_the_details_fit(shown: Shown) -> None:
    page = shown.page
    page.look(width=TELEPHONE, height=844)
    page.click("tr[data-name=stem] .label")
    page.until(_DETAILS)
    wide = "[...document.querySelectorAll('#details *')].filter((each) => each.getBoundingClientRect().right > 390)"
    assert page.value(f"{wide}.map((each) => each.outerHTML.slice(0, 80))") == []
    page.shot("telephone-details")


@pytest.mark.parametrize(
    ("zone", "shown_time"), [("Asia/Tokyo", "1 Jan 2026, 09:00:00 GMT+9"), ("Etc/UTC", "1 Jan 2026, 00:00:00 UTC")]
)
def test_times_are_the_readers_own_and_name_their_zone(shown: Shown, zone: str, shown_time: str) -> None:
    page = shown.page
    page.call("Emulation.setTimezoneOverride", timezoneId=zone)
    page.click("tr[data-name='stem'] .label")
    page.until(_DETAILS)
    assert page.text("#details time").startswith(shown_time)


def test_the_files_that_the_page_needs_are_all_its_own(tmp_path: Path, shown: Shown) -> None:
    policy = shown.page.value("fetch('/').then((answer) => answer.headers.get('content-security-policy'))")
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
