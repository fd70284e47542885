"""Finding what RAPL counts on this machine, and opening it: CPU packages and their DRAM, by the better of two roads.

    perf_event   /sys/bus/event_source/devices/power    64 bits, opened with CAP_PERFMON: preferred
    powercap     /sys/class/powercap/intel-rapl:*       microjoules that wrap, readable by root

Counted are packages and the dram beside them. Left out is what would count twice: core and uncore (inside the
package), psys (package and dram again), intel-rapl-mmio (the same packages by another bus), and dies that mirror the
one counter of their package, as on AMD.
"""

import os
import platform
import re
import struct
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from autogreen.meters import Unusable

MIRROR_TRIES = 5  # of two dies that are one counter, one may show a step a little later
MIRROR_NAP_S = 0.0003

SIDE_CHANNEL = "CVE-2020-8694"
ALLOW_PERF = (
    "Best: sudo setcap cap_perfmon=ep $(readlink -f $(which python)), or for every user until the next boot: "
    "sudo sysctl kernel.perf_event_paranoid=0"
)
ALLOW_POWERCAP = (
    "Until the next boot: sudo chmod -R a+r /sys/class/powercap/intel-rapl* (it also opens the side channel of "
    f"{SIDE_CHANNEL} to every user)"
)
ELSEWHERE = "Measure on another machine, or take the estimate meter"

_ROOT = Path("/")
_PER_PACKAGE = ("AuthenticAMD", "HygonGenuine")  # vendors whose dies all show the counter of the whole package
_SYSCALL = {"x86_64": 298}  # perf_event_open; RAPL is x86 only
_CLOSE_ON_EXEC = 8
_PACKAGE = re.compile(r"package-(\d+)(-die-\d+)?")
_ATTRIBUTES = struct.Struct("=IIQQQQQIIQ")  # perf_event_attr, version 0: type, size, config, then zeros


@dataclass(frozen=True, kw_only=True)
class Domain:
    """One energy counter.

    Attributes:
        name: for messages.
        package: number of the CPU package that it belongs to.
        unit_j: joules of one count.
        range_units: counts after which it starts again at 0; None: nobody says.
    """

    name: str
    kind: Literal["package", "dram"]
    package: int
    unit_j: float
    range_units: int | None

    road: ClassVar[str]

    def open(self) -> int:
        """A file descriptor for `read`, to be closed by the caller.

        Raises:
            Unusable: it is forbidden or missing.
        """
        raise NotImplementedError

    def read(self, descriptor: int) -> int:
        """The count now, 0 or more.

        Raises:
            Unusable: the counter vanished, was forbidden, or holds no number.
        """
        try:
            value = self._fetch(descriptor)
        except OSError as error:
            raise Unusable(f"{self.name} cannot be read any more ({error})", "Measure again") from error
        except ValueError as error:
            raise Unusable(f"{self.name} holds no energy ({error})", "Reload the kernel's RAPL driver") from error
        return value

    def _fetch(self, descriptor: int) -> int:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Zone(Domain):
    """A zone of powercap, in microjoules."""

    folder: Path

    road: ClassVar[str] = "powercap"

    def open(self) -> int:
        try:
            return os.open(self.folder / "energy_uj", os.O_RDONLY | os.O_CLOEXEC)
        except PermissionError as error:
            reason = f"{self.folder.name}/energy_uj is readable by root only, since {SIDE_CHANNEL} ({error.strerror})"
            raise Unusable(reason, ALLOW_POWERCAP) from error
        except OSError as error:
            raise Unusable(f"{self.name} cannot be opened ({error})", ELSEWHERE) from error

    def _fetch(self, descriptor: int) -> int:
        text = os.pread(descriptor, 64, 0).strip()
        if not text.isdigit():
            raise ValueError(f"energy_uj says {text.decode(errors='replace')!r}")
        return int(text)


