"""How busy the processors were: this process and everyone, in core-seconds."""

import time
from contextlib import suppress
from pathlib import Path


def own_busy_s() -> float:
    """Core-seconds of this process, all threads, and of its children: those that run (ranks) and those that were waited
    for (compilers)."""
    from resource import RUSAGE_CHILDREN, getrusage

    waited = getrusage(RUSAGE_CHILDREN)
    return time.process_time() + waited.ru_utime + waited.ru_stime + _running_s()


def _running_s() -> float:
    """Core-seconds of the children that run, and of theirs that were waited for; in clock ticks. Asking the kernel for
    the children of each thread takes a hundredth of the time of a look through all processes."""
    import psutil

    busy_s = 0.0
    for task in Path("/proc/self/task").glob("*/children"):
        with suppress(OSError):  # the thread is gone
            for pid in task.read_text().split():
                with suppress(psutil.Error):
                    times = psutil.Process(int(pid)).cpu_times()
                    busy_s += times.user + times.system + times.children_user + times.children_system
    return busy_s


def machine_busy_s() -> float:
    """Busy core-seconds of the whole machine, in clock ticks. Time stolen by a hypervisor is not the machine's."""
    import psutil

    times = psutil.cpu_times()
    return float(sum(getattr(times, kind, 0.0) for kind in ("user", "nice", "system", "irq", "softirq")))
