"""A worker on every device of a Ray cluster, each device exclusively its own.

    coordinator                          node
    Ray.submit(job)  ---files, job--->   Relay  --->  the worker process that `local` has
    Ray.next_done()  <---Done, files---

A device is what one policy at a time has to itself: the processor of a node, or as many GPUs of one node as the largest
policy of the search occupies, so that trials stay side by side where a policy has several ranks.

The device that stands first is the study's home: references, probes and finalists are measured there, because whatever
is asked alone takes the first free slot. Trials take any. Each is measured beside the reference on its own device, so
its ratio is to that; all devices are of one model, and every node has the coordinator's versions, or the search is
refused. A device that is lost costs the job that it had. Another takes its place where the cluster has one left.
"""

import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import cloudpickle

from autogreen import hardware
from autogreen.errors import AutogreenError, ConfigError, EvaluationError, LostError, RefusedError, StudyError
from autogreen.executors import Done, Job, translated
from autogreen.executors.local import GRACE_S
from autogreen.executors.nodes import (
    Place,
    places,
    refuse_numbered,
    refuse_other,
    refuse_too_large,
    refuse_too_many,
    versions,
)
from autogreen.executors.parcels import Parcels
from autogreen.executors.relay import Relay, by_number
from autogreen.workbench import Setup

ANSWER_S = 15.0  # for a cluster to be there
START_S = 60.0  # for a device to be ours
PIECE_S = 120.0  # for a piece of a file to go one way
DEAD_S = 20.0  # in which a cluster knows that a node is gone
CLOSE_S = 10.0

CONNECT = "import ray, sys; ray.init(sys.argv[1], configure_logging=False, log_to_driver=False)"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """address: `auto`, the cluster that this machine is a node of, or its HOST:PORT. devices: how many to take, 1
    or more, each with all GPUs that one policy may occupy; None: all there are."""

    address: str = "auto"
    devices: int | None = None

    def __post_init__(self) -> None:
        if not self.address or "://" in self.address:
            raise ConfigError(f"address must be auto or HOST:PORT, not {self.address!r}")
        if self.devices is not None and self.devices < 1:
            raise ConfigError(f"devices must be 1 or more, not {self.devices}")


@dataclass(kw_only=True)
class Seat:
    """A device that is ours. boards: its GPUs, by number. answer: what comes back for the job, in Ray's terms."""

    place: Place
    relay: Any
    boards: tuple[str, ...] = ()
    parcels: Parcels = field(init=False)
    job: Job | None = None
    answer: Any = None
    began: float = 0.0

    @property
    def left_s(self) -> float:
        """Seconds until the relay, which stops the job itself when its time is up, counts as stuck."""
        if self.job is None or self.job.limit_s is None:
            return float("inf")
        return self.began + self.job.limit_s + 3 * GRACE_S - time.monotonic()


