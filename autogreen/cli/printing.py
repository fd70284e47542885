"""What the commands share: how a search, a front and plain data are shown, and how `KEY=VALUE` is read."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from autogreen.errors import ConfigError

Runs = Annotated[Path, typer.Option(help="Folder that holds the studies.", envvar="AUTOGREEN_RUNS")]
TrustNativeCode = Annotated[bool, typer.Option("--trust-native-code", help="Run machine code that came with a bundle.")]
RUNS = Path("runs")


def protocol_changes(protocol: list[str] | None) -> dict[str, Any]:
    """Changes of a protocol from texts KEY=VALUE."""
    from autogreen.schema import parse_yaml

    changes = {}
    for text in protocol or ():
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--protocol {text!r} is not of the form KEY=VALUE, for example max_windows=20.")
        changes[key] = parse_yaml(f"value: {value}", f"--protocol {key}")["value"]
    return changes


def follow(steps: Iterator[Any], trials: int | None) -> None:
    """Show a search live on a terminal, as lines elsewhere."""
    console = terminal()
    if not console.is_terminal:
        for step in steps:
            console.print(_line(step, trials), highlight=False, soft_wrap=True)
        return
    with _live(console) as update:
        for step in steps:
            if step.note:
                console.print(step.note, style="dim", highlight=False)
            update(_line(step, trials))


def show(front: Any) -> None:
    console = terminal()
    console.print(front.table())
    for verdict in front.verdicts():
        console.print(verdict, highlight=False, soft_wrap=True)


def show_sides(sides: Any) -> None:
    from autogreen.table import sides_table

    console = terminal()
    console.print(sides_table(sides))
    for said in (sides.summary(), *sides.warnings()):
        console.print(said, highlight=False, soft_wrap=True)


def terminal() -> Any:
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 160)


def telling() -> Callable[[str], None]:
    """Says how far something is: on a terminal in one line that changes, elsewhere when something is new each 10 s."""
    import time

    console, last = terminal(), [float("-inf")]

    def tell(words: str) -> None:
        if console.is_terminal or time.monotonic() - last[0] >= 10:
            last[0] = time.monotonic()
            console.print(words, end="\r" if console.is_terminal else "\n", highlight=False, soft_wrap=True)

    return tell


def browse(link: str) -> None:
    """Open a link where there is a desktop to open it on."""
    import os
    import webbrowser

    if sys.platform == "darwin" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        webbrowser.open(link)


def print_json(data: Any) -> None:
    import json

    print(json.dumps(data, indent=2, allow_nan=False))


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
