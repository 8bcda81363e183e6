"""How the commands of a document are read, run and compared."""

import os
from pathlib import Path

import pytest

from tests.support.console import Step, is_shown, run, steps

DOCUMENT = """
Say it:

    $ greet() { echo "hello
        $1"; }
    $ greet you
    hello
    …

No command:

    $HOME is not one
"""


def test_a_command_goes_on_while_its_lines_are_indented(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text(DOCUMENT)
    defined, called = steps(tmp_path / "a.md")
    assert defined == Step('greet() { echo "hello\n    $1"; }', ())
    assert called == Step("greet you", ("hello", "…"))


def test_commands_run_in_one_shell_and_each_has_its_own_output(tmp_path: Path) -> None:
    commands = ["greet() { echo hello $1; }", "greet you; echo oops >&2", "(exit 3)"]
    ran = run(commands, os.environ, tmp_path)
    assert [each.code for each in ran] == [0, 0, 3]
    assert [each.printed for each in ran] == [(), ("hello you", "oops"), ()]


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        (("Froze a: 236 tokens, 5.6 MiB.",), ("Froze a: 12 tokens, 4.0 KiB.",), True),
        (("Froze a: 236 tokens.",), ("Froze b: 236 tokens.",), False),
        (("a", "…", "c"), ("a", "b", "b", "c"), True),
        (("a", "c"), ("a", "b", "c"), False),
        (("a  b",), ("a     b",), True),
        (("salt cwm-…", "end"), ("salt cwm-x9 y", "end"), True),
        (("a",), ("a", "b"), False),
        (("made 2026-11-27 16:08",), ("made 2027-01-02 03:04",), True),
    ],
)
def test_figures_may_differ_and_words_may_not(shown: tuple[str, ...], printed: tuple[str, ...], same: bool) -> None:
    assert is_shown(shown, printed) is same