class Ray:
    """A worker on every device of a Ray cluster."""

    settings: ClassVar[type] = Settings

    def __init__(self, setup: Setup, *, address: str, devices: int | None) -> None:
        refuse_numbered(setup)
        self._setup = setup
        self._ray, self._ours = _connected(address)
        self._seats: list[Seat] = []
        self._failed: deque[Done] = deque()
        self._begun = 0
        try:
            self._own = {**versions()(), **hardware.identity(hardware.describe(setup.device))}
            refuse_too_large(self._ray.nodes(), setup, address)
            there = self._places()
            refuse_too_many(devices, there, address)
            self._take(there[:devices])
        except BaseException:
            self.close()
            raise

    @property
    def slots(self) -> int:
        return len(self._seats)

    def submit(self, job: Job) -> None:
        seat = next(seat for seat in self._seats if seat.job is None)
        seat.job, seat.began = job, time.monotonic()
        try:
            seat.answer = seat.relay.run.remote(cloudpickle.dumps(seat.parcels.send(job)))
        except Exception as error:  # noqa: BLE001 - what it means is told apart there
            self._failed.append(self._failure(seat, error))

    def next_done(self) -> Done:
        while not self._failed:
            busy = {seat.answer: seat for seat in self._seats if seat.job is not None}
            left_s = max(0.0, min(seat.left_s for seat in busy.values()))
            ready, _ = self._ray.wait(list(busy), timeout=None if left_s == float("inf") else left_s)
            if ready:
                return self._finished(busy[ready[0]])
            stuck = [seat for seat in busy.values() if seat.left_s <= 0]
            self._failed += [self._failure(seat, TimeoutError()) for seat in stuck]
        return self._failed.popleft()

    def close(self) -> None:
        if not self._ray.is_initialized():
            return
        closing = [seat.relay.close.remote() for seat in self._seats]
        if closing:
            self._ray.wait(closing, num_returns=len(closing), timeout=CLOSE_S)
        for seat in self._seats:
            self._ray.kill(seat.relay)
        self._seats = []
        if self._ours:
            self._ray.shutdown()

    # -- what a job came to --------------------------------------------------------------------------------------

    def _finished(self, seat: Seat) -> Done:
        job = seat.job
        assert job is not None
        try:
            done: Done = self._ray.get(seat.answer)
            seat.parcels.fetch()
        except Exception as error:  # noqa: BLE001 - what it means is told apart there
            return self._failure(seat, error)
        seat.job = None
        if isinstance(done.error, EvaluationError | StudyError):
            _name(seat.place, done.error)
        return replace(done, job=job)

    def _failure(self, seat: Seat, error: Exception) -> Done:
        """What became of a job without an answer, and of its device."""
        job, seat.job = seat.job, None
        assert job is not None
        duration_s = time.monotonic() - seat.began
        if isinstance(error, self._ray.exceptions.RayTaskError):
            told = translated(error.cause)
        elif isinstance(error, self._ray.exceptions.RayError | TimeoutError):
            told = self._lose(seat, error)
        else:
            told = translated(error)
        return Done(job=job, error=_name(seat.place, told), duration_s=duration_s)

    def _lose(self, seat: Seat, error: Exception) -> AutogreenError:
        """Give a device up, and take another where there is one."""
        self._ray.kill(seat.relay)
        self._seats.remove(seat)
        end = time.monotonic() + DEAD_S
        while alive := seat.place.node in {place.node for place in self._places()}:
            # Ray cannot tell at once whether only its way there is broken
            if not isinstance(error, self._ray.exceptions.ActorUnavailableError) or time.monotonic() > end:
                break
            time.sleep(0.2)
        why = "its process died" if alive else "its node died"
        if isinstance(error, TimeoutError):
            why = "it does not answer"
        taken = {other.place for other in self._seats}
        for place in [place for place in self._places() if place not in taken]:
            try:
                self._take([place])
            except RefusedError:
                continue
            return LostError(f"the device was lost ({why}); one at {place.name} takes its place.")
        if self._seats:
            return LostError(f"the device was lost ({why}); the search goes on with {len(self._seats)}.")
        return StudyError(
            f"the last device of the cluster was lost ({why}). What was told before is safe: start nodes again and run "
            "the same command."
        )

    # -- devices -------------------------------------------------------------------------------------------------

    def _places(self) -> list[Place]:
        return places(self._ray.nodes(), self._ray.get_runtime_context().get_node_id(), self._setup)

    def _take(self, wanted: Sequence[Place]) -> None:
        """Make devices ours, once it is sure that they and their nodes are as the coordinator's.

        Raises:
            RefusedError: other versions, another model, not free, or a node that starts no worker.
        """
        seats: list[Seat] = []
        try:
            nodes = {place.node: place for place in wanted}
            asked = [self._ask(versions(), node) for node in nodes]
            for place, answer in zip(nodes.values(), asked, strict=True):
                refuse_other(place, self._ray.get(answer, timeout=START_S), self._own)
            seats += [Seat(place=place, relay=self._relay(place)) for place in wanted]
            for seat in seats:
                self._begin(seat)
            described = [seat.relay.run.remote(cloudpickle.dumps(Job(call="describe"))) for seat in seats]
            for seat, done in zip(seats, self._ray.get(described), strict=True):
                if done.error is not None:
                    raise RefusedError(f"{seat.place.name}: {done.error}")
                refuse_other(seat.place, hardware.identity(done.value), self._own)
        except BaseException as error:
            for seat in seats:
                self._ray.kill(seat.relay)
            if isinstance(error, self._ray.exceptions.RayError):
                names = ", ".join(dict.fromkeys(place.name for place in wanted))
                raise RefusedError(f"no worker could be started at {names}: {_first_line(error)}.") from error
            raise
        # boards of a node by their number: the first is then the same one the next time
        order = {place.node: number for number, place in enumerate(wanted)}
        self._seats += sorted(seats, key=lambda seat: (order[seat.place.node], [*map(by_number, seat.boards)]))

    def _ask(self, function: Any, node: str) -> Any:
        return self._ray.remote(function).options(num_cpus=0, scheduling_strategy=self._bound(node)).remote()

    def _relay(self, place: Place) -> Any:
        options = {
            "num_cpus": place.cpus,
            "num_gpus": place.gpus,
            "max_concurrency": 2,  # so that it can be told to stop while it works
            "scheduling_strategy": self._bound(place.node),
        }
        path, threads = list(filter(None, sys.path)), os.environ.get("OMP_NUM_THREADS")
        return self._ray.remote(Relay).options(**options).remote(path, str(Path.cwd()), threads)

    def _bound(self, node: str) -> Any:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        return NodeAffinitySchedulingStrategy(node, soft=False)

    def _begin(self, seat: Seat) -> None:
        try:
            folder, seat.boards = self._ray.get(seat.relay.place.remote(), timeout=START_S)
        except self._ray.exceptions.GetTimeoutError:
            raise RefusedError(
                f"{seat.place.name}: no device was free within {START_S:.0f} s; other jobs of the cluster hold it. "
                "Wait for them, or take fewer (executor.ray.devices)."
            ) from None

        def call(method: str, *arguments: Any) -> Any:
            return self._ray.get(getattr(seat.relay, method).remote(*arguments), timeout=PIECE_S)

        there, own = Path(folder), self._setup
        seat.parcels = Parcels(own.folder, own.cache, there, call)
        setup = replace(own, folder=there / "study", cache=there / "cache", weights=seat.parcels.given(own.weights))
        self._begun += 1
        call("begin", cloudpickle.dumps(setup), own.device, f"worker-{self._begun}.log")


