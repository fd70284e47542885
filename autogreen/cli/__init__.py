"""The command line: picks files and prints; it holds no knobs of its own. All of it is also plain Python.

searching   sweep, measure
looking     front, compare, sync, ui
shipping    export, verify
machine     kernels, doctor, list
"""

import sys

import typer

from autogreen.cli import looking, machine, searching, shipping
from autogreen.cli.app import app
from autogreen.errors import AutogreenError, NotConclusiveError

__all__ = ["app", "looking", "machine", "main", "searching", "shipping"]
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
