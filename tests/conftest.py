"""Two cores are shared by everything: torch takes one thread, and no test reaches the network."""

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets background jobs ignore it, and children inherit


LONG = ("search", "ranks_sweep", "ray", "ranks", "random_policies", "guided_sweep", "mlflow_server", "bundle", "apply")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take minutes come first, so that of several processes none is left with one at the end. Tests that
    need a GPU are left out where there is none."""
    places = {f"test_{name}.py": place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path.name, len(LONG)))
    if any(item.get_closest_marker("gpu") for item in items):
        import torch

        if not torch.cuda.is_available():
            for item in items:
                if item.get_closest_marker("gpu"):
                    item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A file system of its own, as large as asked ("256k"), that can really be full."""
    disk = tmp_path / "disk"

    def mount(size: str) -> Path:
        disk.mkdir()
        allowed = os.geteuid() == 0 and shutil.which("mount") is not None
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
        if not allowed or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("needs the right to mount")
        return disk

    yield mount
    if os.path.ismount(disk):
        subprocess.run(["umount", "--lazy", str(disk)], check=True)
