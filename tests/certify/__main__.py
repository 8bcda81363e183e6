"""`python -m tests.certify`: exit status 0 only if every window went on exactly like a prefix hit."""

import json
import os
import shutil
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from cwm_connector.settings import AutoThaw
from tests.certify.cases import cases
from tests.certify.certifier import Certifier
from tests.support.engine import Engine, EngineOptions
from tests.support.redis_server import redis_server


def main(
    windows: Annotated[int, typer.Option(help="Windows to certify.")] = 104,
    minutes: Annotated[float, typer.Option(help="No window is begun later, and those left out are a fault.")] = 18,
    seed: Annotated[int, typer.Option(help="Decides which windows, and what is said in them.")] = 1,
    noise: Annotated[int, typer.Option(help="Prompts of which the noise floor is measured.")] = 3,
    auto_thaw: Annotated[
        AutoThaw,
        typer.Option(help="Otherwise sessions compute evicted tokens that windows hold, and their bits may differ."),
    ] = AutoThaw.PREFIX,
    report: Annotated[Path | None, typer.Option(help="Writes the figures here, as JSON.")] = None,
) -> None:
    deadline = time.monotonic() + minutes * 60
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="cwm-certify-"))
        # Memory and disk are small, so that windows move down to the disk and to Redis.
        settings = {"CWM_AUTO_THAW": auto_thaw.value}
        if shutil.which(os.environ.get("CWM_TEST_REDIS_SERVER", "redis-server")) is None:
            print("no redis-server here: nothing is thawed from Redis", flush=True)
        else:
            redis = stack.enter_context(redis_server(append_fsync="always"))
            settings |= {"CWM_REDIS_URL": redis.url, "CWM_DISK_CACHE_GB": "0.25"}
        options = EngineOptions(
            home=Path(folder) / "home", max_model_len=2048, kv_tokens=10_240, cpu_cache_gb=0.12, settings=settings
        )
        engine = Engine(options)
        try:
            found = Certifier(engine, cases(windows, seed), deadline).run(seed, noise)
        finally:
            engine.close()
    print(found.summary(), flush=True)
    if report is not None:
        report.write_text(json.dumps(found.as_json(), indent=1))
    raise typer.Exit(1 if found.faults else 0)


if __name__ == "__main__":
    typer.run(main)
