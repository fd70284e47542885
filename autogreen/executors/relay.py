"""On a node of a cluster, in a process of its own: one device, a folder for it, and the worker that evaluates there.

The worker is the same as `local` has, so that a policy fares the same: a crash, memory that runs out, a limit of time.
When the relay is killed, the worker's process group goes too, compilers included.
"""

import fcntl
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import cloudpickle

from autogreen.executors import Done
from autogreen.executors.local import Worker
from autogreen.executors.parcels import PIECE_BYTES, Stamp, files, stamp


class Relay:
    """Built on the node. path: the coordinator's `sys.path`; a user's own modules are found where the node has them.
    working: its working folder, used where the node has it. threads: its OMP_NUM_THREADS, in place of the cluster's."""

    def __init__(self, path: Sequence[str], working: str, threads: str | None) -> None:
        known = [*sys.path, *(entry for entry in path if entry not in sys.path and Path(entry).exists())]
        sys.path[:] = [entry for entry in known if Path(entry).name != "thirdparty_files"]  # Ray's own psutil
        with suppress(OSError):
            os.chdir(working)
        os.environ.pop("OMP_NUM_THREADS", None)
        if threads is not None:
            os.environ["OMP_NUM_THREADS"] = threads
        boards = filter(None, os.environ.get("CUDA_VISIBLE_DEVICES", "").split(","))
        if given := sorted(boards, key=by_number):  # in any order, and the first is the one whose name a study keeps
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(given)
        self._boards = tuple(given)
        self._folder = _own_folder()
        for part in ("study/artifacts", "study/scores", "cache"):
            (self._folder / part).mkdir(parents=True)
        self._known: dict[str, Stamp] = {}
        self._worker: Worker | None = None

    def place(self) -> tuple[str, tuple[str, ...]]:
        """Its folder, and the boards that it was given: cuda:0 of the worker, cuda:1 and so on."""
        return str(self._folder), self._boards

    def begin(self, setup: bytes, device: str, log: str) -> None:
        """Take what every job needs. setup: pickled, with the folders of here. log: name of the worker's own output."""
        self._worker = Worker(setup, device, self._folder / "study" / log)

    def run(self, job: bytes) -> Done:
        """Do one job."""
        assert self._worker is not None
        self._worker.submit(cloudpickle.loads(job))
        return self._worker.next_done()

    def write(self, name: str, piece: bytes, first: bool) -> None:
        """Add a piece to a file, or begin it anew."""
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb" if first else "ab") as file:
            file.write(piece)
        self._known[name] = stamp(path)

    def left(self) -> list[str]:
        """Names of the files that were made or changed here since this was last asked; of an artifact all or none."""
        there = {
            f"{place}/{name}": stamp(path)
            for place in ("study", "cache")
            for name, path in files(self._folder / place).items()
        }
        changed = {_thing(name) for name, version in there.items() if self._known.get(name) != version}
        self._known |= there
        return [name for name in there if _thing(name) in changed]

    def read(self, name: str, offset: int) -> bytes:
        """A piece of a file; empty at its end."""
        with (self._folder / name).open("rb") as file:
            file.seek(offset)
            return file.read(PIECE_BYTES)

    def keep(self, names: set[str]) -> None:
        """Delete all other artifacts and scores, and what dead workers left of them."""
        study = self._folder / "study"
        for path in (*(study / "artifacts").rglob("*"), *(study / "scores").rglob("*")):
            if path.is_file() and path.relative_to(self._folder).as_posix() not in names:
                path.unlink()
        for folder in (study / "artifacts").iterdir():
            if not any(path.is_file() for path in folder.rglob("*")):
                shutil.rmtree(folder)

    def close(self) -> None:
        """Stop all work and remove the folder."""
        if self._worker is not None:
            self._worker.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def by_number(board: str) -> tuple[int, str]:
    """What boards are sorted by: their numbers, or their UUIDs."""
    return len(board), board


def _thing(name: str) -> str:
    """The artifact that a file belongs to, or the file itself."""
    return "/".join(name.split("/")[:3]) if name.startswith("study/artifacts/") else name


def _own_folder() -> Path:
    """A folder that is locked as long as this process lives. Those of processes that were killed are removed."""
    parent, prefix = Path(tempfile.gettempdir()), f"autogreen-device-{os.getuid()}-"
    for other in parent.glob(f"{prefix}*/lock"):
        with suppress(OSError), other.open("r+") as held:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(other.parent, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    lock = os.open(folder / ".lock", os.O_CREAT | os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    (folder / ".lock").rename(folder / "lock")  # seen by others only once it is held
    return folder
