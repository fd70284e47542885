"""The RAPL meter on fake sysfs trees laid out as real kernels do, and every fault that must not end in wrong joules."""

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from autogreen.errors import MeterError
from autogreen.meters import choose, rapl, rapl_domains
from autogreen.meters.rapl import RaplMeter
from autogreen.testing import ScriptedClock, check_meter

INTEL_UJ = 262_143_328_850  # 2^32 - 1 counts of 2^-14 J, as kernels print it
DRAM_UJ = 65_712_999_613
AMD_UJ = 65_532_610_987  # 2^32 - 1 counts of 2^-16 J
SCALE = "2.3283064365386962890625e-10"  # 2^-32 J


class Machine:
    """A fake tree whose counters step every millisecond of a clock, each at a power of its own, and faults to set.

    The files are read through the real calls; only their content is put in at the moment of reading, since a file
    cannot move by itself.
    """

    def __init__(self, root: Path, clock: Callable[[], float], read_s: float) -> None:
        self.root, self.clock, self.read_s = root, clock, read_s
        self.watts: dict[str, float] = {}
        self.start: dict[str, int] = {}
        self.ranges: dict[str, int] = {}
        self.offsets: dict[str, int] = {}
        self.denied: set[str] = set()
        self.broken: dict[str, OSError | bytes] = {}
        self.step_s, self.began, self.perf = 0.001, clock(), "allowed"
        self.opened = 0

    def write(self, path: str, text: str | int) -> Path:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")
        return file

    def zone(
        self, path: str, name: str, watts: float = 0.0, range_uj: int | None = INTEL_UJ, start: int = 1_000_000
    ) -> None:
        """`path` "intel-rapl:0:1" lives in .../intel-rapl/intel-rapl:0/intel-rapl:0:1; the class has a link to it."""
        parts = path.split(":")
        nested = "/".join(":".join(parts[:end]) for end in range(1, len(parts) + 1))
        folder = self.root / "sys/devices/virtual/powercap" / nested
        self.write(f"{folder}/name", name)
        self.write(f"{folder}/energy_uj", start)
        self.write(f"{folder}/enabled", 1)
        if range_uj is not None:
            self.write(f"{folder}/max_energy_range_uj", range_uj)
        self.watts[path], self.start[path], self.ranges[path] = watts, start, (range_uj or 2**62) + 61
        link = self.root / "sys/class/powercap" / path
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(folder)
        control = link.with_name(parts[0])
        if not control.exists():
            control.symlink_to(folder.parents[len(parts) - 2])

    def pmu(self, events: dict[str, int], cpus: dict[int, int], mask: str, vendor: str = "GenuineIntel") -> None:
        """The power PMU with events name -> code, on processors -> package."""
        base = "sys/bus/event_source/devices/power"
        self.write(f"{base}/type", 21)
        self.write(f"{base}/cpumask", mask)
        self.write(f"{base}/format/event", "config:0-7")
        for name, code in events.items():
            self.write(f"{base}/events/{name}", f"event={code:#04x}")
            self.write(f"{base}/events/{name}.unit", "Joules")
            self.write(f"{base}/events/{name}.scale", SCALE)
        for cpu, package in cpus.items():
            self.write(f"sys/devices/system/cpu/cpu{cpu}/topology/physical_package_id", package)
        self.write("proc/cpuinfo", f"processor\t: 0\nvendor_id\t: {vendor}\ncpu family\t: 6")

    def count(self, key: str, now_s: float) -> int:
        steps = int((now_s - self.began) / self.step_s + 1e-9)
        value = self.start[key] + round(self.watts[key] * 1e6 * steps * self.step_s) + self.offsets.get(key, 0)
        return value % self.ranges[key]

    def at(self, descriptor: int) -> str | None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if not path.is_relative_to(self.root):
            return None
        key = path.parent.name if path.name == "energy_uj" else path.name
        if isinstance(self.clock, ScriptedClock):
            self.clock.advance(self.read_s)
        if isinstance(fault := self.broken.get(key), OSError):
            raise fault
        return key

    def pread(self, descriptor: int, size: int, offset: int, real: Any = os.pread) -> bytes:
        key = self.at(descriptor)
        if key is None or isinstance(fault := self.broken.get(key), bytes):
            return real(descriptor, size, offset) if key is None else fault
        return b"%d\n" % self.count(key, self.clock())

    def read(self, descriptor: int, size: int, real: Any = os.read) -> bytes:
        key = self.at(descriptor)
        if key is None or isinstance(fault := self.broken.get(key), bytes):
            return real(descriptor, size) if key is None else fault
        joules = (self.count(key, self.clock()) - self.start[key]) * 1e-6
        return round(joules * 2**32).to_bytes(8, "little")

    def open(self, path: Any, flags: int, *rest: Any, real: Any = os.open, **more: Any) -> int:
        name = Path(os.fspath(path)).parent.name
        if name in self.denied and str(path).endswith("energy_uj"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return int(real(path, flags, *rest, **more))

    def perf_event_open(self, *, pmu: int, config: int, cpu: int) -> int:
        assert pmu == 21
        if self.perf != "allowed":
            code = getattr(errno, self.perf)
            raise OSError(code, os.strerror(code))
        key = f"{config}@{cpu}"
        self.write(f"perf/{key}", "")
        return os.open(self.root / f"perf/{key}", os.O_RDONLY)

    def counts(self, **watts: float) -> None:
        """perf counters "2@0" (code 2 on processor 0) as p2_0."""
        for name, power in watts.items():
            key = name.removeprefix("p").replace("_", "@")
            self.watts[key], self.start[key], self.ranges[key] = power, 0, 2**62


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))  # noqa: PTH208


