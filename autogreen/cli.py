"""The command line: picks files and prints; it holds no knobs of its own. All of it is also plain Python."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from autogreen.errors import AutogreenError, ConfigError, NotConclusiveError

app = typer.Typer(
    name="autogreen",
    help="AutoML that measures: search compression policies by quality and measured energy.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
Runs = Annotated[Path, typer.Option(help="Folder that holds the studies.", envvar="AUTOGREEN_RUNS")]
RUNS = Path("runs")
NOT_CONCLUSIVE = 3  # exit code of a verification that proved nothing, neither way


def main() -> None:
    """Entry point: one clear line on stderr for what users can mend; `--debug` shows the traceback."""
    try:
        app(standalone_mode=False)
    except NotConclusiveError as error:
        _fail(str(error), NOT_CONCLUSIVE, kind="")
    except AutogreenError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        _fail("stopped. Nothing is lost: the same command goes on where it was.", 130)
    except typer.Abort:
        sys.exit(1)
    except typer.Exit as stop:
        sys.exit(stop.exit_code)
    except OSError as error:
        _fail(f"{error.filename or 'a file'}: {error.strerror or error}.")
    except Exception as error:
        import click

        if not isinstance(error, click.ClickException):
            raise
        error.show()
        sys.exit(error.exit_code)


def _fail(message: str, code: int = 1, kind: str = "error: ") -> None:
    if "--debug" in sys.argv:
        raise
    print(f"{kind}{message}", file=sys.stderr)
    sys.exit(code)


@app.callback()
def _options(debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False) -> None:
    pass


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

    overrides = [*(set_ or ())]
    overrides += [f"budget.trials={trials}"] if trials is not None else []
    overrides += [f"seed={seed}"] if seed is not None else []
    loaded = experiments.load(experiment, tuple(overrides))
    cache = runs / ".cache"
    if dry_run:
        _print_json(plan(loaded, runs / f".{loaded.name}-dry-run", cache))
        return
    folder = runs / loaded.name
    if fresh:
        Store.discard(folder)
    _follow(run(loaded, folder, cache), loaded.budget.trials)
    front = Front.of(Store.open(folder).results())
    _show(front)
    _mirror(front, folder, loaded.tracking)
    print(f"\nNext: autogreen export {loaded.name} --pick knee --to bundle && autogreen verify bundle")


@app.command()
def front(
    name: str,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write the interactive page to this file.")] = None,
    runs: Runs = RUNS,
) -> None:
    """Show the front of a study."""
    from autogreen.front import Front
    from autogreen.store import Store

    found = Front.of(Store.open(runs / name).results())
    if html is not None:
        from autogreen.page import write_page

        write_page(found, html)
    if json:
        _print_json(found.to_json())
    else:
        _show(found)


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

    Exit code 0: what could be checked holds; 1: something does not; 3: not conclusive, the machine was busy.
    """
    from autogreen.bundle import verify as verify_bundle

    print(verify_bundle(folder).summary())


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
    _follow(run(one, runs / name, runs / ".cache"), 1)
    _show(Front.of(Store.open(runs / name).results()))


