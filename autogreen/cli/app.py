"""The application that commands add themselves to."""

from typing import Annotated

import typer

app = typer.Typer(
    name="autogreen",
    help="AutoML that measures: search compression policies by quality and measured energy.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def _options(debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False) -> None:
    pass
