"""The command line: picks files and prints; it holds no knobs of its own. All of it is also plain Python.

searching   sweep, measure, remeasure, apply
looking     front, report, compare, sync, ui
shipping    export, convert, verify, check, register, promote
machine     kernels, doctor, list
"""

import sys

from autogreen.cli import looking, machine, searching, shipping
from autogreen.cli.app import app
from autogreen.errors import AutogreenError, NotConclusiveError
from autogreen.outcome import EXIT_CODES

__all__ = ["app", "looking", "machine", "main", "searching", "shipping"]
STOPPED = 130  # by Ctrl-C, as shells have it


def main() -> None:
    """Entry point: one clear line on stderr for what users can mend; `--debug` shows the traceback. Exit codes:
    `autogreen.outcome`."""
    try:
        app()
    except NotConclusiveError as error:
        _fail(str(error), EXIT_CODES["inconclusive"], kind="")
    except AutogreenError as error:
        _fail(str(error))
    except OSError as error:
        _fail(f"{error.filename or 'a file'}: {error.strerror or error}.")
    except SystemExit as stop:
        if stop.code == STOPPED:
            print("stopped. Nothing is lost: the same command goes on where it was.", file=sys.stderr)
        raise


def _fail(message: str, code: int = 1, kind: str = "error: ") -> None:
    if "--debug" in sys.argv:
        raise
    print(f"{kind}{message}", file=sys.stderr)
    sys.exit(code)
