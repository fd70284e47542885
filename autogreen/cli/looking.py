"""Commands that look at what was found."""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autogreen.cli.app import app
from autogreen.cli.printing import (
    RUNS,
    Runs,
    TrustNativeCode,
    browse,
    print_json,
    protocol_changes,
    show,
    show_sides,
    telling,
)
from autogreen.errors import ConfigError

if TYPE_CHECKING:
    from autogreen.front import Front

TRACKING = "An MLflow server, http://HOST:PORT; by default the experiment's, else the studies' own database."


@app.command()
def front(
    name: str,
    other: Annotated[str, typer.Argument(help="A second study, to see its front beside the first one's.")] = "",
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write the page to this file.")] = None,
    runs: Runs = RUNS,
) -> None:
    """Show the front of a study, or of two side by side."""
    from autogreen.front import Front
    from autogreen.store import Store

    found = Front.of(Store.open(runs / name).results())
    if other:
        _beside(found, Front.of(Store.open(runs / other).results()), json=json, html=html)
        return
    if html is not None:
        from autogreen.page import write_page

        write_page(found, html)
    if json:
        print_json(found.to_json())
    else:
        show(found)


def _beside(a: "Front", b: "Front", *, json: bool, html: Path | None) -> None:
    from autogreen.sides import Sides

    sides = Sides.of(a, b)
    if html is not None:
        from autogreen.report import write_sides

        write_sides(sides, html)
    if json:
        print_json(sides.to_json())
    else:
        show_sides(sides)


@app.command()
def report(
    name: str,
    to: Annotated[Path | None, typer.Option(help="File to write; by default report.html beside the study.")] = None,
    runs: Runs = RUNS,
) -> None:
    """Write one page that tells what a study found: for a phone, a printer, a mail; it needs no network."""
    from autogreen.front import Front
    from autogreen.report import write
    from autogreen.store import Store

    file = to or runs / name / "report.html"
    write(Front.of(Store.open(runs / name).results()), file)
    print(file)


@app.command()
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="A bundle, or STUDY:RULE (baseline, plain, knee, an id).")] = "",
    b: Annotated[str, typer.Argument(metavar="B", help="The same.")] = "",
    protocol: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="Change the protocol.")] = None,
    record: Annotated[Path | None, typer.Option(help="Write every reading to this file.")] = None,
    replay: Annotated[Path | None, typer.Option(help="Judge a recorded comparison again; measure nothing.")] = None,
    trust_native_code: TrustNativeCode = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    runs: Runs = RUNS,
) -> None:
    """Measure two programs in turns; tell which takes less energy, and how sure that is."""
    from autogreen import comparison

    changes = protocol_changes(protocol)
    if (replay is None) != bool(a and b) or (replay is not None and (a or record)):
        raise ConfigError("name two programs, A and B, to measure; or --replay FILE alone to judge a recording again.")
    if replay is not None:
        found = comparison.replay(replay, changes)
    else:
        found = comparison.compare(a, b, runs=runs, changes=changes, record=record, native_code=trust_native_code)
    if json:
        print_json(found.to_json())
    else:
        print(found.summary())


@app.command()
def sync(
    name: str,
    tracking: Annotated[str | None, typer.Option(help=TRACKING)] = None,
    runs: Runs = RUNS,
) -> None:
    """Fill MLflow from a study; any number of times, from anywhere."""
    from autogreen.front import Front
    from autogreen.store import Store
    from autogreen.tracking import Server
    from autogreen.tracking import sync as fill

    front = Front.of(Store.open(runs / name).results())
    filled = fill(front, Server(uri=tracking or front.results.experiment.get("tracking"), runs=runs), telling())
    print(f"{filled.written} of {filled.held} runs were made or changed; MLflow holds the study.\n{filled.link}")


@app.command()
def ui(
    name: Annotated[str, typer.Argument(help="A study; by default the newest.")] = "",
    port: Annotated[int, typer.Option(help="Port on this machine.")] = 5000,
    tracking: Annotated[str | None, typer.Option(help=TRACKING)] = None,
    runs: Runs = RUNS,
) -> None:
    """Open a study's front in MLflow: served here, or on the server that its experiment names."""
    from autogreen.front import Front
    from autogreen.store import Store
    from autogreen.tracking import Server, find, serving
    from autogreen.tracking import sync as fill

    front = Front.of(Store.open(runs / name if name else Store.newest(runs)).results())
    uri = tracking or front.results.experiment.get("tracking")
    server = Server(uri=uri, runs=runs, port=port)
    link = find(front, server) or fill(front, server, telling()).link
    if uri:
        print(link)
        return
    with serving(runs, port) as process, suppress(KeyboardInterrupt):
        print(f"{link}\n(Ctrl-C stops it)", flush=True)
        browse(link)
        process.wait()
