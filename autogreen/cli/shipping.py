"""Commands on what leaves for production."""

from pathlib import Path
from typing import Annotated

import typer

from autogreen.cli.app import app
from autogreen.cli.printing import RUNS, Runs, TrustNativeCode, print_json, protocol_changes
from autogreen.errors import ConfigError
from autogreen.outcome import EXIT_CODES

Tracking = Annotated[str | None, typer.Option(help="MLflow's server; by default the studies' own database.")]


@app.command()
def export(
    name: str,
    to: Annotated[Path | None, typer.Option(help="Folder to write; must not exist. Needed without --register.")] = None,
    pick: Annotated[
        str,
        typer.Option(
            help="knee, cheapest, cheapest:loss<=X, cheapest:latency<=S, best, best:energy<=J, fastest, or an id."
        ),
    ] = "knee",
    register: Annotated[str | None, typer.Option(metavar="MODEL", help="Make it this model's challenger.")] = None,
    tracking: Tracking = None,
    runs: Runs = RUNS,
) -> None:
    """Write the picked policy, as measured, as a bundle; with --register it is the challenger in MLflow's registry."""
    from autogreen import api
    from autogreen.front import Front
    from autogreen.store import Store

    found = Front.of(Store.open(runs / name).results())
    point = found.pick(pick)
    if to is None and register is None:
        raise ConfigError("name a folder to write the bundle to (--to DIR), or a model to register it as (--register).")
    to = to or runs / name / "bundles" / point.id
    api.export(found, pick=point.id, to=to, runs=runs)
    print(f"{to}: {point.id}, {point.words}. Next: autogreen verify {to}")
    if register is not None:
        _register(to, register, tracking or found.results.experiment.get("tracking"), runs)


@app.command()
def register(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE")],
    model: Annotated[str, typer.Argument(metavar="MODEL")],
    tracking: Tracking = None,
    runs: Runs = RUNS,
) -> None:
    """Make a bundle the challenger of a model in MLflow's registry; again, it changes nothing."""
    _register(bundle, model, tracking, runs)


@app.command()
def promote(
    model: Annotated[str, typer.Argument(metavar="MODEL")],
    max_ratio: Annotated[float, typer.Option(help="Energy per item over the champion's that is not too much.")] = 1.0,
    max_loss: Annotated[float, typer.Option(help="Test quality that it may lose against the champion.")] = 0.0,
    protocol: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="Of measuring both.")] = None,
    trust_native_code: TrustNativeCode = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    tracking: Tracking = None,
    runs: Runs = RUNS,
) -> None:
    """Measure the challenger here, beside the champion; make it the champion if it may follow.

    Exit code 0: it is the champion; 1: it failed, or another error; 3: nothing proven; 4: energy cannot be measured
    here.
    """
    from autogreen.succession import Terms
    from autogreen.tracking import models

    try:
        terms = Terms(max_ratio=max_ratio, max_loss=max_loss)
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from error
    uri = models.address(tracking, runs)
    changes = protocol_changes(protocol)
    found = models.promote(model, uri=uri, terms=terms, protocol=changes, native_code=trust_native_code)
    if json:
        print_json(found.to_json())
    else:
        print(found.summary())
    raise typer.Exit(EXIT_CODES[found.outcome])


@app.command()
def verify(folder: Path, trust_native_code: TrustNativeCode = False) -> None:
    """Check a bundle's hashes, its outputs, and, on the same machine, its energy.

    Exit code 0: what was promised holds; 1: something does not; 3: not conclusive, the machine was busy; 4: files and
    outputs hold, and energy cannot be measured as promised here.
    """
    from autogreen.bundle import verify as verify_bundle

    found = verify_bundle(folder, native_code=trust_native_code)
    print(found.summary())
    raise typer.Exit(EXIT_CODES[found.outcome])


@app.command()
def check(
    folder: Annotated[Path, typer.Argument(metavar="BUNDLE")],
    max_ratio: Annotated[float | None, typer.Option(help="Energy per item over the reference's, here.")] = None,
    min_quality: Annotated[float | None, typer.Option(help="Quality on the test split, by the manifest.")] = None,
    max_loss: Annotated[float | None, typer.Option(help="Of that quality, against the reference.")] = None,
    trust_native_code: TrustNativeCode = False,
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
    found = check_bundle(folder, limits, native_code=trust_native_code)
    if json:
        print_json(found.to_json())
    else:
        print(found.summary())
    raise typer.Exit(EXIT_CODES[found.outcome])


@app.command()
def convert(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Of the eager or the inductor engine.")],
    engine: Annotated[str, typer.Option(help="Whose format: aot, onnxruntime, eager, inductor.")],
    to: Annotated[Path, typer.Option(help="Folder to write; must not exist.")],
) -> None:
    """Write the program of a bundle in another engine's format; its energy is then not measured."""
    from autogreen.bundle import convert as convert_bundle

    made = convert_bundle(bundle, engine=engine, to=to)
    print(
        f"{made.folder}: outputs differ by at most {made.difference:.2g} of their largest value (allowed: "
        f"{made.tolerance:g}); energy not measured. Next: autogreen verify {made.folder}"
    )


def _register(bundle: Path, model: str, tracking: str | None, runs: Path) -> None:
    from autogreen.errors import TrackingError
    from autogreen.tracking import models

    try:
        found = models.register(bundle, model, uri=models.address(tracking, runs))
    except TrackingError as error:
        raise TrackingError(f"{error} The bundle is whole: autogreen register {bundle} {model}") from error
    held = f", {' and '.join(found.aliases)}" if found.aliases else ""
    before = "" if found.created else " was registered before:"
    print(f"{bundle}{before} {found.uri}{held}. Next: autogreen promote {model}")
