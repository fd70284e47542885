"""Windows on NVIDIA boards: the process that reads them is asked, and what it saw beside the joules is put in words."""

import itertools
import json
import os
import select
import subprocess
import sys
import time
import weakref
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

from autogreen.errors import MeterError
from autogreen.meters import nvml_sidecar
from autogreen.meters.steps import Mark

START_S = 30.0  # importing pynvml and starting NVML, on a machine that is busy
ANSWER_S = 10.0  # a read takes milliseconds; who needs longer is stuck
END_S = 5.0  # in which a killed process is gone, unless it is stuck in its driver
CALIBRATE_S = 2.0  # twenty steps of 100 ms, four of 500 ms

# Bits of nvmlDeviceGetCurrentClocksEventReasons (NVML API Reference Guide, "NvmlClocksEventReasons"); the others are
# settings, not disturbances.
REASONS = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "thermal slowdown",
    0x40: "thermal slowdown",
    0x80: "power brake",
}


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What a board told at one time. None: it does not tell."""

    at_s: float
    power_w: float | None
    memory_w: float | None
    reasons: int | None
    clock_mhz: float | None
    temperature_c: float | None


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What was seen of one window, on every board in turn.

    began_s, ended_s: of the work, monotonic. marks, edges: see `steps`. limits_w, pids: at the beginning and at the
    end; the processes only of boards that told them both times.
    """

    began_s: float
    ended_s: float
    marks: tuple[tuple[Mark, ...], ...]
    edges: tuple[tuple[Mark, ...], ...]
    samples: tuple[tuple[Sample, ...], ...]
    limits_w: tuple[tuple[float | None, ...], tuple[float | None, ...]]
    pids: tuple[frozenset[int], frozenset[int]]
    reads_s: tuple[float, ...] = ()


