"""Commands on what leaves for production."""

from pathlib import Path
from typing import Annotated

import typer

from autogreen.cli.app import app
from autogreen.cli.printing import RUNS, Runs, print_json
from autogreen.errors import ConfigError
from autogreen.outcome import EXIT_CODES


@app.command()
def export(
    name: str,
    to: Annotated[Path, typer.Option(help="Folder to write; must not exist.")],
    pick: Annotated[str, typer.Option(help="knee, cheapest, cheapest:loss<=X, best:energy<=J, or an id.")] = "knee",
    runs: Runs = RUNS,
) -> None:
    """Write the picked policy, as measured, as a bundle."""
    from autogreen import api
    from autogreen.front import Front
    from autogreen.store import Store

    found = Front.of(Store.open(runs / name).results())
    point = found.pick(pick)
    api.export(found, pick=point.id, to=to, runs=runs)
    print(f"{to}: {point.id}, {point.words}. Next: autogreen verify {to}")


@app.command()
def verify(folder: Path) -> None:
    """Check a bundle's hashes, its outputs, and, on the same machine, its energy.

    Exit code 0: what was promised holds; 1: something does not; 3: not conclusive, the machine was busy; 4: files and
    outputs hold, and energy cannot be measured as promised here.
    """
    from autogreen.bundle import verify as verify_bundle

    found = verify_bundle(folder)
    print(found.summary())
    raise typer.Exit(EXIT_CODES[found.outcome])


@app.command()
def check(
    folder: Annotated[Path, typer.Argument(metavar="BUNDLE")],
    max_ratio: Annotated[float | None, typer.Option(help="Energy per item over the reference's, here.")] = None,
    min_quality: Annotated[float | None, typer.Option(help="Quality on the test split, by the manifest.")] = None,
    max_loss: Annotated[float | None, typer.Option(help="Of that quality, against the reference.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object, whatever comes of it.")] = False,
) -> None:
    """Hold a bundle to its promise and to limits, as in CI.

    Exit code 0: all kept; 1: something is broken; 3: nothing proven, the machine was busy or an interval lies on both
    sides of a limit; 4: energy cannot be measured here.
    """
    from autogreen.bundle import Limits
    from autogreen.bundle import check as check_bundle

    try:
        limits = Limits(max_ratio=max_ratio, min_quality=min_quality, max_loss=max_loss)
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from error
    found = check_bundle(folder, limits)
    if json:
        print_json(found.to_json())
    else:
        print(found.summary())
    raise typer.Exit(EXIT_CODES[found.outcome])