def _name(place: Place, error: AutogreenError) -> AutogreenError:
    """Say where it happened."""
    error.args = (f"{place.name}: {error}",)
    return error


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(".")


def _connected(address: str) -> tuple[Any, bool]:
    """Ray, connected to a cluster, and whether that was our doing: a program that is connected already stays so.

    Raises:
        RefusedError: Ray is missing, or no cluster answers there.
    """
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".*")  # what nodes print would stand between our lines
    try:
        import ray
    except ImportError as error:
        raise RefusedError(f"the executor ray needs Ray ({error}): pip install 'autogreen[ray]'.") from error
    if ray.is_initialized():
        return ray, False
    # where nobody answers, connecting takes two minutes and then ends the process: so another process tries first
    hint = "Start one (ray start --head), join it from this machine (ray start --address=HOST:PORT), or name another."
    command = [sys.executable, "-P", "-c", CONNECT, address]
    try:
        tried = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_S, check=False)
    except subprocess.TimeoutExpired:
        raise RefusedError(f"no Ray cluster answers at {address!r} within {ANSWER_S:.0f} s. {hint}") from None
    if tried.returncode:
        why = " ".join(tried.stderr.rpartition("Error: ")[2].split())[:400]
        raise RefusedError(f"no Ray cluster can be used at {address!r}: {why} {hint}")
    ray.init(address, configure_logging=False, log_to_driver=False)
    return ray, True
