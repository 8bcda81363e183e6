"""A hook of mkdocs: adds the texts of the project's root to the site, and mends the links that leave docs/.

`README.md` becomes the first page. A link to a source file becomes the file's name, because the site has no sources.
"""

import re
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[1]
_PAGES: Final = {"README.md": "index.md"} | {name: name for name in ("CLAIMS.md", "CONTRIBUTING.md", "CHANGELOG.md")}
"""Files of the root, and what they are called in the site."""
_LINK: Final = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")


def on_files(files: Any, config: Any) -> Any:
    """Add the root's texts, as if they lay in docs/."""
    from mkdocs.structure.files import File

    for source, name in _PAGES.items():
        files.append(File.generated(config, name, content=in_site((ROOT / source).read_text(), ROOT)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Mend the links of a page of docs/. The root's texts have been mended already."""
    return markdown if page.file.generated_by else in_site(markdown, ROOT / "docs")


def in_site(markdown: str, folder: Path) -> str:
    """Return the text of a file in `folder` with its relative links as they are in the site."""

    def mended(link: re.Match[str]) -> str:
        image, text, target, anchor = link.groups(default="")
        if "://" in target:
            return link[0]
        path = (folder / target).resolve().relative_to(ROOT).as_posix()
        name = _PAGES.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)
        return f"`{path}`" if name is None else f"{image}[{text}]({name}{anchor})"

    return _LINK.sub(mended, markdown)
