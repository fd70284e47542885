"""The command line: picks files and prints; it holds no knobs of its own. All of it is also plain Python.

searching   sweep, measure, remeasure, apply
looking     front, report, compare, sync, ui
shipping    export, convert, verify, check, register, promote
machine     kernels, doctor, list
"""

import logging
import sys
import warnings

from autogreen.cli import looking, machine, searching, shipping
from autogreen.cli.app import app
from autogreen.errors import AutogreenError, NotConclusiveError
from autogreen.outcome import EXIT_CODES

__all__ = ["app", "looking", "machine", "main", "searching", "shipping"]
STOPPED = 130  # by Ctrl-C, as shells have it


def main() -> None:
    """Entry point: one clear line on stderr for what users can mend; `--debug` shows the traceback. Exit codes:
    `autogreen.outcome`."""
    _quiet()
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


def _quiet() -> None:
    """What torch and torchao say of themselves (a library for GPUs that are not here, their own deprecations) tells a
    user nothing; `--debug` shows it."""
    if "--debug" not in sys.argv:
        for name in ("torchao", "torch.utils._pytree"):
            logging.getLogger(name).setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", module=r"torch(ao)?(\.|$)")


def _fail(message: str, code: int = 1, kind: str = "error: ") -> None:
    if "--debug" in sys.argv:
        raise
    print(f"{kind}{message}", file=sys.stderr)
    sys.exit(code)
