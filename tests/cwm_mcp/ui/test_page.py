"""The page in a real browser: what it shows, what a person can do with it, and that text stays text."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
from msgspec import structs

from cwm_connector.catalog.sqlite.catalog import SqliteCatalog
from cwm_connector.core.types import Micros
from cwm_connector.protocol.calls import Op
from cwm_connector.protocol.results import ImportOrigin
from cwm_connector.settings import Settings
from cwm_mcp.ui.open_browser import redirect_page
from tests.cwm_mcp import homes
from tests.cwm_mcp.ui.browser import new_page
from tests.cwm_mcp.ui.conftest import READ, Shown
from tests.cwm_mcp.ui.serving import MARKUP, serving

NAMES: Final = "#window-rows .label"


# --- what stands there ---


def test_the_address_bar_keeps_no_token(shown: Shown) -> None:
    assert shown.page.value("location.href") == f"{shown.served.origin}/"
    assert shown.page.value("document.cookie") == ""


def test_the_page_shows_the_tree_with_what_is_shared_and_what_is_its_own(shown: Shown) -> None:
    page = shown.page
    assert page.texts(NAMES) == ["stem", "stem-for-alice", "branch"]  # the newest branch first
    levels = "[...document.querySelectorAll('#window-rows tr')].map((row) => row.getAttribute('aria-level'))"
    assert page.value(levels) == ["1", "2", "2"]
    row = "tr[data-name='branch']"
    assert page.texts(f"{row} .number")[:2] == ["1,290", "20.0 KiB"]
    assert page.text(f"{row} .parts") == "8.0 KiB / 12.0 KiB"
    assert page.value(f'document.querySelector("{row} .own").style.width') == "40%"
    assert page.texts(f"{row} .tag") == ["project-x", "debug"]
    assert page.text(f"{row} .minor") == "cpu"
    assert page.texts("#windows-count") == ["3 windows"]
    shown.page.shot("light")


def test_the_page_shows_the_sessions(shown: Shown) -> None:
    row = shown.page.texts("tr[data-id='session-2'] td")
    assert row[0].split("\n")[:2] == ["Plain talk", "session-2"]
    assert row[1:5] == ["thawed", "1,002", "640", "2"]
    assert shown.page.texts("#sessions-count") == ["2 sessions, 1 active"]


def test_the_page_shows_how_full_the_tiers_are(shown: Shown) -> None:
    page = shown.page
    text = {name: page.text(f"[data-tier={name}]").split("\n") for name in ("cpu", "disk", "redis")}
    assert text["cpu"] == ["cpu", "1.0 GiB of 4.0 GiB", "2 chunks", "25.0 %"]
    assert text["disk"] == ["disk", "45.0 GiB of 50.0 GiB", "5 chunks", "90.0 %"]
    assert text["redis"] == ["redis", "not configured"]
    filled = "[...document.querySelectorAll('#tiers .fill')].map((each) => each.style.width)"
    assert page.value(filled) == ["25%", "90%", "0%"]
    now = "document.querySelector('[data-tier=disk] [role=meter]').getAttribute('aria-valuenow')"
    assert page.value(now) == "90"
    # As wide as it says, once the style sheet was let in.
    share = (
        "[...document.querySelectorAll('#tiers .fill')].map((each) => each.offsetWidth / each.parentNode.offsetWidth)"
    )
    assert page.value(share) == pytest.approx([0.25, 0.9, 0], abs=0.01)


def test_the_page_shows_rates_what_was_saved_and_health(shown: Shown) -> None:
    page = shown.page
    assert [text.split("\n")[1] for text in page.texts("#rates li")] == ["62.5 %", "–", "75.0 %"]
    saved = dict(zip(page.texts("#saved dt"), page.texts("#saved dd"), strict=True))
    assert saved["tokens restored"] == "7,680"
    assert saved["vLLM computes"] == "1,200 tokens/s"
    assert saved["time saved"] == "≈ 4.9 s"
    assert page.text("[data-component=engine]").split("\n") == ["engine", "healthy, 0.5 ms", "stepping"]
    assert page.text("#engine") == "engine running"
    assert "talk (idle)" in page.text("#auto")


def test_what_is_under_way_is_shown_with_how_far_it_has_come(shown: Shown) -> None:
    freeze, verify = shown.page.texts("#transfers li")
    assert freeze.split("\n")[:2] == ["freeze evening", "3 of 12 chunks"]
    assert verify.split("\n")[:2] == ["verify", "waiting"]
    filled = "document.querySelector('#transfers .fill').style.width"
    assert shown.page.value(filled) == "25%"


def test_markup_in_names_stays_text(shown: Shown) -> None:
    page = shown.page
    assert page.text("tr[data-id='session-1'] .label") == MARKUP
    page.click("tr[data-name='branch'] .label")
    page.until("document.querySelector('#details .description')")
    assert page.text("#details .description") == MARKUP
    assert page.value("document.querySelectorAll('main b, main script, #details b, #details script').length") == 0
    assert page.value("document.title") == "Context Window Manager"


# --- what a person does ---


def test_a_new_window_appears_by_itself(shown: Shown) -> None:
    shown.page.value("window.unharmed = true")
    catalog = SqliteCatalog.open(shown.settings.catalog_path)
    catalog.clone_window("branch", "just-now", None, None, Micros(homes.NEW_YEAR + 5 * 86_400_000_000))
    catalog.close()
    shown.relist_windows()
    shown.page.until("document.querySelector('tr[data-name=just-now]')")
    level = "document.querySelector('tr[data-name=just-now]').getAttribute('aria-level')"
    assert shown.page.value(level) == "3"
    assert shown.page.value("window.unharmed")


def test_the_filter_leaves_what_matches_and_what_leads_to_it(shown: Shown) -> None:
    page = shown.page
    page.click("#search")
    page.type("DEBUG")
    page.until("document.querySelector('#windows-count').textContent === '1 of 3 windows'")
    assert page.texts(NAMES) == ["stem", "branch"]
    assert page.texts("#window-rows .leads-on .label") == ["stem"]
    page.type("nothing")
    page.until("document.querySelector('#window-rows .empty')")
    assert "No window has all of these words" in page.text("#window-rows")


def test_a_click_shows_a_windows_details(shown: Shown) -> None:
    page = shown.page
    page.click("tr[data-name='stem'] .label")
    page.until("document.querySelector('#details dl')")
    facts = dict(zip(page.texts("#details dt"), page.texts("#details dd"), strict=True))
    assert page.text("#details-title") == "stem"
    assert facts["tokens"] == "778"
    assert facts["its own"] == "0 B"
    assert facts["shared"] == "12.0 KiB"
    assert facts["copies"] == "3 in disk"
    assert facts["chunks"] == "3"
    assert facts["thawed"] == "–"
    assert facts["made by"] == "freeze"
    assert "imported from" not in facts
    created = "document.querySelector('#details time').getAttribute('datetime')"
    assert page.value(created) == "2026-01-01T00:00:00.000Z"
    assert page.texts("#details .link") == ["branch", "stem-for-alice"]
    page.shot("details")
    page.click("#details .link")
    page.until("document.querySelector('#details .description')")  # the second one's, after which nothing moves
    assert page.text("#details-title") == "branch"
    page.click("#close-details")
    page.until("!document.querySelector('#details').open")


def test_the_details_say_where_an_imported_window_came_from(shown: Shown) -> None:
    origin = ImportOrigin(exported_as="plan", frozen_from=MARKUP, resharded_from=2)
    status: Any = shown.engine.answers[Op.STATUS]
    shown.engine.answers[Op.STATUS] = structs.replace(status, made_by="import", origin=origin)
    shown.page.click("tr[data-name='stem'] .label")
    shown.page.until("document.querySelector('#details dl')")
    facts = dict(zip(shown.page.texts("#details dt"), shown.page.texts("#details dd"), strict=True))
    assert facts["made by"] == "import"
    assert facts["imported from"] == f"plan, frozen from session {MARKUP}, computed on 2 ranks"


def test_the_tree_and_the_details_are_reached_by_keys(shown: Shown) -> None:
    page = shown.page
    focused = "document.activeElement.dataset.name"
    page.value("document.querySelector('#search').focus()")
    page.press("Tab")
    assert page.value(focused) == "stem"
    page.press("ArrowDown")
    assert page.value(focused) == "stem-for-alice"
    page.press("ArrowLeft")
    assert page.value(focused) == "stem"
    page.press("ArrowLeft")  # folds
    assert page.texts(NAMES) == ["stem"]
    assert page.value(focused) == "stem"
    page.press("Enter")
    page.until("document.querySelector('#details dl')")
    page.press("Escape")
    page.until("!document.querySelector('#details').open")
    page.until(f"{focused} === 'stem'")


def test_focus_stays_where_it_is_when_the_page_is_refreshed(shown: Shown) -> None:
    page = shown.page
    page.value("document.querySelector('tr[data-name=branch]').focus()")
    catalog = SqliteCatalog.open(shown.settings.catalog_path)
    catalog.clone_window("stem", "another", None, None, Micros(homes.NEW_YEAR + 6 * 86_400_000_000))
    catalog.close()
    shown.relist_windows()
    page.until("document.querySelector('tr[data-name=another]')")
    assert page.value("document.activeElement.dataset.name") == "branch"


def test_that_the_engine_goes_away_and_comes_back_is_said(shown: Shown) -> None:
    page = shown.page
    shown.stop_engine()
    page.until("document.querySelector('#engine').textContent === 'no engine'")
    assert "No engine is running" in page.text("#notices")
    assert page.texts(NAMES) == ["stem", "stem-for-alice", "branch"]
    assert page.text("#sessions-count") == "1 session, as last frozen or thawed"
    assert page.text("[data-tier=cpu]").split("\n") == ["cpu", "–"]
    assert "limit unknown" in page.text("[data-tier=disk]")
    assert page.text("[data-tier=redis]").split("\n") == ["redis", "not configured"]
    assert page.texts("#saved dd")[0] == "–"
    assert page.text("#transfers") == "–"
    page.shot("away")


def test_that_the_page_s_own_server_is_gone_is_said(shown: Shown) -> None:
    shown.served.process.kill()
    shown.page.until("document.querySelector('#notices').textContent.includes('cwm ui has stopped')")
    assert shown.page.texts(NAMES) == ["stem", "stem-for-alice", "branch"]
    assert any("ERR_CONNECTION_REFUSED" in each for each in shown.page.faults)
    shown.page.faults.clear()  # the browser's own word for what the page says


def test_a_page_elsewhere_that_leads_here_is_let_in(shown: Shown, tmp_path: Path) -> None:
    file = tmp_path / "open.html"
    file.write_text(redirect_page(shown.served.url))
    with new_page(tmp_path / "other") as page:
        page.open(file.as_uri())
        page.until(READ)
        assert page.value("location.href") == f"{shown.served.origin}/"


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_cut_off_and_all_text_can_be_read(shown: Shown, dark: bool, width: int) -> None:
    page = shown.page
    page.look(width=width, dark=dark)
    page.shot(f"{width}-{'dark' if dark else 'light'}")
    assert page.value("document.documentElement.scrollWidth") <= width
    least = page.value(CONTRAST)
    assert least["ratio"] >= 4.5, least


# Of each text with the first opaque ground behind it, as WCAG reckons.
CONTRAST: Final = """
(() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const channels = (colour) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return canvas.getImageData(0, 0, 1, 1).data;
  };
  const light = (colour) => {
    const linear = (c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    const [r, g, b] = [...channels(colour)].map((c) => linear(c / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (each) => {
    for (; each; each = each.parentElement) {
      const colour = getComputedStyle(each).backgroundColor;
      if (channels(colour)[3] === 255) return colour;
    }
  };
  let least = { ratio: 99 };
  for (const each of document.querySelectorAll("body *")) {
    if (![...each.childNodes].some((node) => node.nodeType === 3 && node.data.trim()) || !each.offsetWidth) continue;
    const [one, other] = [light(getComputedStyle(each).color), light(ground(each))].sort((a, b) => b - a);
    const ratio = (one + 0.05) / (other + 0.05);
    if (ratio < least.ratio) least = { ratio, text: each.textContent, tag: each.className };
  }
  return least;
})()
"""


# --- many ---


def test_a_thousand_windows_are_paged_and_found(home: Path, settings: Settings, tmp_path: Path) -> None:
    catalog = SqliteCatalog.open(settings.catalog_path)
    for number in range(1000):
        # Trees of five, one of them with 20 children, and a chain of 300 at the end.
        parent = f"w{number - 1}" if number > 700 or number % 5 else None
        new = homes.new_window(f"w{number}", f"s{number % 200}", 2, parent="w0" if 0 < number < 21 else parent)
        catalog.commit_window(replace(new, created_at=Micros(homes.NEW_YEAR + number)))
    catalog.close()
    with serving(tmp_path, "--no-browser") as served, new_page(tmp_path / "p") as page:
        page.look()
        page.open(served.url)
        page.until(READ)
        rows = "document.querySelectorAll('#window-rows tr[data-name]').length"
        assert page.value(rows) == 100
        assert page.text("#windows-count") == "1,000 windows"
        page.click("#more-windows")
        assert page.value(rows) == 200
        assert page.value("document.querySelectorAll('#session-rows tr[data-id]').length") == 50
        page.click("#more-sessions")
        assert page.value("document.querySelectorAll('#session-rows tr[data-id]').length") == 100
        page.value("document.querySelector('#search').focus()")
        page.type("w0")
        page.until("document.querySelector('#windows-count').textContent === '1 of 1,000 windows'")
        page.value("document.querySelector('#search').select()")
        page.type("w15")  # behind a fold of 20 children
        page.until("document.querySelector('tr[data-name=w15]')")
        page.value("0")
        assert page.faults == []