def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Callable[[], float]) -> Machine:
    machine = Machine(tmp_path, clock, read_s=20e-6)
    monkeypatch.setattr(rapl_domains, "_ROOT", tmp_path)
    monkeypatch.setattr(rapl_domains.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(rapl_domains, "perf_event_open", machine.perf_event_open)
    for call in ("open", "read", "pread"):
        monkeypatch.setattr(os, call, getattr(machine, call))
    return machine


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """On a scripted clock, which moves by 20 us at each read: every number is exact, no wall clock exists."""
    clock = ScriptedClock()
    scripted = SimpleNamespace(perf_counter=clock, sleep=clock.advance)
    monkeypatch.setattr(rapl, "time", scripted)
    monkeypatch.setattr(rapl_domains, "time", scripted)
    return build(tmp_path, monkeypatch, clock)


@pytest.fixture
def real_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return build(tmp_path, monkeypatch, time.perf_counter)


def intel_server(machine: Machine) -> Machine:
    """Two sockets, each with DRAM beside the package."""
    machine.zone("intel-rapl:0", "package-0", 120.0, start=9_000_000_000)
    machine.zone("intel-rapl:0:0", "dram", 20.0, DRAM_UJ)
    machine.zone("intel-rapl:1", "package-1", 80.0)
    machine.zone("intel-rapl:1:0", "dram", 10.0, DRAM_UJ)
    return machine


def client(machine: Machine) -> Machine:
    """A laptop: package with core, uncore and dram; psys over all; the same package again by mmio."""
    machine.zone("intel-rapl:0", "package-0", 15.0)
    machine.zone("intel-rapl:0:0", "core", 9.0)
    machine.zone("intel-rapl:0:1", "uncore", 2.0)
    machine.zone("intel-rapl:0:2", "dram", 1.5)
    machine.zone("intel-rapl:1", "psys", 25.0)
    machine.zone("intel-rapl-mmio:0", "package-0", 15.0)
    return machine


def epyc(machine: Machine) -> Machine:
    machine.zone("intel-rapl:0", "package-0", 150.0, AMD_UJ, start=5_000_000)
    machine.zone("intel-rapl:0:0", "core", 50.0, AMD_UJ)
    machine.zone("intel-rapl:1", "package-1", 130.0, AMD_UJ)
    machine.zone("intel-rapl:1:0", "core", 40.0, AMD_UJ)
    return machine


def package(machine: Machine, watts: float = 100.0, **more: Any) -> Machine:
    machine.zone("intel-rapl:0", "package-0", watts, **more)
    return machine


def window(machine: Machine, seconds: float = 1.0, meter: RaplMeter | None = None) -> Any:
    meter = meter or RaplMeter()
    meter.start()
    assert isinstance(machine.clock, ScriptedClock)
    machine.clock.advance(seconds)
    return meter.stop()


def told(device: str = "cpu") -> tuple[bool, str, str]:
    found = RaplMeter.diagnose(device)
    return found.available, found.reason, found.advice


# --- what is counted --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "watts", "boundary"),
    [
        (intel_server, 230.0, "CPU packages 0, 1 and DRAM (RAPL powercap)"),
        (client, 16.5, "CPU package 0 and DRAM (RAPL powercap)"),
        (epyc, 280.0, "CPU packages 0, 1 (RAPL powercap)"),
    ],
)
def test_powercap_sums_packages_and_dram_once(
    layout: Callable[[Machine], Machine], watts: float, boundary: str, machine: Machine
) -> None:
    layout(machine)
    before = descriptors()
    meter = RaplMeter()
    for seconds in (0.01, 0.5, 3.3337):
        reading = window(machine, seconds, meter)
        assert reading.energy_j / reading.duration_s == pytest.approx(watts, rel=2e-4 / seconds)
        assert reading.duration_s == pytest.approx(seconds, abs=0.0015)
        assert reading.low_j == reading.energy_j == reading.high_j
        assert reading.busy_s >= 0 and reading.foreign_busy_s >= 0
    assert (meter.boundary, meter.tier, meter.resolution_s) == (boundary, "measured", 0.001)
    assert told() == (True, f"reads {boundary}", "Nothing to do")
    assert descriptors() == before


