"""The help of `cwm`: every command explains itself."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from rich.text import Text
from typer.testing import CliRunner

from cwm_connector.metrics import Metrics
from cwm_connector.version import __version__
from cwm_mcp.api.metrics import engine_up
from cwm_mcp.cli.app import app

_ANSWERS_NOTHING = {"chat", "serve", "completion", "help", "ui"}
"""They run something, or print what only a shell reads."""


def commands() -> Iterator[tuple[str, Any]]:
    group: Any = typer.main.get_command(app)
    yield from sorted(group.commands.items())


@pytest.mark.parametrize(("name", "command"), list(commands()))
def test_every_command_describes_itself_and_all_its_parameters(name: str, command: Any) -> None:
    summary, _, explained = command.help.partition("\n\n")
    assert 10 < len(summary) < 90, "one line that sums up"
    assert len(explained) > 80, "a paragraph on what really happens"
    for parameter in command.params:
        assert parameter.help, f"{name}: {parameter.name} has no help"


@pytest.mark.parametrize(("name", "command"), list(commands()))
def test_every_command_has_an_example_and_those_that_answer_have_json(name: str, command: Any) -> None:
    assert f"  cwm {name} " in f"{command.epilog} " or f"  cwm {name}\n" in f"{command.epilog}\n"
    options = {option for parameter in command.params for option in parameter.opts}
    assert ("--json" in options) is (name not in _ANSWERS_NOTHING)


@pytest.mark.parametrize("words", [[], ["ls"], ["policy"], ["stats"]])
def test_a_switch_is_shown_without_a_type(words: list[str]) -> None:
    shown = CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": "80"}).stdout
    assert "--help" in shown and "<bool>" not in shown


def test_commands_stand_in_panels_and_the_end_tells_variables_and_exit_codes() -> None:
    shown = CliRunner().invoke(app, ["--help"]).stdout
    panels = ["Windows", "Inspect", "Storage", "Engine", "Setup"]
    places = [shown.index(f"─ {panel} ─") for panel in panels]
    assert places == sorted(places)
    assert "─ Commands ─" not in shown, "a command without a panel"
    assert shown.index("CWM_VLLM_URL") < shown.index("Exit codes")


@pytest.mark.parametrize(("name", "command"), list(commands()))
def test_examples_and_exit_codes_fit_a_terminal_of_80_columns(name: str, command: Any) -> None:
    shown = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "80"}).stdout
    lines = [line.rstrip() for line in shown.splitlines()]
    for line in Text.from_markup(command.epilog).plain.splitlines():
        assert not line or f" {line}" in lines


@pytest.mark.parametrize(("name", "command"), list(commands()))
def test_every_metric_that_a_help_text_names_exists(name: str, command: Any) -> None:
    metrics = {sample.name for family in Metrics().registry.collect() for sample in family.samples}
    metrics.add(engine_up(True).name)
    assert set(re.findall(r"\bcwm_\w+", command.help)) <= metrics
    for prefix in re.findall(r"\bcwm_\w+", command.epilog):
        assert any(metric.startswith(prefix) for metric in metrics), f"no metric begins with {prefix}"


def test_the_help_of_metrics_names_the_one_that_tells_an_engine_from_none() -> None:
    assert engine_up(True).name in dict(commands())["metrics"].help


def test_text_in_brackets_is_shown_and_not_taken_for_markup() -> None:
    assert "'.roots[].name'" in CliRunner().invoke(app, ["tree", "--help"]).stdout


def test_the_version_is_told() -> None:
    assert CliRunner().invoke(app, ["--version"]).stdout == f"cwm {__version__}\n"


def test_what_is_stored_is_called_a_chunk_and_only_vllms_own_are_blocks() -> None:
    group: Any = typer.main.get_command(app)
    texts = {
        name: f"{command.help} {' '.join(str(each.help) for each in command.params if hasattr(each, 'help'))}"
        for name, command in group.commands.items()
    }
    assert {name for name, text in texts.items() if "block" in text} <= {"freeze", "rm"}


def test_the_help_says_what_becomes_of_the_tags_that_were_there() -> None:
    group: Any = typer.main.get_command(app)
    assert "With --tag it has only the tags given" in " ".join(group.commands["clone"].help.split())
    assert "The tags of --tag are added to those in the file" in " ".join(group.commands["import"].help.split())
