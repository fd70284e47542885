"""Commands on what leaves for production."""

from pathlib import Path
from typing import Annotated

import typer

from autogreen.cli.app import app
from autogreen.cli.printing import RUNS, Runs, TrustNativeCode


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
def verify(folder: Path, trust_native_code: TrustNativeCode = False) -> None:
    """Check a bundle's hashes, its outputs, and, on the same machine, its energy.

    Exit code 0: what could be checked holds; 1: something does not; 3: not conclusive, the machine was busy.
    """
    from autogreen.bundle import verify as verify_bundle

    print(verify_bundle(folder, native_code=trust_native_code).summary())


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