def test_a_single_counter_is_read_from_step_to_step(machine: Machine) -> None:
    package(machine)
    reading = window(machine, 0.25)
    steps = reading.energy_j / 0.1  # 100 W for 1 ms
    assert steps == pytest.approx(round(steps)) and 250 <= round(steps) <= 252
    assert reading.duration_s == pytest.approx(steps * 0.001, abs=2 * machine.read_s)


def test_dram_of_one_package_only_is_said(machine: Machine) -> None:
    machine.zone("intel-rapl:0", "package-0", 10.0)
    machine.zone("intel-rapl:1", "package-1", 10.0)
    machine.zone("intel-rapl:1:0", "dram", 5.0)
    assert RaplMeter().boundary == "CPU packages 0, 1 and DRAM of 1 (RAPL powercap)"


def test_dies_that_mirror_their_package_count_once(machine: Machine) -> None:
    for number, die in enumerate(("package-0-die-0", "package-0-die-1", "package-1-die-0", "package-1-die-1")):
        machine.zone(f"intel-rapl:{number}", die, 68.0 if number < 2 else 60.0, start=7_000_000 + 10**9 * (number // 2))
    reading = window(machine)
    assert reading.energy_j / reading.duration_s == pytest.approx(128, rel=1e-3)
    assert RaplMeter().boundary == "CPU packages 0, 1 (RAPL powercap)"


def test_zones_of_one_name_are_one_counter_or_refused(machine: Machine) -> None:
    machine.zone("intel-rapl:0", "package-0", 50.0)
    machine.zone("intel-rapl:0:0", "dram", 5.0)
    machine.zone("intel-rapl:1", "package-0", 50.0)
    machine.zone("intel-rapl:1:0", "dram", 5.0)
    reading = window(machine)
    assert reading.energy_j / reading.duration_s == pytest.approx(55, rel=1e-3)
    machine.offsets["intel-rapl:1"] = 40_000_000
    available, reason, _ = told()
    assert not available and "two zones named package-0 that read differently (intel-rapl:0, intel-rapl:1)" in reason


def test_dies_with_counters_of_their_own_are_summed(machine: Machine) -> None:
    machine.zone("intel-rapl:0", "package-0-die-0", 90.0, start=1_000_000)
    machine.zone("intel-rapl:0:0", "dram", 9.0)
    machine.zone("intel-rapl:1", "package-0-die-1", 70.0, start=8_000_000)
    machine.zone("intel-rapl:1:0", "dram", 7.0)
    reading = window(machine)
    assert reading.energy_j / reading.duration_s == pytest.approx(176, rel=1e-3)
    assert RaplMeter().boundary == "CPU package 0 and DRAM (RAPL powercap)"


def test_zones_are_numbered_in_hexadecimal(machine: Machine) -> None:
    for number in range(12):
        machine.zone(f"intel-rapl:{number:x}", f"package-{number}", 10.0, start=1_000_000 * (number + 1))
    reading = window(machine)
    assert reading.energy_j / reading.duration_s == pytest.approx(120, rel=1e-3)


def test_psys_alone_is_refused(machine: Machine) -> None:
    machine.zone("intel-rapl:0", "psys", 30.0)
    available, reason, advice = told()
    assert not available and "psys alone" in reason and "estimate meter" in advice
    with pytest.raises(MeterError, match="psys alone"):
        RaplMeter().start()


# --- perf_event -------------------------------------------------------------------------------------------------------

EVENTS = {"energy-cores": 1, "energy-pkg": 2, "energy-ram": 3, "energy-psys": 5}


def test_perf_is_preferred_and_sums_packages_and_dram(machine: Machine) -> None:
    intel_server(machine)
    machine.pmu(EVENTS, {0: 0, 18: 1}, "0,18")
    machine.counts(p2_0=100.0, p2_18=60.0, p3_0=8.0, p3_18=6.0)
    machine.denied = {"intel-rapl:0", "intel-rapl:1"}
    before = descriptors()
    reading = window(machine, 2.0)
    assert reading.energy_j / reading.duration_s == pytest.approx(174, rel=1e-3)
    assert RaplMeter().boundary == "CPU packages 0, 1 and DRAM (RAPL perf_event)"
    assert told()[0] and descriptors() == before


@pytest.mark.parametrize(("vendor", "watts"), [("AuthenticAMD", 70.0), ("GenuineIntel", 140.0)])
def test_perf_counts_dies_only_where_each_has_a_counter(vendor: str, watts: float, machine: Machine) -> None:
    machine.pmu({"energy-pkg": 2}, {0: 0, 1: 0}, "0-1", vendor)
    machine.counts(p2_0=70.0, p2_1=70.0)
    reading = window(machine)
    assert reading.energy_j / reading.duration_s == pytest.approx(watts, rel=1e-3)
    assert RaplMeter().boundary == "CPU package 0 (RAPL perf_event)"


@pytest.mark.parametrize("refusal", ["EACCES", "EPERM", "ENOSYS", "EINVAL"])
def test_powercap_where_perf_is_closed(refusal: str, machine: Machine) -> None:
    intel_server(machine)
    machine.pmu(EVENTS, {0: 0, 18: 1}, "0,18")
    machine.perf = refusal
    assert RaplMeter().boundary.endswith("(RAPL powercap)")


def test_both_roads_closed_names_both_remedies(machine: Machine) -> None:
    intel_server(machine)
    machine.pmu(EVENTS, {0: 0, 18: 1}, "0,18")
    machine.perf, machine.denied = "EACCES", {"intel-rapl:0"}
    available, reason, advice = told()
    assert not available
    assert "perf_event_open is not allowed for power/energy-pkg/ of package 0 (processor 0)" in reason
    assert "intel-rapl:0/energy_uj is readable by root only, since CVE-2020-8694" in reason
    assert "sudo setcap cap_perfmon=ep $(readlink -f $(which python))" in advice
    assert "sudo sysctl kernel.perf_event_paranoid=0" in advice
    assert "sudo chmod -R a+r /sys/class/powercap/intel-rapl*" in advice and "side channel" in advice
    with pytest.raises(MeterError, match="rapl: perf_event_open is not allowed"):
        choose("cpu", "rapl")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("cpumask", "all", "cpumask .* says 'all'"),
        ("type", "x", "type says 'x'"),
        ("events/energy-pkg", "umask=2", "'umask=2'"),
        ("events/energy-pkg.unit", "Volts", "unit 'Volts'"),
        ("events/energy-pkg.scale", "inf", "scale 'inf'"),
    ],
)
def test_perf_that_describes_itself_oddly_is_refused(file: str, content: str, message: str, machine: Machine) -> None:
    machine.pmu({"energy-pkg": 2}, {0: 0}, "0")
    machine.write(f"sys/bus/event_source/devices/power/{file}", content)
    with pytest.raises(MeterError, match=message):
        RaplMeter().start()


