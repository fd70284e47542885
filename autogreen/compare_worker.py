"""The fresh process of `compare`: both programs resident, measured in turns, the recording handed back."""

from typing import TYPE_CHECKING, Any

from autogreen import hardware
from autogreen.beside import measure_programs, meters_of
from autogreen.bundle.read import examples, opened, read
from autogreen.engines import Program
from autogreen.entrant import Entrant
from autogreen.errors import EvaluationError, RefusedError, StudyError
from autogreen.measurement import Protocol
from autogreen.process import answer
from autogreen.recording import SIDES, recorded
from autogreen.store import Store

if TYPE_CHECKING:
    from autogreen.tasks import Inputs


def contest(a: Entrant, b: Entrant, protocol: Protocol) -> dict[str, Any]:
    """Measure A beside B here; return `beside` and `recording` as plain data.

    Raises:
        RefusedError: one of them is for another machine.
        AutogreenError: a program that does not load or run, a meter that cannot be read.
    """
    here = hardware.describe(a.recipe.device)
    for entrant in (a, b):
        there = hardware.name(entrant.hardware)
        if there != hardware.name(here):
            raise RefusedError(
                f"{entrant.name} is for {there}; this is {hardware.name(here)}. Which of two programs is cheaper "
                "depends on the machine: compare there, or search and export here."
            )
    meters = meters_of(a.recipe, b.recipe, a.meter)
    (program, inputs), (other, theirs) = _loaded(a), _loaded(b)
    beside, order = measure_programs(
        program,
        inputs,
        other,
        theirs,
        items=a.items,
        reference_items=b.items,
        meters=meters,
        protocol=protocol,
        workload=a.workload,
    )
    recording = recorded(
        dict(zip(SIDES, (beside.candidate, beside.reference), strict=True)),
        order=order,
        names=dict(zip(SIDES, (a.name, b.name), strict=True)),
        resolution_s=max(meter.resolution_s for meter in meters),
        protocol=protocol,
        hardware=here,
        item=a.item,
        notes=_notes(a, b, inputs, theirs, meters[0].tier, here),
    )
    return {"beside": beside.to_json(), "recording": recording}


def _loaded(entrant: Entrant) -> tuple[Program, "Inputs"]:
    """The program, which has run once, and real inputs."""
    if entrant.bundle:
        inputs, _ = examples(entrant.folder, read(entrant.folder))
    else:
        try:
            inputs = Store.open(entrant.folder.parents[1]).golden()
        except (OSError, ValueError, KeyError) as error:
            raise StudyError(
                f"the inputs kept with study {entrant.study!r} cannot be read ({type(error).__name__}: {error}). "
                "Run its sweep again, or compare bundles."
            ) from error
    made_with = str(entrant.hardware.get("torch"))
    program = opened(entrant.folder, entrant.recipe, made_with, native_code=entrant.native_code)
    try:
        program(*inputs[0], **inputs[1])
    except Exception as error:
        raise EvaluationError(
            f"{entrant.name} fails on its golden inputs ({type(error).__name__}: {error}). Verify its bundle, or run "
            "the sweep again."
        ) from error
    return program, inputs


def _notes(a: Entrant, b: Entrant, inputs: "Inputs", theirs: "Inputs", tier: str, here: dict[str, Any]) -> list[str]:
    from autogreen.tasks import cut, digest

    notes = []
    if (a.study, a.key) == (b.study, b.key):
        notes.append("A and B are the same policy, loaded twice: what differs is noise, or how each was laid out")
    if digest(cut(inputs, 1)[0]) != digest(cut(theirs, 1)[0]):
        notes.append("A and B ran on different inputs, each on its own golden ones; power depends on the values")
    if tier == "estimated" and a.recipe.threads != b.recipe.threads:
        notes.append(
            f"A runs with {a.recipe.threads} and B with {b.recipe.threads} threads: an estimate bills threads that "
            "wait as work, and cannot tell which number is better; a machine with a counter can"
        )
    if a.meter != b.meter:
        notes.append(
            f"both were measured with A's settings of the meter ({a.meter or 'none'}; B's: {b.meter or 'none'})"
        )
    if tier != a.tier:
        notes.append(f"energy is {tier} here; both were {a.tier} when they were searched")
    if versions := {str(entrant.hardware.get("torch")) for entrant in (a, b)} - {here["torch"]}:
        notes.append(f"made with torch {', '.join(sorted(versions))}; this is {here['torch']}")
    return notes


def _answer(job: Any) -> dict[str, Any]:
    a, b = (Entrant.from_json(job[side]) for side in ("a", "b"))
    return contest(a, b, Protocol(**job["protocol"]))


if __name__ == "__main__":
    answer(_answer)
