"""From what a user writes to cases: everything is refused here, before anything is measured."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from autogreen.anatomy import Anatomy
from autogreen.errors import ConfigError
from autogreen.experiment import Experiment, load, pick_device
from autogreen.kernels import PLAIN, Case, session
from autogreen.kernels.cases import cases_in, cases_of, rows_of, schemes_asked, shape_of
from autogreen.measurement import Protocol
from autogreen.preview import prepared
from autogreen.schema import build


@dataclass(frozen=True, kw_only=True)
class Asked:
    """cases: in the order in which they are measured. meter: `name` and its settings. notes: what is left out, and
    why."""

    here: session.Here
    cases: tuple[Case, ...]
    protocol: Protocol
    meter: Mapping[str, Any]
    notes: tuple[str, ...]


def understand(
    experiment: Path | None,
    *,
    shapes: Sequence[str] = (),
    rows: Sequence[str] = (),
    schemes: Sequence[str] = (),
    device: str | None = None,
    changes: Mapping[str, Any] | None = None,
    runs: Path = Path("runs"),
) -> Asked:
    """Cases of a model, or of the named shapes and rows, or the usual ones of the device.

    Args:
        experiment: YAML file; its model is built for its layers, and its batch, meter, device and protocol are taken.
        shapes, rows: as texts: "1024x4096", "1,32". changes: of the protocol.

    Raises:
        ConfigError: names what is not valid. RefusedError: no scheme runs here. MeterError: no energy can be read.
    """
    named, counts = [shape_of(text) for text in shapes], rows_of(rows)
    if experiment is not None and named:
        raise ConfigError("--experiment takes the shapes of its model; leave --shape out, or ask without it.")
    loaded = None if experiment is None else load(experiment)
    here_on = pick_device(device or (loaded.device if loaded else "auto"))
    wanted = schemes_asked(schemes, here_on)
    protocol = loaded.protocol if loaded else session.PROTOCOL
    protocol = build(Protocol, {**asdict(protocol), **(changes or {})}, "protocol")
    meter = loaded.meter if loaded else {}
    here = session.look(here_on, meter)
    found, notes = session.runnable(here, wanted)
    if loaded is None:
        cases = cases_of(named, counts, found, here_on)
    else:
        cases, told = _of_model(replace(loaded, device=here_on), counts, found, runs)
        notes = (*notes, *told)
    return Asked(here=here, cases=cases, protocol=protocol, meter=meter, notes=notes)


def _of_model(
    experiment: Experiment, rows: Sequence[int], schemes: Sequence[str], runs: Path
) -> tuple[tuple[Case, ...], tuple[str, ...]]:
    """The model is built where a search would build it; the first time it is trained, and kept."""
    fixed = experiment.workload.fixed_batch
    batches = [fixed] if fixed else [size for size in experiment.space.options("parallelism", "batch") if size]
    if not batches and not rows:
        raise ConfigError(f"{experiment.name} leaves the batch open: name the rows that are asked (--rows 1,32).")
    found = prepared(experiment, ("quantization",), runs)
    anatomy = Anatomy.from_json(found["anatomy"])
    cases, notes = cases_in(anatomy, batches, rows, schemes)
    if not cases:
        raise ConfigError(f"{anatomy.model} has no layer that a scheme could treat; name shapes with --shape.")
    plain = PLAIN[experiment.device.partition(":")[0]]
    if found["dtype"] != plain:
        notes = (*notes, f"the model is {found['dtype']}; here its layers are held against plain {plain} ones")
    return cases, notes
