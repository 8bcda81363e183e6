"""The servers that the tests share, and one kill -9 of each for all tests of what a kill leaves.

Two workers run these tests (tests/support/schedule.py). All tests of one server run in the same worker.

If you write a test here: other tests' sessions may have pushed yours out of vLLM's small KV cache, so freeze soon
after talking, and use names of your own for sessions and windows.

A start in new processes takes a minute of computing. The engine of test_auto_freeze.py has such a start. All others are
forked from a process that has imported vLLM (tests/support/warm.py). That takes seconds.

A test of what a kill leaves is marked with `survives(prepare=…)`, where
`prepare(engine)` is an async function that does what comes before the kill. The fixture `before` runs the
preparations of all chosen tests, kills the engine and starts it again, once, and gives each test what its own
preparation returned. With `kills=True` a preparation runs last and leaves the engine killed. `engine="…"` names the
fixture of another engine.
"""

import asyncio
import json
from collections.abc import Callable, Coroutine, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cwm_mcp.serve import Build, installed_build
from tests.support import recordings
from tests.support.engine import Engine, EngineOptions, Launch, launch_new, model_folder, quiet_environment
from tests.support.first_layers import first_layers
from tests.support.schedule import SHARED, UNASKED, group_of
from tests.support.warm import WarmStarter

_HERE = Path(__file__).parent
_FOR_TOOLS = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes")
"""Claude Code's requests always carry a list of tools, be it empty, which vLLM refuses without these options."""
_SECONDS = 900
"""For one test, the start of the shared server and of its successors included."""

_running: list[Engine] = []


@dataclass(frozen=True, slots=True)
class Survival:
    """The arguments of the mark `survives`."""

    prepare: Callable[[Engine], Coroutine[Any, Any, Any]]
    kills: bool = False
    engine: str = "engine"


def _survival(item: pytest.Item) -> Survival | None:
    mark = item.get_closest_marker("survives")
    return None if mark is None else Survival(**mark.kwargs)


def _survivals(items: Sequence[pytest.Item], engine: str) -> list[Survival]:
    """Return what has to be prepared for these tests before the engine is killed, in this order."""
    found = dict.fromkeys(each for item in items if (each := _survival(item)) is not None and each.engine == engine)
    return sorted(found, key=lambda each: each.kills)


def _group_of_its_engine(item: pytest.Item) -> str | None:
    """Return the group of the session's engine that a test uses. None: it starts one of its own."""
    used = {name for name, found in _fixtures(item).items() if found[-1].func.__module__ == __name__}
    if "unasked_engine" in used:
        return UNASKED
    return SHARED if "engine" in used else None


def _fixtures(item: pytest.Item) -> Mapping[str, Sequence[pytest.FixtureDef[Any]]]:
    """Return the definitions of a test's fixtures by name, of which the last one counts."""
    return item._fixtureinfo.name2fixturedefs if isinstance(item, pytest.Function) else {}


