"""The documentation builds as one site without a warning, and the links out of docs/ are mended in it."""

import re
import subprocess
from pathlib import Path

import pytest

from tools.docs_site import ROOT, in_site


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a site that was built strictly, or skip where its packages can't be installed."""
    installed = subprocess.run([ROOT / "tools" / "docs.sh", "--install"], cwd=ROOT, capture_output=True, text=True)
    if installed.returncode:
        pytest.skip(f"mkdocs-material can't be installed: {installed.stderr.strip().splitlines()[-1]}")
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [ROOT / "tools" / "docs.sh", "--site-dir", str(folder)], cwd=ROOT, capture_output=True, text=True
    )
    assert built.returncode == 0 and "WARNING" not in built.stderr, built.stderr
    return folder


@pytest.mark.timeout(600)
def test_every_document_is_a_page_of_the_site(site: Path) -> None:
    documents = {path.stem for path in (ROOT / "docs").glob("*.md")} | {"CLAIMS", "CONTRIBUTING", "CHANGELOG"}
    assert {path.stem for path in site.glob("*.html")} == documents | {"index", "404"}


@pytest.mark.timeout(600)
def test_a_page_loads_nothing_from_elsewhere(site: Path) -> None:
    for page in site.glob("*.html"):
        loaded = re.findall(r'<(?:script|img|link)[^>]*? (?:src|href)="(https?:[^"]*)"', page.read_text())
        assert loaded == [], page.name


@pytest.mark.parametrize(
    ("folder", "written", "shown"),
    [
        ("", "[a](docs/tiers.md#redis)", "[a](tiers.md#redis)"),
        ("", "![a](docs/ui.png)", "![a](ui.png)"),
        ("docs", "[a](../CHANGELOG.md)", "[a](CHANGELOG.md)"),
        ("docs", "[a](../docker/compose.yaml)", "`docker/compose.yaml`"),
        ("docs", "[a](tiers.md)", "[a](tiers.md)"),
        ("", "[a](https://example.com/docs/x.md)", "[a](https://example.com/docs/x.md)"),
    ],
)
def test_a_link_leads_to_the_page_of_the_site(folder: str, written: str, shown: str) -> None:
    assert in_site(written, ROOT / folder) == shown


def test_the_sites_output_is_not_kept_in_git() -> None:
    ignored = subprocess.run(["git", "check-ignore", "build/site/index.html"], cwd=ROOT, capture_output=True)
    assert ignored.returncode == (0 if (ROOT / ".git").exists() else 128)
