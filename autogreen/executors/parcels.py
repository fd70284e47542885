"""Files that travel between a study and a device that does not see its folder: what a job needs, what it leaves.

    coordinator                                   node
    runs/NAME/artifacts/KEY, scores/KEY-*   --->  study/...   of the evaluations that the job names, no others
    runs/.cache                             --->  cache/      whatever is not there yet
    weights from another study              --->  given/
    the same places, each thing whole       <---  whatever the job made

They go in pieces, so that an artifact of any size fits through.
"""

import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from autogreen.executors import Job
from autogreen.files import whole

PIECE_BYTES = 1 << 26

Stamp = tuple[int, int]  # bytes, time of the last change


def stamp(path: Path) -> Stamp:
    """What tells two versions of a file apart."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def files(folder: Path) -> dict[str, Path]:
    """Every file below, by its name from there. What is still being written begins with a dot, and is left out."""
    found = ((path.relative_to(folder), path) for path in sorted(folder.rglob("*")) if path.is_file())
    return {name.as_posix(): path for name, path in found if not any(part.startswith(".") for part in name.parts)}


class Parcels:
    """What of a study lies at one device. study, cache: folders here. there: the device's folder. call: runs a method
    of its `Relay`, by name."""

    def __init__(self, study: Path, cache: Path, there: Path, call: Callable[..., Any]) -> None:
        self._study, self._cache, self._there, self._call = study, cache, there, call
        self._sent: dict[str, Stamp] = {}

    def given(self, weights: Path | None) -> Path | None:
        """Send a file of weights from wherever it is; return where it lies there."""
        if weights is None:
            return None
        name = f"given/{hashlib.sha256(str(weights).encode()).hexdigest()[:16]}{weights.suffix}"
        self._send({name: weights})
        return self._there / name

    def send(self, job: Job) -> Job:
        """Send what a job needs and is not there as it is here; return the job with the paths of there.

        Raises:
            OSError: it cannot be read here.
        """
        needed = {
            f"study/{path.relative_to(self._study).as_posix()}": path
            for key in _keys(job)
            for path in (
                *files(self._study / "artifacts" / key).values(),
                *(self._study / "scores").glob(f"{key}-*.npz"),
            )
        }
        self._call("keep", set(needed))
        self._sent = {name: sent for name, sent in self._sent.items() if name in needed or name[:6] != "study/"}
        self._send({**{f"cache/{name}": path for name, path in files(self._cache).items()}, **needed})
        request = job.arguments.get("request")
        if request is None or request.weights is None:
            return job
        request = replace(request, weights=self.given(request.weights))
        return replace(job, arguments={**job.arguments, "request": request})

    def fetch(self) -> None:
        """Bring what a job left, and put it in place: an artifact as one thing, like any other file.

        Raises:
            OSError: it cannot be written here.
        """
        artifacts: dict[str, list[str]] = {}
        for name in self._call("left"):
            if name.startswith("study/artifacts/"):
                artifacts.setdefault(name.split("/")[2], []).append(name)
                continue
            with whole(self._here(name)) as partial:
                self._receive(name, partial)
            self._sent[name] = stamp(self._here(name))
        for key, names in artifacts.items():
            folder = self._study / "artifacts" / key
            partial = folder.with_name(f".{key}.{os.getpid()}")
            try:
                for name in names:
                    self._receive(name, partial / name.removeprefix(f"study/artifacts/{key}/"))
                shutil.rmtree(folder, ignore_errors=True)
                partial.rename(folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
            self._sent |= {name: stamp(self._here(name)) for name in names}

    def _here(self, name: str) -> Path:
        place, _, rest = name.partition("/")
        return {"study": self._study, "cache": self._cache}[place] / rest

    def _send(self, wanted: dict[str, Path]) -> None:
        for name, path in wanted.items():
            version = stamp(path)
            if self._sent.get(name) == version:
                continue
            with path.open("rb") as file:
                self._call("write", name, file.read(PIECE_BYTES), True)
                while piece := file.read(PIECE_BYTES):
                    self._call("write", name, piece, False)
            self._sent[name] = version

    def _receive(self, name: str, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            while piece := self._call("read", name, file.tell()):
                file.write(piece)


def _keys(job: Job) -> set[str]:
    """Of the evaluations whose artifacts and scores a job reads."""
    request, evaluation = job.arguments.get("request"), job.arguments.get("evaluation")
    named = (
        job.arguments.get("reference"),
        None if request is None else request.reference,
        None if evaluation is None else evaluation.key,
    )
    return {key for key in named if key is not None}