def test_perf_counter_that_falls_or_is_cut_short(machine: Machine) -> None:
    machine.pmu({"energy-pkg": 2}, {0: 0}, "0")
    machine.counts(p2_0=70.0)
    meter = RaplMeter()
    meter.start()
    machine.broken["2@0"] = bytes(8)
    with pytest.raises(MeterError, match="which is no wrap"):
        meter.stop()
    machine.broken["2@0"] = b"\0\0"
    with pytest.raises(MeterError, match="2 bytes in place of 8"):
        meter.start()


def test_the_system_call_itself_on_a_clock_of_the_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The software PMU's cpu-clock counts nanoseconds: called 1 nJ each, it is a counter of exactly 1 W."""
    try:
        os.close(rapl_domains.perf_event_open(pmu=1, config=0, cpu=0))
    except (OSError, KeyError) as error:
        pytest.skip(f"perf_event_open is not to be had here: {error}")
    machine = Machine(tmp_path, time.perf_counter, 0)
    machine.pmu({"energy-pkg": 0}, {0: 0}, "0")
    machine.write("sys/bus/event_source/devices/power/type", 1)
    machine.write("sys/bus/event_source/devices/power/events/energy-pkg.scale", "1.0e-9")
    monkeypatch.setattr(rapl_domains, "_ROOT", tmp_path)
    reading = check_meter(RaplMeter(), lambda: time.sleep(0.05))
    assert reading.energy_j / reading.duration_s == pytest.approx(1.0, rel=0.02)