class Sidecar:
    """Our end of the process that reads. It is started when first asked, and again after anything went wrong.

    So a driver that was reloaded is opened afresh, and no answer that came too late is taken for that to a later
    question.
    """

    def __init__(self, source: str, uuids: tuple[str, ...]) -> None:
        self.source, self.uuids = source, uuids
        self.windows = itertools.count()
        self.process: subprocess.Popen[bytes] | None = None
        self.starts = 0

    def open(self, periods_s: Iterable[float]) -> "Window":
        if self.process is None or self.process.poll() is not None:
            self._start()
        number = next(self.windows)
        told = self._ask({"do": "open", "window": number, "periods_s": list(periods_s)}, ANSWER_S)
        return Window(number=number, born=self.starts, began_s=time.perf_counter(), told=told)

    def close(self, window: "Window") -> Seen:
        """Raises: MeterError: the process died or hung, or a board could not be read."""
        ended_s = time.perf_counter()
        if self.process is None or window.born != self.starts:
            raise MeterError("the process that reads the GPUs was lost within the window. Measure again.")
        return _seen(window, ended_s, self._ask({"do": "close", "window": window.number}, ANSWER_S))

    def calibrate(self, seconds: float) -> Seen:
        """A window without work, each board in turn polled for so long, as fast as its counter answers."""
        if self.process is None or self.process.poll() is not None:
            self._start()
        began_s = time.perf_counter()
        found = self._ask({"do": "calibrate", "seconds": seconds}, seconds * len(self.uuids) + ANSWER_S)
        return _seen(Window(number=-1, born=self.starts, began_s=began_s, told=found), time.perf_counter(), found)

    def _start(self) -> None:
        self.stop()
        try:  # by its path and with -P: it needs neither this package nor anything in the working folder
            self.process = subprocess.Popen(
                [sys.executable, "-P", str(Path(nvml_sidecar.__file__)), self.source, *self.uuids],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        except OSError as error:
            raise MeterError(f"the process that reads the GPUs cannot be started ({error}).") from error
        self.starts += 1
        weakref.finalize(self, _end, self.process, os.getpid())
        self._ask(None, START_S)  # it speaks first

    def _ask(self, what: Mapping[str, Any] | None, patience_s: float) -> dict[str, Any]:
        assert self.process is not None and self.process.stdin is not None
        try:
            with suppress(BrokenPipeError):  # then there is nothing to hear either, and that is told
                if what is not None:
                    self.process.stdin.write(json.dumps(what).encode() + b"\n")
                    self.process.stdin.flush()
            return self._hear(self.process, patience_s)
        except BaseException:  # an interrupt too: its answer would be the first thing that the next one hears
            self.stop()
            raise

    def _hear(self, process: "subprocess.Popen[bytes]", patience_s: float) -> dict[str, Any]:
        assert process.stdout is not None
        heard, end = b"", time.perf_counter() + patience_s
        while not heard.endswith(b"\n"):
            if not select.select([process.stdout], [], [], max(0.0, end - time.perf_counter()))[0]:
                raise MeterError(f"the process that reads the GPUs gave no answer within {patience_s:g} s.")
            more = os.read(process.stdout.fileno(), 1 << 20)
            if not more:
                self.stop()
                code = process.returncode
                raise MeterError(f"the process that reads the GPUs died (exit status {code}). Measure again.")
            heard += more
        try:
            told: dict[str, Any] = json.loads(heard)
        except ValueError as error:
            raise MeterError(f"the process that reads the GPUs said {heard[:80]!r}. Measure again.") from error
        if "error" in told:
            raise MeterError(f"{told['error']}. The window is lost; measure again.")
        return told

    def stop(self) -> None:
        if self.process is not None:
            _end(self.process, os.getpid())
            self.process = None


@dataclass(frozen=True, kw_only=True)
class Window:
    """An open window: its number, which start of the process it belongs to, and what was told at its beginning."""

    number: int
    born: int
    began_s: float
    told: Mapping[str, Any]


def sidecar(source: str, uuids: tuple[str, ...]) -> Sidecar:
    """The one that this very process shares between all its windows on these boards."""
    return _sidecar(os.getpid(), source, uuids)


@cache
def _sidecar(_process: int, source: str, uuids: tuple[str, ...]) -> Sidecar:
    return Sidecar(source, uuids)


def circumstances(seen: Seen) -> dict[str, Any]:
    """What a `Reading` says beside its joules."""
    clocks = [sample.clock_mhz for board in seen.samples for sample in board if sample.clock_mhz is not None]
    heat = [sample.temperature_c for board in seen.samples for sample in board if sample.temperature_c is not None]
    reasons = 0
    for board in seen.samples:
        for sample in board:
            reasons |= sample.reasons or 0
    before, after = seen.pids
    return {
        "sampled_w": _summed(seen, "power_w"),
        "memory_w": _summed(seen, "memory_w"),
        "limit_w": None if None in seen.limits_w[1] else sum(limit for limit in seen.limits_w[1] if limit is not None),
        "limited": tuple(dict.fromkeys(words for bit, words in REASONS.items() if reasons & bit)),
        "clock_hz": (1e6 * min(clocks), 1e6 * max(clocks)) if clocks else None,
        "temperature_c": max(heat, default=None),
        "guests": guests(before & after),
        "disturbed": _disturbed(seen),
    }


def guests(pids: frozenset[int]) -> tuple[str, ...]:
    """Those of the processes on a board that are not ours: neither this one nor its parents or children.

    In a container the driver may tell numbers of another namespace, and never ours: then one that is not known here is
    taken for ours.
    """
    if pids <= {os.getpid()}:  # the usual case; else every process of the machine is looked at
        return ()
    import psutil

    try:
        me = psutil.Process()
        ours = {me.pid, *(one.pid for one in (*me.parents(), *me.children(recursive=True)))}
    except psutil.Error:
        ours = {os.getpid()}
    strangers = sorted(pid for pid in pids if not psutil.pid_exists(pid))
    if strangers and not pids & ours:
        strangers = strangers[1:]
    found = [f"a process outside this container (pid {pid})" for pid in strangers]
    for pid in sorted(pids - ours):
        with suppress(psutil.Error):
            found.append(f"{psutil.Process(pid).name()} (pid {pid})")
    return tuple(found)


def _disturbed(seen: Seen) -> str | None:
    before, after = seen.pids
    if came := after - before:
        return f"another program started on the GPU (pid {', '.join(map(str, sorted(came)))})"
    if left := before - after:
        return f"a program left the GPU (pid {', '.join(map(str, sorted(left)))})"
    for old, new in zip(*seen.limits_w, strict=True):
        if old != new and old is not None and new is not None:
            return f"the power limit was moved from {old:g} W to {new:g} W"
    return None


def _summed(seen: Seen, what: str) -> float | None:
    """Mean watts of each board, summed; None if one of them does not tell."""
    told = [[watts for sample in board if (watts := getattr(sample, what)) is not None] for board in seen.samples]
    return sum(map(fmean, told)) if told and all(told) else None


def _seen(window: Window, ended_s: float, told: Mapping[str, Any]) -> Seen:
    boards = told["boards"]
    pids = [both for both in zip(window.told["pids"], told["pids"], strict=True) if None not in both]
    return Seen(
        began_s=window.began_s,
        ended_s=ended_s,
        marks=tuple(_marks(board["marks"]) for board in boards),
        edges=tuple(_marks(board["edges"]) for board in boards),
        samples=tuple(
            tuple(
                Sample(at_s=at, power_w=power, memory_w=memory, reasons=reasons, clock_mhz=clock, temperature_c=heat)
                for at, power, memory, reasons, clock, heat in board["samples"]
                if window.began_s <= at <= ended_s
            )
            for board in boards
        ),
        limits_w=(tuple(window.told["limits_w"]), tuple(told["limits_w"])),
        pids=(_union(before for before, _ in pids), _union(after for _, after in pids)),
        reads_s=tuple(itertools.chain.from_iterable(told.get("reads_s", ()))),
    )


def _marks(told: Iterable[Iterable[Any]]) -> tuple[Mark, ...]:
    return tuple((before, asked, answered, value) for before, asked, answered, value in told)


def _union(boards: Iterable[Iterable[int]]) -> frozenset[int]:
    return frozenset(itertools.chain.from_iterable(boards))


def _end(process: "subprocess.Popen[bytes]", owner: int) -> None:
    if owner != os.getpid():  # a fork that ends must not take its parent's reader along
        return
    for pipe in (process.stdin, process.stdout):
        with suppress(OSError):
            if pipe is not None:
                pipe.close()
    with suppress(OSError, subprocess.TimeoutExpired):
        process.kill()
        process.wait(END_S)
