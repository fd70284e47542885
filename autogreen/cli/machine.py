"""Commands on this machine and on what autogreen knows."""

from pathlib import Path
from typing import Annotated

import typer

from autogreen.cli.app import app
from autogreen.cli.printing import RUNS, Runs, print_json, protocol_changes, terminal
from autogreen.errors import ConfigError


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

    console, cache = terminal(), runs / ".cache"
    asked = understand(
        experiment,
        shapes=shape or (),
        rows=rows or (),
        schemes=scheme or (),
        device=device,
        changes=protocol_changes(protocol),
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
        print_json(found.to_json())
    else:
        terminal().print(found.table())


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
