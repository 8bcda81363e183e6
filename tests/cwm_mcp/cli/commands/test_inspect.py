"""`cwm tree` and `cwm diff` over a real catalog, without an engine."""

import hashlib
import json
from array import array
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner, Result

from cwm_connector.catalog.sqlite.catalog import SqliteCatalog
from cwm_connector.core.types import ChunkKey, Micros
from cwm_connector.protocol.results import WindowItem
from cwm_connector.settings import Settings
from cwm_mcp.api.diff import common_length
from cwm_mcp.api.tree import MAX_NESTING, parents_of, tree_of, walk
from cwm_mcp.cli.app import app
from tests.cwm_mcp.homes import clones, new_window


def cwm(*words: str) -> Result:
    return CliRunner().invoke(app, words)


def told(*words: str) -> Any:
    ran = cwm(*words, "--json")
    assert ran.exit_code == 0, ran.output
    return json.loads(ran.stdout)


def names(nodes: Sequence[dict[str, Any]]) -> list[Any]:
    return [[node["name"], *names(node["children"])] for node in nodes]


# --- tree ---


def test_windows_hang_under_those_that_they_were_made_from(filled: Path) -> None:
    assert names(told("tree")["roots"]) == [["stem", ["branch"], ["stem-for-alice"]]]
    (stem,) = told("tree")["roots"]
    (branch, alice) = stem["children"]
    assert (branch["shared_bytes"], branch["unique_bytes"]) == (12288, 8192)
    assert (alice["shared_bytes"], alice["unique_bytes"]) == (12288, 0)


def test_the_drawing_says_how_much_is_shared_and_how_much_is_its_own(filled: Path) -> None:
    lines = cwm("tree").stdout.splitlines()
    assert lines[0].startswith("stem  778 tokens")
    assert "branch  1290 tokens, 20.0 KiB (12.0 KiB shared, 8.0 KiB its own), disk" in lines[1]
    assert "#project-x #debug" in lines[1]


def test_a_window_whose_parent_is_gone_is_a_root_that_names_it(filled: Path, settings: Settings) -> None:
    with closing(SqliteCatalog.open(settings.catalog_path)) as catalog:
        catalog.delete_window("stem")
    assert names(told("tree")["roots"]) == [["branch"], ["stem-for-alice"]]
    assert "from stem (deleted)" in cwm("tree").stdout


def test_only_the_tree_in_which_a_window_stands_is_shown_when_it_is_named(filled: Path, settings: Settings) -> None:
    with closing(SqliteCatalog.open(settings.catalog_path)) as catalog:
        catalog.commit_window(new_window("elsewhere", "other", 2, day=3))
    assert [node["name"] for node in told("tree", "branch")["roots"]] == ["stem"]
    assert "elsewhere" not in cwm("tree", "branch").stdout
    ran = cwm("tree", "nothing")
    assert ran.exit_code == 1 and ran.stderr.startswith("CWM-2002")


def test_more_windows_than_a_page_are_all_there(filled: Path, settings: Settings) -> None:
    clones(settings.home, "stem", 230)
    tree = told("tree")
    assert tree["total"] == 233
    assert len(tree["roots"][0]["children"]) + len(tree["roots"]) - 1 == 232


def item(name: str, parent: str | None) -> WindowItem:
    known = dict.fromkeys(WindowItem.__struct_fields__)
    return msgspec.convert({**known, "name": name, "parent_window": parent, "tags": [], "state": "frozen"}, WindowItem)


def test_only_an_older_window_is_a_parent() -> None:
    # `a` was cloned to `b` and deleted; then `b` was cloned to a new `a`.
    listed = [item("b", "a"), item("a", "b"), item("c", "gone"), item("d", "d"), item("a", "b")]
    assert list(parents_of(listed).items()) == [("b", None), ("a", "b"), ("c", None), ("d", None)]


