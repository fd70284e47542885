"""The fresh process that measures one shape: a kernel that crashes takes its own cells along, and nothing else."""

from collections.abc import Iterator, Mapping
from typing import Any

from autogreen import hardware
from autogreen.errors import MeterError
from autogreen.kernels import ENGINE, Shape
from autogreen.measurement import Protocol
from autogreen.meters import Meter, choose
from autogreen.process import answer_each
from autogreen.techniques.quantization.schemes import SCHEMES, missing_kernel


def _answer(job: Any) -> Iterator[dict[str, Any]]:
    """`look`: which machine and meter, and which schemes run on it; `bench`: cell after cell. A fault of the meter is
    told apart, since it ends everything."""
    try:
        if job["call"] == "look":
            yield look(job["device"], _meter(job))
            return
        from autogreen.kernels.bench import bench

        cells = bench(
            Shape(**job["shape"]),
            job["rows"],
            tuple(job["schemes"]),
            device=job["device"],
            meter=_meter(job),
            protocol=Protocol(**job["protocol"]),
            warm=job["warm"],
        )
        for cell in cells:
            yield {"cell": cell.to_json()}
    except MeterError as error:
        yield {"meter": str(error)}


def look(device: str, meter: Meter) -> dict[str, Any]:
    """Machine, meter, and for every scheme why it does not run here at all, or None."""
    return {
        "hardware": hardware.describe(device),
        "tier": meter.tier,
        "boundary": meter.boundary,
        "missing": {scheme: missing_kernel(scheme, device=device, engine=ENGINE) for scheme in SCHEMES},
    }


def _meter(job: Mapping[str, Any]) -> Meter:
    settings = dict(job["meter"])
    return choose(job["device"], settings.pop("name", "auto"), **settings)


if __name__ == "__main__":
    answer_each(_answer)