@app.command()
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="A bundle, or STUDY:RULE (baseline, plain, knee, an id).")] = "",
    b: Annotated[str, typer.Argument(metavar="B", help="The same.")] = "",
    protocol: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="Change the protocol.")] = None,
    record: Annotated[Path | None, typer.Option(help="Write every reading to this file.")] = None,
    replay: Annotated[Path | None, typer.Option(help="Judge a recorded comparison again; measure nothing.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    runs: Runs = RUNS,
) -> None:
    """Measure two programs in turns; tell which takes less energy, and how sure that is."""
    from autogreen import comparison

    changes = _changes(protocol)
    if (replay is None) != bool(a and b) or (replay is not None and (a or record)):
        raise ConfigError("name two programs, A and B, to measure; or --replay FILE alone to judge a recording again.")
    if replay is not None:
        found = comparison.replay(replay, changes)
    else:
        found = comparison.compare(a, b, runs=runs, changes=changes, record=record)
    if json:
        _print_json(found.to_json())
    else:
        print(found.summary())


@app.command()
def kernels(
    experiment: Annotated[
        Path | None, typer.Option("--experiment", "--task", metavar="EXPERIMENT.yaml", help="Ask its model's layers.")
    ] = None,
    shape: Annotated[
        list[str] | None, typer.Option(metavar="INPUTSxOUTPUTS", help="A layer; 64x128x3x3 is a convolution.")
    ] = None,
    rows: Annotated[list[str] | None, typer.Option(metavar="N,N", help="Rows of its matrix product.")] = None,
    scheme: Annotated[list[str] | None, typer.Option(help="A scheme; by default all that run here.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda:N.")] = None,
    protocol: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="Change the protocol.")] = None,
    again: Annotated[bool, typer.Option(help="Measure what is known once more.")] = False,
    intervals: Annotated[bool, typer.Option(help="Show the 95 % intervals in the table.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write the figures to this file.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a heat map to this file.")] = None,
    runs: Runs = RUNS,
) -> None:
    """Measure which scheme saves how much on this device, at which layer shape and batch; searches use it."""
    from contextlib import closing

    from autogreen.kernels import session, write
    from autogreen.kernels.asking import understand
    from autogreen.kernels.page import write_page
    from autogreen.kernels.table import figure, heading, reading, remarks, table

    console, cache = _console(), runs / ".cache"
    asked = understand(
        experiment,
        shapes=shape or (),
        rows=rows or (),
        schemes=scheme or (),
        device=device,
        changes=_changes(protocol),
        runs=runs,
    )
    for note in asked.notes:
        console.print(f"note: {note}", highlight=False, soft_wrap=True)
    known = session.known(asked.here, cache)
    todo = session.missing(known, asked.cases, again=again)
    if todo:
        about = session.forecast_s(todo, asked.protocol) / 60
        before = f"{len(asked.cases) - len(todo)} of {len(asked.cases)} cells are known; " if not again else ""
        said = f"{before}measuring {len(todo)}, about {about:.0f} min. Energy of: {asked.here.boundary}"
        console.print(said, highlight=False, soft_wrap=True)
        bench = session.in_a_process(asked.here.device, asked.meter)
        with closing(session.measure(todo, known, cache=cache, protocol=asked.protocol, bench=bench)) as steps:
            for step in steps:
                known, cell = step.kernels, step.cell
                told = figure(cell, intervals=True) if cell.ratio else "no figure"
                left = f", about {step.left_s / 60:.0f} min left" if step.left_s else ""
                console.print(f"{step.done}/{step.total} {cell.case}: {told}{left}", highlight=False, soft_wrap=True)
    found = known.only(asked.cases)
    console.print(heading(found), style="bold", highlight=False, soft_wrap=True)
    console.print(table(found, intervals=intervals))
    for remark in (reading(found), *remarks(found)):
        console.print(remark, highlight=False, soft_wrap=True)
    if json is not None:
        write(found, json)
    if html is not None:
        write_page(found, html)


@app.command()
def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda:N.")] = "auto",
    floor: Annotated[bool, typer.Option(help="Measure what work costs here at least; 10 to 20 s.")] = False,
    runs: Runs = RUNS,
) -> None:
    """Tell what this machine can measure, what disturbs measuring now, and what to do about it."""
    from autogreen.doctor import examine

    found = examine(device, cache=runs / ".cache", measure_floor=floor)
    if json:
        _print_json(found.to_json())
    else:
        _console().print(found.table())


