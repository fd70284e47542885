"""Which devices the nodes of a cluster have, and what a node must have in common with the coordinator."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from autogreen.errors import ConfigError, RefusedError
from autogreen.workbench import Setup


@dataclass(frozen=True, kw_only=True)
class Place:
    """A device of the cluster: what one policy at a time has to itself. node: Ray's id; name: for people; number: of
    the node's devices. cpus, gpus: its share of what Ray gives out there."""

    node: str
    name: str
    number: int
    cpus: int
    gpus: int


def places(nodes: Iterable[Mapping[str, Any]], own: str, setup: Setup) -> list[Place]:
    """The devices of living nodes (`ray.nodes()`): as many GPUs as the largest policy occupies, or a node's processor
    as a whole, with a GPU if policies are trained on one. Those of the node `own` stand first."""
    found, share = [], _gpus(setup)
    for node in nodes:
        cpus, gpus = (int(node["Resources"].get(kind, 0)) for kind in ("CPU", "GPU"))
        count = gpus // share if share else cpus
        if not _on_gpu(setup.device):
            count = min(count, cpus, 1)
        name = f"node {node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
        for number in range(count if node["Alive"] else 0):
            found.append(Place(node=node["NodeID"], name=name, number=number, cpus=cpus // count, gpus=share))
    return sorted(found, key=lambda place: (place.node != own, place.name, place.node, place.number))


def refuse_numbered(setup: Setup) -> None:
    """Refuse a device that a worker will not see under that name."""
    for key in ("device", "training_device"):
        device = getattr(setup, key)
        if _on_gpu(device) and device not in ("cuda", "cuda:0"):
            raise ConfigError(
                f"{key} is {device!r}, and under the executor ray each worker sees GPUs of its own, from cuda:0 on. "
                "Write that; executor.ray.devices says how many workers there are."
            )


def refuse_too_large(nodes: Iterable[Mapping[str, Any]], setup: Setup, address: str) -> None:
    """Refuse degrees of parallelism for which no node has GPUs enough."""
    most = max((int(node["Resources"].get("GPU", 0)) for node in nodes if node["Alive"]), default=0)
    if 1 < _gpus(setup) > most:
        raise RefusedError(
            f"space.parallelism comes to {setup.ranks} GPUs a policy (data times the larger of tensor and pipeline), "
            f"and no node of the Ray cluster at {address!r} has more than {most}. Lower the degrees, or start a node "
            "with as many GPUs."
        )


def refuse_too_many(wanted: int | None, found: list[Place], address: str) -> None:
    """Refuse more devices than there are; None: all, but at least one."""
    if not found:
        raise RefusedError(
            f"the Ray cluster at {address!r} has no such device to give. Start nodes that have (ray start "
            "--address=HOST:PORT)."
        )
    if wanted is not None and wanted > len(found):
        counted = {place.node: f"{place.name}: {place.number + 1}" for place in found}
        each = f" of {found[0].gpus} GPUs each" if found[0].gpus > 1 else ""
        raise RefusedError(
            f"executor.ray.devices is {wanted}, and the Ray cluster at {address!r} has {len(found)}{each} "
            f"({', '.join(counted.values())}). Write {len(found)} or fewer, or start more nodes."
        )


def refuse_other(place: Place, found: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    """Refuse a node of which something is not as it is at the coordinator's."""
    other = [f"{key} {told} (here: {wanted[key]})" for key, told in found.items() if told != wanted[key]]
    if other:
        raise RefusedError(
            f"{place.name} has {', '.join(other)}. What is measured there could not stand beside what is measured "
            "here: install the same on every node, and search on devices of one model."
        )


def versions() -> Callable[[], dict[str, str]]:
    """What tells, wherever it is called, which versions are installed there. It has no name in a module, and so it is
    shipped as a whole: a node with another autogreen could not load ours."""

    def found() -> dict[str, str]:
        import hashlib
        import platform
        from importlib.metadata import PackageNotFoundError, version
        from importlib.util import find_spec
        from pathlib import Path

        told = {"python": platform.python_version()}
        for name in ("autogreen", "torch", "torchao"):
            try:
                told[name] = version(name)
            except PackageNotFoundError:
                told[name] = "missing"
        source, spec = hashlib.sha256(), find_spec("autogreen")
        for folder in (spec and spec.submodule_search_locations) or ():
            for path in sorted(Path(folder).rglob("*.py")):
                source.update(path.read_bytes())
        return {**told, "autogreen's source": source.hexdigest()[:12]}

    return found


def _gpus(setup: Setup) -> int:
    """GPUs of one device of the cluster: ranks of one policy run on its processor together, or on a GPU each."""
    return setup.ranks if _on_gpu(setup.device) else int(_on_gpu(setup.training_device))


def _on_gpu(device: str | None) -> bool:
    return device is not None and device.startswith("cuda")
