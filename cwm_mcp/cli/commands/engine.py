"""Commands that show the health and the metrics of the engine."""

from typing import Annotated

import typer

from cwm_connector.core.errors import CWMError
from cwm_connector.protocol import calls
from cwm_mcp.api import arguments as a
from cwm_mcp.cli.commands.registration import ENGINE, command
from cwm_mcp.cli.runner import Json, failed, parsed, print_result, run, settings

app = typer.Typer()


def _components(incomplete: str) -> list[str]:
    return [name for name in calls.COMPONENTS if name.startswith(incomplete)]


@command(
    app,
    ENGINE,
    examples=["cwm health", "cwm health redis --json"],
    exits={0: "healthy or degraded", 1: "unhealthy, or an error"},
)
def health(
    component: Annotated[
        str | None,
        typer.Argument(
            help="One of vllm, engine, catalog, cpu, disk and redis; all by default.",
            autocompletion=_components,
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show the health of all components or of one.

    Asks vLLM over HTTP and the engine over its socket. Without the engine, checks the catalog, the disk and Redis
    directly. Run `cwm doctor` to see how to fix a problem.
    """
    args = parsed(calls.HealthArgs, component=component)
    report = run(lambda cwm: cwm.health(args))
    print_result(report, as_json)
    if report.status == "unhealthy":
        raise typer.Exit(1)


@command(
    app,
    ENGINE,
    examples=["cwm metrics cwm_freeze", "cwm metrics --prometheus > cwm.prom", "cwm metrics --listen 9464"],
)
def metrics(
    prefix: Annotated[
        str | None, typer.Argument(help="Only metrics whose names start with this.", show_default=False)
    ] = None,
    prometheus: Annotated[bool, typer.Option("--prometheus", help="Print Prometheus' text format.")] = False,
    listen: Annotated[
        str | None,
        typer.Option(
            "--listen", metavar="[HOST:]PORT", help="Serve all metrics to Prometheus at /metrics.", show_default=False
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show the engine's metrics, or serve them to Prometheus.

    Prints the current value of every counter, gauge and histogram with its meaning. Without the engine, prints what the
    catalog knows, and cwm_engine_up is 0. With --listen, serves them until Ctrl-C, on 127.0.0.1 unless HOST says
    otherwise.
    """
    if listen is not None:
        _serve_metrics(listen)
        return
    args = parsed(a.MetricsArguments, prefix=prefix, format="prometheus" if prometheus else None)
    print_result(run(lambda cwm: cwm.metrics(args)), as_json)


def _serve_metrics(where: str) -> None:
    """Serve until Ctrl-C. The server's library would slow down every other command."""
    from cwm_mcp import exporter
    from cwm_mcp.api.http_address import Address

    try:
        exporter.run(settings(), Address.of(where), lambda url: print(f"serving metrics at {url}", flush=True))
    except CWMError as problem:
        raise failed(problem) from None
    except KeyboardInterrupt:
        return
