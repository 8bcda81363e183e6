"""One real server for the whole folder; the tests that need a restart restart it.

Whoever writes a test here: other tests' sessions may have pushed yours out of vLLM's small KV cache, so freeze soon
after talking, and use names of your own for sessions and windows.
"""

from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.support.engine import Engine, EngineOptions, model_folder

_HERE = Path(__file__).parent
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
    # Claude Code's requests always carry a list of tools, be it empty, which vLLM refuses without these two.
    tools = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes")
    # These tests say themselves what is thawed. test_back_without_asking.py has an engine with the default.
    settings = {"CWM_AUTO_THAW": "off"}
    options = EngineOptions(model=model, max_model_len=4096, kv_tokens=6144, arguments=tools, settings=settings)
    with Engine(options) as engine:
        _running.append(engine)
        yield engine
        _running.remove(engine)
