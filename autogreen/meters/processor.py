"""How busy the processors were: this process and everyone, in core-seconds."""

import time


def own_busy_s() -> float:
    """Core-seconds of this process, all threads, and of its children that were waited for (compilers)."""
    from resource import RUSAGE_CHILDREN, getrusage

    children = getrusage(RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def machine_busy_s() -> float:
    """Busy core-seconds of the whole machine, in clock ticks. Time stolen by a hypervisor is not the machine's."""
    import psutil

    times = psutil.cpu_times()
    return float(sum(getattr(times, kind, 0.0) for kind in ("user", "nice", "system", "irq", "softirq")))