@app.command("list")
def list_(family: Annotated[str | None, typer.Argument(help="tasks, techniques, engines, ...")] = None) -> None:
    """List the plug-ins of every family, or of one."""
    import inspect

    from autogreen.engines import ENGINES
    from autogreen.executors import EXECUTORS
    from autogreen.meters import METERS
    from autogreen.registry import nearest
    from autogreen.tasks import TASKS
    from autogreen.techniques import TECHNIQUES

    families = {"tasks": TASKS, "techniques": TECHNIQUES, "engines": ENGINES, "meters": METERS, "executors": EXECUTORS}
    if family is not None and family not in families:
        raise ConfigError(f"unknown family {family!r}.{nearest(family, families)} Known: {', '.join(families)}.")
    for title, table in families.items():
        if family in (None, title):
            print(title)
            for name in table:
                first = (inspect.getdoc(table[name]) or "").partition("\n")[0]
                print(f"  {name:14s} {first}")


@app.command()
def ui(
    port: Annotated[int, typer.Option(help="Port on this machine.")] = 5000,
    runs: Runs = RUNS,
) -> None:
    """Open MLflow on the studies' own database."""
    import subprocess

    database = runs / "mlflow.db"
    if not database.exists():
        raise ConfigError(f"{database} does not exist yet; run `autogreen sweep EXPERIMENT.yaml` first.")
    print(f"http://127.0.0.1:{port}/#/experiments?workflowType=machine_learning  (Ctrl-C stops it)")
    command = ["server", "--backend-store-uri", f"sqlite:///{database}", "--host", "127.0.0.1", "--port", str(port)]
    subprocess.run([sys.executable, "-m", "mlflow", *command], check=False)


def _changes(protocol: list[str] | None) -> dict[str, Any]:
    """Changes of a protocol from texts KEY=VALUE."""
    from autogreen.schema import parse_yaml

    changes = {}
    for text in protocol or ():
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--protocol {text!r} is not of the form KEY=VALUE, for example max_windows=20.")
        changes[key] = parse_yaml(f"value: {value}", f"--protocol {key}")["value"]
    return changes


def _follow(steps: Iterator[Any], trials: int | None) -> None:
    """Show a search live on a terminal, as lines elsewhere."""
    console = _console()
    if not console.is_terminal:
        for step in steps:
            console.print(_line(step, trials), highlight=False, soft_wrap=True)
        return
    with _live(console) as update:
        for step in steps:
            if step.note:
                console.print(step.note, style="dim", highlight=False)
            update(_line(step, trials))


@contextmanager
def _live(console: Any) -> Iterator[Callable[[str], None]]:
    from rich.live import Live

    # drawn when something happened, not many times a second: drawing is load beside what is measured
    with Live(console=console, auto_refresh=False) as live:
        yield lambda text: live.update(text, refresh=True)


def _line(step: Any, trials: int | None) -> str:
    done = f"{step.trials}/{trials}" if trials else str(step.trials)
    left = ""
    if trials and step.trials > 2 and step.stage == "searching":
        left = f" · about {step.seconds / step.trials * (trials - step.trials) / 60:.0f} min left"
    return (
        f"{step.stage}: {done} trials, {step.measured} measured, front {step.front}, hypervolume "
        f"{step.hypervolume:.4f}, {step.energy_j:.0f} J, {step.seconds:.0f} s{left} {step.note}"
    ).rstrip()


def _show(front: Any) -> None:
    console = _console()
    console.print(front.table())
    for verdict in front.verdicts():
        console.print(verdict, highlight=False, soft_wrap=True)


def _mirror(front: Any, folder: Path, uri: str | None) -> None:
    from autogreen.page import write_page
    from autogreen.tracking import sync

    page = folder / "front.html"
    try:
        write_page(front, page)
        print(f"\nThe front as a page: {page}")
    except ModuleNotFoundError as error:
        later = f"`autogreen front {folder.name} --html FILE` writes it later"
        print(f"\nNo page, for {error.name} is not installed; {later}.")
    link = sync(front, uri=uri, folder=folder, timeout_s=60.0)
    if link:
        print(f"In MLflow: {link}")
    else:
        print("MLflow could not be reached; the study is complete without it.")


def _console() -> Any:
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 160)


def _print_json(data: Any) -> None:
    import json

    print(json.dumps(data, indent=2, allow_nan=False))


if __name__ == "__main__":
    main()
