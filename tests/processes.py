"""Which processes are ranks of a policy: what started them names the function that Python's `spawn` begins with."""

from contextlib import suppress

import psutil


def ranks(of: psutil.Process | None = None) -> list[psutil.Process]:
    """Those below a process, by default this one."""
    found = []
    for child in (of or psutil.Process()).children(recursive=True):
        with suppress(psutil.Error):
            if "spawn_main" in " ".join(child.cmdline()):
                found.append(child)
    return found