# --- the contract -----------------------------------------------------------------------------------------------------


def test_the_contract_in_real_time(real_time: Machine) -> None:
    intel_server(real_time)
    before = descriptors()
    meter = choose("cpu", "rapl")
    reading = check_meter(meter, lambda: time.sleep(0.2))
    assert reading.energy_j / reading.duration_s == pytest.approx(230, rel=0.1)
    assert reading.busy_s is not None and reading.foreign_busy_s is not None
    assert descriptors() == before


def test_rapl_goes_before_the_estimate(real_time: Machine) -> None:
    package(real_time)
    assert isinstance(choose("cpu"), RaplMeter)


def test_gpus_are_not_its_subject(machine: Machine) -> None:
    package(machine)
    available, reason, advice = told("cuda")
    assert not available and "the device is 'cuda'" in reason and advice


# --- wraps ------------------------------------------------------------------------------------------------------------


def test_a_wrap_inside_a_window(machine: Machine) -> None:
    package(machine, 300.0, start=INTEL_UJ - 30_000_000)  # wraps after 0.1 s
    reading = window(machine, 100.0)
    assert reading.energy_j == pytest.approx(300 * reading.duration_s, rel=1e-5)


def test_a_wrap_between_two_reads_of_one_end(machine: Machine) -> None:
    package(machine, 100.0, start=INTEL_UJ - 10_000)  # wraps in the first step, which start waits for
    reading = window(machine, 0.5)
    assert reading.energy_j == pytest.approx(100 * reading.duration_s, rel=1e-3)


def test_two_wraps_in_one_window_are_seen_by_the_sidecar(real_time: Machine) -> None:
    package(real_time, 900.0, range_uj=400_000_000, start=300_000_000)  # wraps after 0.11 and 0.56 s
    meter = RaplMeter()
    meter.start()
    time.sleep(0.8)
    reading = meter.stop()
    assert reading.energy_j > 2 * 300
    assert reading.energy_j / reading.duration_s == pytest.approx(900, rel=0.05)


def test_the_sidecar_looks_in_many_times_a_wrap(machine: Machine) -> None:
    epyc(machine)
    meter = RaplMeter()
    meter.start()
    (opened,) = meter._open
    assert opened.sidecar.rest_s == pytest.approx(AMD_UJ * 1e-6 / 1000 / 32)
    machine.clock.advance(0.1)  # type: ignore[attr-defined]
    meter.stop()


def test_a_dead_sidecar_and_a_wrap_that_it_may_have_missed(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rapl._Sidecar, "run", lambda sidecar: None)
    package(machine, 300.0)
    assert window(machine, 200.0).energy_j == pytest.approx(300 * 200, rel=1e-4)  # nothing can have wrapped twice
    with pytest.raises(MeterError, match=r"was not read for 270.0 s, in which it could have wrapped unseen"):
        window(machine, 270.0)