@dataclass(frozen=True, kw_only=True)
class Event(Domain):
    """An event of the kernel's `power` PMU, counted on the one processor that stands for its package."""

    pmu: int
    config: int
    cpu: int

    road: ClassVar[str] = "perf_event"

    def open(self) -> int:
        try:
            return perf_event_open(pmu=self.pmu, config=self.config, cpu=self.cpu)
        except PermissionError as error:
            reason = f"perf_event_open is not allowed for {self.name} ({error.strerror})"
            raise Unusable(reason, ALLOW_PERF) from error
        except OSError as error:
            raise Unusable(f"{self.name} cannot be opened ({error})", ELSEWHERE) from error

    def _fetch(self, descriptor: int) -> int:
        count = os.read(descriptor, 8)
        if len(count) != 8:
            raise ValueError(f"{len(count)} bytes in place of 8")
        return int.from_bytes(count, sys.byteorder)


def find_domains(device: str) -> tuple[Domain, ...]:
    """The counters to be summed, all by one road: perf_event where it is allowed, else powercap.

    Raises:
        Unusable: the device is no CPU, or no road is open; with the reason of each.
    """
    if device != "cpu":
        raise Unusable(f"RAPL counts CPU packages, and the device is {device!r}", "Use the device's own meter")
    refusals: list[Unusable] = []
    for road in (_events, _zones):
        try:
            domains = road()
            with opened(domains) as descriptors:
                for domain, descriptor in zip(domains, descriptors, strict=True):
                    domain.read(descriptor)
        except Unusable as refusal:
            refusals.append(refusal)
        else:
            if domains:
                return domains
    if not refusals:
        raise Unusable(
            "this kernel or virtual machine offers no RAPL (no package zone in /sys/class/powercap, no power PMU)",
            "On real hardware load intel_rapl_msr; in a virtual machine or container take the estimate meter",
        )
    advice = dict.fromkeys(refusal.advice for refusal in refusals)
    raise Unusable("; ".join(refusal.reason for refusal in refusals), ". Or: ".join(advice))


@contextmanager
def opened(domains: Sequence[Domain]) -> Iterator[tuple[int, ...]]:
    """File descriptors of all domains, closed at the end whatever happens."""
    descriptors: list[int] = []
    try:
        for domain in domains:
            descriptors.append(domain.open())
        yield tuple(descriptors)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def perf_event_open(*, pmu: int, config: int, cpu: int) -> int:
    """Count an event on a whole processor, all processes: perf_event_open(2), which the C library does not wrap.

    Raises:
        OSError: the kernel's answer.
    """
    import ctypes

    size = _ATTRIBUTES.size
    attributes = ctypes.create_string_buffer(_ATTRIBUTES.pack(pmu, size, config, *[0] * 7), size)
    library = ctypes.CDLL(None, use_errno=True)
    library.syscall.restype = ctypes.c_long
    everyone = no_group = ctypes.c_long(-1)
    number = ctypes.c_long(_SYSCALL[platform.machine()])
    descriptor = library.syscall(
        number, attributes, everyone, ctypes.c_long(cpu), no_group, ctypes.c_ulong(_CLOSE_ON_EXEC)
    )
    if descriptor < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return int(descriptor)


def _events() -> tuple[Domain, ...]:
    """The power PMU: energy-pkg and, where it is, energy-ram, on each processor of its mask. () where there is none."""
    folder = _ROOT / "sys/bus/event_source/devices/power"
    if not (folder / "events/energy-pkg").exists() or platform.machine() not in _SYSCALL:
        return ()
    cpus: dict[int, int] = {}  # processor -> package
    for cpu in _processors(_text(folder / "cpumask")):
        package = _number(_ROOT / f"sys/devices/system/cpu/cpu{cpu}/topology/physical_package_id")
        # Some kernels list a processor a die, and on AMD each of them counts the whole package.
        if package not in cpus.values() or _vendor() not in _PER_PACKAGE:
            cpus[cpu] = package
    found: list[Domain] = []
    kinds: tuple[tuple[Literal["package", "dram"], str], ...] = (("package", "energy-pkg"), ("dram", "energy-ram"))
    for kind, event in kinds:
        path = folder / "events" / event
        if not path.exists():
            continue
        config = re.fullmatch(r"event=(0x[0-9a-fA-F]+)", _text(path))
        unit, scale = _text(path.with_name(f"{event}.unit")), _text(path.with_name(f"{event}.scale"))
        if config is None or unit != "Joules" or not re.fullmatch(r"[0-9.]+(e[+-]?[0-9]+)?", scale):
            raise Unusable(f"power/{event}/ says {_text(path)!r}, unit {unit!r}, scale {scale!r}", ELSEWHERE)
        for cpu, package in cpus.items():
            found.append(
                Event(
                    name=f"power/{event}/ of package {package} (processor {cpu})",
                    kind=kind,
                    package=package,
                    unit_j=float(scale),
                    range_units=2**64,
                    pmu=_number(folder / "type"),
                    config=int(config[1], 16),
                    cpu=cpu,
                )
            )
    return tuple(found)