def test_a_name_given_anew_to_a_descendant_closes_no_circle() -> None:
    # "a" was deleted, and its grandchild was then given its name.
    tree = tree_of([item("b", "a"), item("a", "b")])
    assert [(node.name, node.parent_lost) for node in walk(tree.roots)] == [("b", True), ("a", False)]


def test_a_long_chain_is_not_nested_without_end() -> None:
    tree = tree_of([item(f"w{n}", f"w{n - 1}" if n else None) for n in range(1000)])
    depth, nodes = 0, tree.roots
    while nodes:
        depth, nodes = depth + 1, nodes[0].children
    assert depth == MAX_NESTING + 1
    assert len(list(walk(tree.roots))) == 1000


def test_an_empty_store_has_an_empty_tree(home: Path) -> None:
    assert told("tree") == {"roots": [], "total": 0}
    assert "No windows yet" in cwm("tree").stdout


# --- diff ---


@pytest.fixture
def parted(home: Path, settings: Settings) -> None:
    """Two windows that share 500 tokens, and one that is the beginning of the first."""
    with closing(SqliteCatalog.open(settings.catalog_path)) as catalog:
        for day, (name, ids) in enumerate(
            {"a": range(522), "b": [*range(500), *range(900, 1178)], "begin": range(266)}.items()
        ):
            window, packed = new_window(name, name, (len(ids) - 10) // 256, day=day), array("i", ids)
            keys = [_key(packed[: (at + 1) * 256]) for at in range(len(window.chunks))]
            stored = [replace(row, key=key) for row, key in zip(window.stored, keys, strict=True)]
            window = replace(window, token_ids=packed.tobytes(), chunks=keys, stored=stored, created_at=Micros(day + 1))
            catalog.commit_window(window)


def _key(token_ids: "array[int]") -> ChunkKey:
    """Return a key that depends on all tokens up to the chunk's end, as the engine's keys do."""
    return ChunkKey(hashlib.sha256(token_ids.tobytes()).digest())


def test_windows_part_at_the_first_token_that_differs(parted: None) -> None:
    diff = told("diff", "a", "b", "--context", "3")
    assert (diff["common_tokens"], diff["only_a_tokens"], diff["only_b_tokens"]) == (500, 22, 278)
    assert diff["common_end"]["token_ids"] == [497, 498, 499]
    assert diff["next_a"]["token_ids"] == [500, 501, 502]
    assert diff["next_b"]["token_ids"] == [900, 901, 902]
    assert (diff["shared_blocks"], diff["shared_bytes"]) == (1, 4096)


def test_a_beginning_has_nothing_of_its_own(parted: None) -> None:
    diff = told("diff", "begin", "a")
    assert (diff["common_tokens"], diff["only_a_tokens"], diff["only_b_tokens"]) == (266, 0, 256)
    assert "(nothing)" in cwm("diff", "begin", "a").stdout
    assert "hold the same 522 tokens" in cwm("diff", "a", "a").stdout


def test_without_vllm_token_ids_are_shown_and_it_is_said_why(parted: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CWM_VLLM_URL", "http://127.0.0.1:9")
    shown = cwm("diff", "a", "b", "--context", "3").stdout
    assert "497 498 499" in shown and "Token ids are shown instead of text" in shown
    assert told("diff", "a", "b")["next_a"]["text"] is None


def test_a_window_that_is_not_there_is_named(parted: None) -> None:
    ran = cwm("diff", "a", "nothing")
    assert ran.exit_code == 1 and ran.stderr.startswith("CWM-2002") and "nothing" in ran.stderr


@pytest.mark.parametrize("common", [0, 1, 4095, 4096, 4097, 9000])
def test_the_common_length_is_exact_around_the_strides(common: int) -> None:
    one, other = [*range(common), -1, *range(50)], [*range(common), -2, *range(50)]
    assert common_length(one, other) == common
    assert common_length(one, one[:common]) == common