def test_a_sidecar_that_fails_is_heard_at_stop(real_time: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    package(real_time)
    monkeypatch.setattr(rapl, "SAMPLES_PER_WRAP", 100_000)
    meter = RaplMeter()
    for fault, message in (
        (OSError(errno.EIO, "Input/output error"), "package-0 .* cannot be read any more"),
        (b"nonsense", "holds no energy .*'nonsense'"),
    ):
        meter.start()
        real_time.broken["intel-rapl:0"] = fault
        time.sleep(0.05)
        real_time.broken.clear()
        with pytest.raises(MeterError, match=message):
            meter.stop()
    time.sleep(0.002)
    meter.start()
    (opened,) = meter._open
    monkeypatch.setattr(opened.tracks[0], "domain", None)
    time.sleep(0.05)
    with pytest.raises(MeterError, match="reading the energy counters broke: AttributeError"):
        meter.stop()


@pytest.mark.parametrize("told_range", [None, 0, "unreadable"])
def test_without_a_range_a_fall_is_refused_and_nothing_else(told_range: Any, machine: Machine) -> None:
    package(machine, 100.0, range_uj=told_range if isinstance(told_range, int) else None)
    if told_range == "unreadable":
        machine.write("sys/class/powercap/intel-rapl:0/max_energy_range_uj", "n/a")
    meter = RaplMeter()
    assert window(machine, 2.0, meter).energy_j == pytest.approx(200, rel=1e-3)
    (domain,) = meter._domains
    assert domain.range_units is None
    meter.start()
    machine.clock.advance(1.0)  # type: ignore[attr-defined]
    machine.offsets["intel-rapl:0"] = -250_000_000
    with pytest.raises(MeterError, match="max_energy_range_uj is missing, 0 or unreadable: a wrap and a reset"):
        meter.stop()
    machine.offsets.clear()
    with pytest.raises(MeterError, match="could have wrapped unseen"):  # 2^32 of the finest counts, at 1 kW
        window(machine, 70.0, meter)


# --- faults -----------------------------------------------------------------------------------------------------------


def test_no_rapl_at_all(machine: Machine) -> None:
    for folder in ("", "sys/class/powercap", "sys/class/powercap/intel-rapl"):  # a VM; a container; no zones
        (machine.root / folder).mkdir(parents=True, exist_ok=True)
        available, reason, advice = told()
        assert not available and "virtual machine offers no RAPL" in reason and "estimate" in advice
    with pytest.raises(MeterError, match="offers no RAPL"):
        choose("cpu", "rapl")


def test_a_tree_without_a_package(machine: Machine) -> None:
    machine.zone("intel-rapl:0", "mystery", 30.0)
    assert "no package among ['mystery']" in told()[1]


def test_permission_denied_at_the_start(machine: Machine) -> None:
    intel_server(machine)
    before = descriptors()
    machine.denied = {"intel-rapl:1:0"}  # the last of four: the three open ones must not stay open
    available, reason, advice = told()
    assert not available and "CVE-2020-8694" in reason and "sudo chmod -R a+r" in advice and "setcap" not in advice
    with pytest.raises(MeterError, match="readable by root only"):
        RaplMeter().start()
    assert descriptors() == before


def test_permission_taken_away_between_and_inside_windows(machine: Machine) -> None:
    package(machine)
    before = descriptors()
    meter = RaplMeter()
    window(machine, 0.1, meter)
    machine.denied = {"intel-rapl:0"}
    with pytest.raises(MeterError, match="CVE-2020-8694"):
        meter.start()
    machine.denied.clear()
    meter.start()
    machine.broken["intel-rapl:0"] = PermissionError(errno.EACCES, "Permission denied")
    with pytest.raises(MeterError, match=r"package-0 .* cannot be read any more"):
        meter.stop()
    machine.broken.clear()
    assert window(machine, 0.1, meter).energy_j > 0
    assert descriptors() == before


@pytest.mark.parametrize("content", [b"", b"\n", b"12 uJ\n", b"-5\n", b"0x12\n", b"1.5\n", b"\xff\xfe"])
def test_content_that_is_no_number(content: bytes, machine: Machine) -> None:
    package(machine)
    machine.broken["intel-rapl:0"] = content
    available, reason, _ = told()
    assert not available and "holds no energy" in reason
    with pytest.raises(MeterError, match="holds no energy"):
        RaplMeter().start()


def test_a_name_that_is_no_text(machine: Machine) -> None:
    package(machine)
    (machine.root / "sys/class/powercap/intel-rapl:0/name").write_bytes(b"\xff\xfe")
    assert "holds no text" in told()[1]


def test_frozen(machine: Machine) -> None:
    package(machine, 0.0)
    available, reason, _ = told()
    assert not available and "no step within 2 s, so frozen: package-0 (intel-rapl:0)" in reason
    with pytest.raises(MeterError, match=r"stood still for 3\.0\d s: it is frozen"):
        window(machine, 3.0)
    with pytest.raises(MeterError, match=r"stood still for 0\.5\d s\. "):
        window(machine, 0.5)


def test_one_frozen_counter_among_several(machine: Machine) -> None:
    intel_server(machine)
    machine.watts["intel-rapl:1:0"] = 0.0
    assert "frozen: dram of package-1 (intel-rapl:1:0)" in told()[1]
    with pytest.raises(MeterError, match=r"dram of package-1 \(intel-rapl:1:0\) stood still"):
        window(machine, 3.0)


def test_one_failing_counter_among_several(machine: Machine) -> None:
    intel_server(machine)
    meter = RaplMeter()
    meter.start()
    machine.broken["intel-rapl:1"] = OSError(errno.ENODATA, "No data available")
    machine.clock.advance(1.0)  # type: ignore[attr-defined]
    with pytest.raises(MeterError, match=r"package-1 \(intel-rapl:1\) cannot be read any more"):
        meter.stop()


def test_slow_steps_cost_accuracy_not_truth(machine: Machine) -> None:
    package(machine)
    machine.step_s = 0.05
    reading = window(machine, 5.0)
    assert reading.energy_j / reading.duration_s == pytest.approx(100, rel=0.05 / 5)


@pytest.mark.parametrize("microjoules", [1, 61])
def test_a_count_backwards_is_no_wrap(microjoules: int, machine: Machine) -> None:
    package(machine)
    meter = RaplMeter()
    meter.start()
    machine.clock.advance(0.5)  # type: ignore[attr-defined]
    (track,) = meter._open[0].tracks
    track.read()
    machine.offsets["intel-rapl:0"] = -microjoules
    track.read()
    reading = meter.stop()
    assert reading.energy_j == pytest.approx(100 * reading.duration_s, rel=1e-3)


@pytest.mark.parametrize("start", [150_000_000_000, 10_000_000])
def test_a_fall_that_is_no_wrap_is_an_error(start: int, machine: Machine) -> None:
    package(machine, start=start)
    meter = RaplMeter()
    meter.start()
    machine.clock.advance(0.05)  # type: ignore[attr-defined]
    machine.offsets["intel-rapl:0"] = 1_000 - start - 5_000_000  # begins again at 0, or so
    machine.start["intel-rapl:0"] += 5_000_000
    with pytest.raises(MeterError, match=r"fell from \d+ to \d+, which is no wrap .* it was reset"):
        meter.stop()


def test_a_jump_forwards_is_no_power(machine: Machine) -> None:
    package(machine)
    meter = RaplMeter()
    meter.start()
    machine.clock.advance(0.5)  # type: ignore[attr-defined]
    machine.offsets["intel-rapl:0"] = 10**9
    with pytest.raises(MeterError, match="more than a processor can take"):
        meter.stop()


def test_a_window_shorter_than_a_step(machine: Machine) -> None:
    package(machine)
    with pytest.raises(MeterError, match="is shorter than a step of the counters"):
        window(machine, 0.0002)
    assert window(machine, 0.005).energy_j > 0


def test_a_start_that_fails_leaves_nothing_open(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    intel_server(machine)
    before = descriptors()
    meter = RaplMeter()

    def tired(sidecar: Any) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(rapl._Sidecar, "start", tired)
        with pytest.raises(RuntimeError):
            meter.start()
    assert descriptors() == before
    with pytest.raises(MeterError, match="no window is open"):
        meter.stop()
    assert window(machine, 0.1, meter).energy_j > 0


def test_nested_windows_take_two_meters(machine: Machine) -> None:
    package(machine)
    outer, inner = RaplMeter(), RaplMeter()
    outer.start()
    inner_reading = window(machine, 0.2, inner)
    assert inner_reading.energy_j < outer.stop().energy_j


def test_busy_time_of_this_process_and_of_others(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    package(machine)
    own, everyone = iter([5.0, 7.0]), iter([100.0, 103.5])
    monkeypatch.setattr(rapl, "own_busy_s", lambda: next(own))
    monkeypatch.setattr(rapl, "machine_busy_s", lambda: next(everyone))
    reading = window(machine)
    assert (reading.busy_s, reading.foreign_busy_s) == (2.0, 1.5)
