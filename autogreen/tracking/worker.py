"""The process beside a sweep that fills its mirror (see `background`): follows the study until told to finish."""

import argparse
import json
import os
import sys
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path

from autogreen.errors import AutogreenError, StudyError, TrackingError
from autogreen.front import Front
from autogreen.measure import lease_is_held
from autogreen.store import Store
from autogreen.tracking.connection import Server, alone, patience
from autogreen.tracking.fill import Mirror
from autogreen.tracking.mirror import identity

REQUEST_S = 5.0  # of one request
LOOK_S = 5.0  # between two looks at the study
REST = 20  # times as long as the last pass took
LONGEST_S = 300.0  # between two tries at a server that fails
NICE = 10


class Follower:
    """One study, one mirror."""

    def __init__(self, folder: Path, server: Server) -> None:
        self._folder, self._server = folder, server
        self._finishing, self._held = threading.Event(), ExitStack()
        self._store: Store | None = None
        self._mirror: Mirror | None = None

    def listen(self) -> None:
        """In a thread: told to finish, or left alone by a sweep that is no more."""
        for line in sys.stdin:
            if line.strip() == "finish":
                self._finishing.set()
                return
        os._exit(0)

    def run(self) -> dict[str, str]:
        """Follow the study until told to finish; return what came of it."""
        seen: object = None
        failed: TrackingError | None = None
        rest_s = LOOK_S
        while not self._finishing.wait(rest_s):
            with suppress(StudyError):  # not begun yet
                found = self._look()
                if found == seen:
                    continue
                began = time.monotonic()
                try:
                    self._fill(settle=False)
                    seen, failed = found, None
                    rest_s = max(LOOK_S, REST * (time.monotonic() - began))
                except TrackingError as error:
                    failed, rest_s = error, min(2 * rest_s, LONGEST_S)
        if failed is not None:  # nobody waits for a server that was dead a moment ago
            return {"error": str(failed)}
        try:
            self._look()
            return {"link": self._fill(settle=True)}
        except AutogreenError as error:
            return {"error": str(error)}

    def _look(self) -> object:
        """What the study holds, as far as a change of it matters."""
        self.pause()
        if self._store is None:
            if not any(self._folder.glob("scores/*")):  # before its first score a study may still be in the making
                raise StudyError(f"study {self._folder.name!r} has not begun.")
            self._store = Store.open(self._folder)
        done = sum(trial.state.is_finished() for trial in self._store.trials())
        told = [len(self._store.get(name, ())) for name in ("references", "controls", "published", "seeds")]
        return done, told

    def _fill(self, *, settle: bool) -> str:
        assert self._store is not None
        front = Front.of(self._store.results())
        study = identity(front)
        # held from pass to pass: who else wanted to fill it would make runs that are not known here
        if self._mirror is None:
            if not self._held.enter_context(alone(study, self._server)):
                self._held.close()
                raise TrackingError("another process fills this mirror now.")
            self._mirror = Mirror(self._server, study, pause=self.pause)
        try:
            return self._mirror.fill(front, settle=settle).link
        except TrackingError:
            self._mirror.forget()
            raise

    @staticmethod
    def pause() -> None:
        while lease_is_held():
            time.sleep(0.1)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--uri")
    asked = parser.parse_args()
    os.nice(NICE)
    follower = Follower(asked.folder, Server(uri=asked.uri, runs=asked.folder.parent))
    threading.Thread(target=follower.listen, daemon=True).start()
    follower.pause()  # loading MLflow is load too
    try:
        with patience(REQUEST_S):
            told = follower.run()
    except TrackingError as error:
        told = {"error": str(error)}
    sys.stdout.write(json.dumps(told))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
