"""The mirror of a sweep that runs: filled by a process of its own, which nothing that is measured waits for.

    sweep                                    worker
    -----                                    ------
    starts it                                waits until the references are measured
    evaluates, measures, tells  -- study.db -->  every few seconds: what is new goes to the server, when nobody measures
    "finish"                    -- stdin ----->  the rest, once more
    prints the link             <-- stdout ----  what came of it, or why nothing did

Before each request it asks whether somebody on this machine measures, and waits as long; it holds no lease itself. It
rests twenty times as long as its last pass took, and longer after each failure. Its joules are on no trial's bill:
that counts the worker's processes, where the meter can tell processes apart. It ends with the sweep, in whatever way
that ends.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

from autogreen.errors import TrackingError


class Background:
    """The sweep's end of it. A context manager; leaving it ends the process.

    folder: of the study, `runs/NAME`; it need not be there yet. uri: as of `sync`.
    """

    def __init__(self, folder: Path, uri: str | None) -> None:
        self._command = [sys.executable, "-m", "autogreen.tracking.worker", str(folder)]
        self._command += [] if uri is None else ["--uri", uri]
        self._process: subprocess.Popen[str]

    def __enter__(self) -> "Background":
        self._complaints = tempfile.TemporaryFile("w+", errors="replace")  # a pipe that nobody reads would fill up
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._complaints}
        # a session of its own: Ctrl-C is the sweep's, which then closes the pipe
        self._process = subprocess.Popen(self._command, text=True, start_new_session=True, **pipes)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.kill()
        self._process.communicate()
        self._complaints.close()

    def finish(self, limit_s: float) -> str:
        """The sweep is done: wait for the rest of the mirror, but not long; return the link to the view.

        Raises:
            TrackingError: the server failed, or is not done after `limit_s` seconds.
        """
        try:
            told, _ = self._process.communicate("finish\n", timeout=limit_s)
            found = json.loads(told)
        except subprocess.TimeoutExpired:
            raise TrackingError(f"MLflow is not filled yet after {limit_s:.0f} s.") from None
        except (OSError, ValueError):
            self._complaints.seek(0)
            last = (self._complaints.read().strip().splitlines() or [f"exit status {self._process.poll()}"])[-1]
            raise TrackingError(f"the process that fills MLflow ended early ({last}).") from None
        if "error" in found:
            raise TrackingError(found["error"])
        return str(found["link"])
