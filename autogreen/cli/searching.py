"""Commands that evaluate policies."""

from pathlib import Path
from typing import Annotated, Any

import typer

from autogreen.cli.app import app
from autogreen.cli.printing import RUNS, Runs, follow, print_json, show, terminal
from autogreen.errors import TrackingError

MIRROR_S = 30.0  # that a finished sweep waits for a mirror that is being filled


@app.command()
def sweep(
    experiment: Annotated[Path, typer.Argument(metavar="EXPERIMENT.yaml")],
    trials: Annotated[int | None, typer.Option(help="Budget of distinct policies.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the search.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key.")] = None,
    fresh: Annotated[bool, typer.Option(help="Delete the study of this name and begin anew.")] = False,
    dry_run: Annotated[bool, typer.Option(help="Run one trial; say what the sweep would do and cost.")] = False,
    runs: Runs = RUNS,
) -> None:
    """Search, or go on with, an experiment; print its front."""
    from autogreen import experiment as experiments
    from autogreen.front import Front
    from autogreen.plan import plan
    from autogreen.store import Store
    from autogreen.sweep import sweep as run
    from autogreen.tracking import Background

    overrides = [*(set_ or ())]
    overrides += [f"budget.trials={trials}"] if trials is not None else []
    overrides += [f"seed={seed}"] if seed is not None else []
    loaded = experiments.load(experiment, tuple(overrides))
    cache = runs / ".cache"
    if dry_run:
        print_json(plan(loaded, runs / f".{loaded.name}-dry-run", cache))
        return
    folder = runs / loaded.name
    if fresh:
        Store.discard(folder)
    with Background(folder, loaded.tracking) as mirror:
        follow(run(loaded, folder, cache), loaded.budget.trials)
        front = Front.of(Store.open(folder).results())
        show(front)
        _page(front, folder)
        _link(mirror, loaded.name, loaded.tracking)
    print(f"\nNext: autogreen export {loaded.name} --pick knee --to bundle && autogreen verify bundle")


@app.command()
def measure(
    experiment: Annotated[Path, typer.Argument(metavar="EXPERIMENT.yaml")],
    policy: Annotated[Path, typer.Option(help="A policy: a search space without holes.")],
    runs: Runs = RUNS,
) -> None:
    """Evaluate one policy on an experiment's task and workload, beside its references."""
    from dataclasses import replace

    from autogreen import experiment as experiments
    from autogreen.front import Front
    from autogreen.space import SearchSpace
    from autogreen.store import Store
    from autogreen.sweep import sweep as run

    loaded = experiments.load(experiment)
    space = SearchSpace.load(policy)
    space.policy()  # one policy, not a space
    name = f"{loaded.name}-{policy.stem}"
    one = replace(loaded, name=name, space=space, finalists=1)
    follow(run(one, runs / name, runs / ".cache"), 1)
    show(Front.of(Store.open(runs / name).results()))


@app.command()
def remeasure(
    name: str,
    as_: Annotated[str | None, typer.Option("--as", metavar="NEW", help="The new study; by default NAME-here.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key.")] = None,
    fresh: Annotated[bool, typer.Option(help="Delete the new study and begin it anew.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    runs: Runs = RUNS,
) -> None:
    """Measure the front of a study again on this machine, with the weights that it has; train nothing."""
    from autogreen.remeasure import remeasure as run
    from autogreen.remeasure import remeasured

    to = as_ or f"{name}-here"
    steps = run(name, runs, to=to, overrides=tuple(set_ or ()), fresh=fresh)
    if json:
        for _ in steps:
            pass
        print_json(remeasured(to, runs).to_json())
        return
    follow(steps, None)
    terminal().print(remeasured(to, runs).table())
    print(f"\nNext: autogreen export {to} --pick knee --to bundle && autogreen verify bundle")


@app.command()
def apply(
    policy: Annotated[str, typer.Argument(metavar="POLICY", help="A policy.yaml, a bundle, or STUDY:RULE.")],
    experiment: Annotated[Path, typer.Option(help="Whose task, workload and protocol.")],
    to: Annotated[Path, typer.Option(help="Folder of the new bundle; must not exist.")],
    weights: Annotated[Path | None, typer.Option(help="New weights of the same network, as safetensors.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key.")] = None,
    runs: Runs = RUNS,
) -> None:
    """Apply a policy to new weights: train, measure beside their own reference, judge and export, as a sweep does."""
    from autogreen import api
    from autogreen import experiment as experiments
    from autogreen.applying import applied, origin
    from autogreen.bundle.write import refuse_taken
    from autogreen.front import Front
    from autogreen.store import Store
    from autogreen.sweep import sweep as run

    refuse_taken(to)
    loaded = experiments.load(experiment, tuple(set_ or ()))
    one = applied(origin(policy, runs), loaded, weights=weights, runs=runs)
    folder = runs / one.name
    follow(run(one, folder, runs / ".cache"), 1)
    front = Front.of(Store.open(folder).results())
    show(front)
    api.export(front, pick="cheapest", to=to, runs=runs)
    print(f"{to}: {one.name}. Next: autogreen check {to}")


def _page(front: Any, folder: Path) -> None:
    from autogreen.page import write_page

    page = folder / "front.html"
    try:
        write_page(front, page)
        print(f"\nThe front as a page: {page}")
    except ModuleNotFoundError as error:
        later = f"`autogreen front {folder.name} --html FILE` writes it later"
        print(f"\nNo page, for {error.name} is not installed; {later}.")


def _link(mirror: Any, name: str, uri: str | None) -> None:
    try:
        link = mirror.finish(MIRROR_S)
    except TrackingError as error:
        print(f"No link to MLflow: {error} The study is whole; `autogreen sync {name}` fills the mirror.")
    else:
        print(f"The front in MLflow: {link}" + ("" if uri else f"\n(`autogreen ui {name}` serves and opens it)"))