def _zones() -> tuple[Domain, ...]:
    """The package zones of powercap, each once, with their dram. () where there are no zones at all."""
    base = _ROOT / "sys/class/powercap"
    tops = [folder for folder in base.glob("intel-rapl:*") if re.fullmatch(r"intel-rapl:[0-9a-f]+", folder.name)]
    tops.sort(key=lambda folder: int(folder.name.partition(":")[2], 16))  # the kernel numbers zones in hexadecimal
    names = [_text(folder / "name") for folder in tops]
    if names and not any(map(_PACKAGE.fullmatch, names)):
        told = "psys alone, which counts the whole platform" if "psys" in names else f"no package among {names}"
        raise Unusable(f"powercap has {told}", ELSEWHERE)
    kept: dict[str, Zone] = {}
    found: list[Domain] = []
    for folder, name in zip(tops, names, strict=True):
        if (number := _PACKAGE.fullmatch(name)) is None:
            continue
        zone = _zone(folder, name, "package", int(number[1]))
        if any(_mirrors(zone, other) for other in kept.values() if other.package == zone.package):
            continue
        if name in kept:
            raise Unusable(
                f"powercap has two zones named {name} that read differently ({kept[name].folder.name}, {folder.name}): "
                "which of them is the package cannot be known",
                ELSEWHERE,
            )
        kept[name] = zone
        below = sorted(base.glob(f"{folder.name}:*"))
        found += [zone, *(_zone(sub, name, "dram", zone.package) for sub in below if _text(sub / "name") == "dram")]
    return tuple(found)


def _zone(folder: Path, package_name: str, kind: Literal["package", "dram"], package: int) -> Zone:
    name = package_name if kind == "package" else f"{kind} of {package_name}"
    try:
        range_uj = int((folder / "max_energy_range_uj").read_text())
    except (OSError, ValueError):  # judged when the counter falls: until then nothing is lost
        range_uj = 0
    return Zone(
        name=f"{name} ({folder.name})",
        kind=kind,
        package=package,
        unit_j=1e-6,
        range_units=range_uj if range_uj > 0 else None,
        folder=folder,
    )


def _mirrors(zone: Zone, other: Zone) -> bool:
    """Whether both are one counter: read between two reads of the other, a value lies between these."""
    with opened((zone, other)) as (one, two):
        for _ in range(MIRROR_TRIES):
            if other.read(two) <= zone.read(one) <= other.read(two):
                return True
            time.sleep(MIRROR_NAP_S)
    return False


def _vendor() -> str:
    found = re.search(r"^vendor_id\s*:\s*(\S+)", _text(_ROOT / "proc/cpuinfo"), re.MULTILINE)
    return found[1] if found else ""


def _processors(listed: str) -> list[int]:
    """ "0,18-19" -> [0, 18, 19]"""
    if not re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", listed):
        raise Unusable(f"the cpumask of the power PMU says {listed!r}", ELSEWHERE)
    spans = [[int(end) for end in span.split("-")] for span in listed.split(",")]
    return [cpu for span in spans for cpu in range(span[0], span[-1] + 1)]


def _number(path: Path) -> int:
    text = _text(path)
    if not text.isdigit():
        raise Unusable(f"{path} says {text!r} in place of a number", ELSEWHERE)
    return int(text)


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError as error:
        raise Unusable(f"{path} cannot be read ({error})", ELSEWHERE) from error
    except UnicodeDecodeError as error:
        raise Unusable(f"{path} holds no text", ELSEWHERE) from error