def _limit_s(item: pytest.Item) -> float:
    mark = item.get_closest_marker("timeout")
    return _SECONDS if mark is None else float(mark.args[0])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    own = [item for item in items if _HERE in item.path.parents]
    preparing: dict[str, dict[Survival, float]] = {}
    for item in own:
        group = _group_of_its_engine(item)
        if group not in (None, group_of(item.nodeid)):
            raise pytest.UsageError(f"{item.nodeid} would start its engine twice: see tests/support/schedule.py")
        item.add_marker(pytest.mark.engine)
        if (survival := _survival(item)) is not None:
            preparing.setdefault(survival.engine, {})[survival] = _limit_s(item)
    for item in own:
        survival = _survival(item)
        # The first test of an engine's survivors waits for the preparations of all.
        more = 0 if survival is None else sum(preparing[survival.engine].values())
        item.add_marker(pytest.mark.timeout(_limit_s(item) + more), append=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed and _HERE in item.path.parents:
        report.sections += [("the engine's log ends", engine.log_tail()) for engine in _running]
    return report


@pytest.fixture(scope="session")
def model() -> Path:
    """The small model. It recites what stands in its prompt, which it can't do with wrong keys and values."""
    folder = model_folder()
    if not (folder / "config.json").exists():
        pytest.skip("the small model is missing: run `make model`")
    return folder


@pytest.fixture(scope="session")
def shallow_model(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model's first layers, for tests that compare with vLLM's own prefix cache bit for bit.

    Its answers are nonsense, depend on every key and value, and take a fifth of the time.
    """
    return first_layers(model, tmp_path_factory.mktemp("model") / model.name)


@pytest.fixture(scope="session")
def launch(model: Path) -> Iterator[Launch]:
    """Return the function that starts servers quickly: the usual start with a GPU, as CUDA does not survive a fork."""
    if installed_build() is not Build.CPU:
        yield launch_new
        return
    with WarmStarter(quiet_environment()) as starter:
        yield starter.launch


@pytest.fixture(scope="session")
def engine(model: Path, launch: Launch) -> Iterator[Engine]:
    """A KV cache of 6,144 tokens: four sessions of 1,500 tokens push the first one out."""
    # These tests say themselves what is thawed. test_back_without_asking.py has an engine with the default.
    settings = {"CWM_AUTO_THAW": "off"}
    options = EngineOptions(model=model, max_model_len=4096, kv_tokens=6144, arguments=_FOR_TOOLS, settings=settings)
    with _listed(Engine(options, launch)) as engine:
        yield engine


@contextmanager
def _listed(engine: Engine) -> Iterator[Engine]:
    """Run an engine whose log is shown when a test fails."""
    with engine:
        _running.append(engine)
        yield engine
        _running.remove(engine)


@pytest.fixture(scope="session")
def unasked_engine(model: Path, launch: Launch) -> Iterator[Engine]:
    """An engine that freezes what is silent and thaws it without being asked.

    Its answers are short, because Codex does not say how long an answer may be.
    """
    arguments = (*_FOR_TOOLS, "--override-generation-config", json.dumps({"max_new_tokens": 64, "temperature": 0}))
    settings = {"CWM_AUTO_FREEZE_ENABLED": "true", "CWM_AUTO_FREEZE_IDLE_TIMEOUT_MINUTES": "0.02"}
    options = EngineOptions(model=model, kv_tokens=16_384, arguments=arguments, settings=settings)
    with _listed(Engine(options, launch)) as engine:
        yield engine


@pytest.fixture(scope="module")
def replay_engine(model: Path, launch: Launch) -> Iterator[Engine]:
    """An engine that computes little: two layers of random weights. Its template shows the model the tools."""
    arguments = (
        *_FOR_TOOLS,
        *("--load-format", "dummy", "--hf-overrides", json.dumps({"num_hidden_layers": 2})),
        *("--chat-template", str(recordings.FOLDER / "template.jinja")),
    )
    with _listed(Engine(EngineOptions(model=model, kv_tokens=24_576, arguments=arguments), launch)) as engine:
        yield engine


class Killed:
    """Kills each engine once, and keeps what the preparations before it returned or raised."""

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self._items = request.session.items
        self._outcomes: dict[str, dict[Survival, Any]] = {}

    def outcomes(self, name: str, engine: Engine) -> dict[Survival, Any]:
        """Return the outcomes of an engine's preparations. The first call runs them, and kills and restarts it."""
        if name not in self._outcomes:
            found = self._outcomes[name] = {}
            for survival in _survivals(self._items, name):
                try:
                    found[survival] = asyncio.run(survival.prepare(engine))
                except (Exception, pytest.skip.Exception) as problem:
                    found[survival] = problem
            engine.restart()
        return self._outcomes[name]


@pytest.fixture(scope="session")
def _killed(request: pytest.FixtureRequest) -> Killed:
    return Killed(request)


@pytest.fixture
def before(request: pytest.FixtureRequest, _killed: Killed) -> Any:
    """What the test's own preparation returned before the engine was killed."""
    survival = _survival(request.node)
    assert survival is not None, "mark the test with survives(prepare=…)"
    outcome = _killed.outcomes(survival.engine, request.getfixturevalue(survival.engine))[survival]
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome
