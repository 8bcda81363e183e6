"""One real server for the whole folder; the tests that need a restart restart it.

Whoever writes a test here: other tests' sessions may have pushed yours out of vLLM's small KV cache, so freeze soon
after talking, and use names of your own for sessions and windows.
"""

import json
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.support import recordings
from tests.support.engine import Engine, EngineOptions, model_folder

_HERE = Path(__file__).parent
_FOR_TOOLS = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes")
"""Claude Code's requests always carry a list of tools, be it empty, which vLLM refuses without these options."""
_SECONDS = 420
"""For one test, the start of the shared server and of its successors included."""

_running: list[Engine] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker(pytest.mark.engine)
            item.add_marker(pytest.mark.timeout(_SECONDS))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed and _HERE in item.path.parents:
        report.sections += [("the engine's log ends", engine.log_tail()) for engine in _running]
    return report


@pytest.fixture(scope="session")
def model() -> Path:
    folder = model_folder()
    if not (folder / "config.json").exists():
        pytest.skip("the small model is missing: run `make model`")
    return folder


@pytest.fixture(scope="session")
def engine(model: Path) -> Iterator[Engine]:
    """A KV cache of 6,144 tokens: four sessions of 1,500 tokens push the first one out."""
    # These tests say themselves what is thawed. test_back_without_asking.py has an engine with the default.
    settings = {"CWM_AUTO_THAW": "off"}
    options = EngineOptions(model=model, max_model_len=4096, kv_tokens=6144, arguments=_FOR_TOOLS, settings=settings)
    yield from _running_engine(options)


def _running_engine(options: EngineOptions) -> Iterator[Engine]:
    with Engine(options) as engine:
        _running.append(engine)
        yield engine
        _running.remove(engine)


@pytest.fixture(scope="module")
def clients_engine(model: Path) -> Iterator[Engine]:
    """An engine with short answers, because Codex does not say how long an answer may be."""
    arguments = (*_FOR_TOOLS, "--override-generation-config", json.dumps({"max_new_tokens": 64, "temperature": 0}))
    yield from _running_engine(EngineOptions(model=model, kv_tokens=16_384, arguments=arguments))


@pytest.fixture(scope="module")
def replay_engine(model: Path) -> Iterator[Engine]:
    """An engine that computes little: two layers of random weights. Its template shows the model the tools."""
    arguments = (
        *_FOR_TOOLS,
        *("--load-format", "dummy", "--hf-overrides", json.dumps({"num_hidden_layers": 2})),
        *("--chat-template", str(recordings.FOLDER / "template.jinja")),
    )
    yield from _running_engine(EngineOptions(model=model, kv_tokens=24_576, arguments=arguments))
