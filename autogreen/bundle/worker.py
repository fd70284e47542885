"""The fresh process of `verify`: one JSON job on standard input, one JSON answer on standard output."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autogreen.beside import measure_programs, meters_of
from autogreen.bundle import golden
from autogreen.bundle.manifest import Energy, Manifest, workload
from autogreen.bundle.read import examples, load_reference, opened, read
from autogreen.bundle.verify import Verification, kept
from autogreen.engines import Program
from autogreen.errors import BundleError, MeterError
from autogreen.measurement import Beside, Protocol
from autogreen.process import answer

BUSY_SHARE = 0.25  # of the windows, from which the machine counts as busy


def check(
    folder: Path, protocol: Protocol | None, meter: Mapping[str, Any] | None, *, native_code: bool = False
) -> Verification:
    """Compare golden outputs; measure beside the reference where that can be compared.

    Raises:
        BundleError: what does not hold of files and outputs, with the figures.
    """
    from autogreen import hardware

    manifest = read(folder)
    inputs, expected = examples(folder, manifest)
    program = opened(folder, manifest.recipe, manifest.versions.torch, native_code=native_code)
    difference = _difference(folder, manifest, program, inputs, expected)
    here = hardware.name(hardware.describe(manifest.recipe.device))
    energy, there = manifest.energy, hardware.name(manifest.hardware)
    promised = None if energy is None else energy.ratio_prediction
    beside: Beside | None = None
    asked = protocol or (Protocol() if energy is None else energy.protocol)
    note = ""
    if energy is None:
        note = f"converted from {manifest.converted_from!r}: outputs only, energy not measured"
    elif promised is None:
        note = "this is the reference itself: no energy ratio was promised, outputs only"
    elif here != there:
        note = f"other hardware ({here}; the promise is for {there}): outputs only, energy not measured"
    else:
        try:
            beside, note = _measured(folder, manifest, energy, program, inputs, asked, meter, native_code)
        except MeterError as error:
            note = f"energy not measured, outputs only: {error}"
    return Verification(
        study=manifest.study,
        key=manifest.key,
        hardware=here,
        examples=manifest.golden.examples,
        difference=difference,
        tolerance=manifest.golden.tolerance,
        ratio=None if beside is None else beside.ratio,
        promised=promised,
        busy=None if beside is None or kept(beside.ratio, promised) else _busy(beside, asked.foreign_limit),
        notes=(note,) if note else (),
        warnings=() if beside is None else (*beside.warnings, *beside.candidate.warnings),
    )


def _measured(
    folder: Path,
    manifest: Manifest,
    energy: Energy,
    program: Program,
    inputs: Any,
    protocol: Protocol,
    meter: Mapping[str, Any] | None,
    native_code: bool,
) -> tuple[Beside | None, str]:
    """The program beside its reference; or None, and why that would be no answer to the promise.

    Raises:
        MeterError: no counter here, or it fails.
    """
    reference = load_reference(folder, manifest, native_code=native_code)
    meters = meters_of(manifest.recipe, reference.recipe, energy.meter if meter is None else meter)
    chosen, _ = meters
    if chosen.tier != energy.tier:
        return None, f"energy is {chosen.tier} here and was {energy.tier} there: outputs only, energy not measured"
    if chosen.boundary != energy.boundary:
        return None, (
            f"energy here is of another boundary ({chosen.boundary}; there: {energy.boundary}): outputs only, energy "
            "not measured. Give the meter the settings of the search."
        )
    assert energy.reference_items_per_call is not None, "a ratio needs it, and parsing has seen to that"
    beside, _ = measure_programs(
        program,
        inputs,
        reference,
        inputs,
        items=energy.items_per_call,
        reference_items=energy.reference_items_per_call,
        meters=meters,
        protocol=protocol,
        workload=workload(manifest, str(folder)),
    )
    return beside, ""


def _difference(folder: Path, manifest: Manifest, program: Program, inputs: Any, expected: Any) -> float:
    args, kwargs = inputs
    try:
        outputs = program(*args, **kwargs)
    except Exception as error:
        raise BundleError(f"{folder} fails on its golden inputs ({type(error).__name__}: {error}).") from error
    difference, allowed = golden.difference(expected, outputs), manifest.golden.tolerance
    if not difference <= allowed:
        raise BundleError(
            f"{folder} gives other outputs than recorded: they differ by {difference:.3g} of their largest value, "
            f"{allowed:g} is allowed. Recorded on {manifest.hardware.get('cpu')} with torch {manifest.versions.torch}. "
            "Do not deploy it here; export it again, on this machine."
        )
    return difference


def _busy(beside: Beside, foreign_limit: float) -> str | None:
    """What other programs did, in one sentence, where they were about in a quarter of the windows or more, used or
    discarded; else None: single windows that a clock tick or a cron job touched excuse nothing."""
    readings = [
        window.reading
        for side in (beside.candidate, beside.reference)
        for window in side.windows
        if window.reading is not None
    ]
    cores = [(reading.foreign_busy_s or 0.0) / reading.duration_s for reading in readings]
    told = {guest: None for reading in readings for guest in reading.guests}
    told |= {reading.disturbed: None for reading in readings if reading.disturbed}
    beside_others = [
        bool(reading.guests) or reading.disturbed is not None or busy > foreign_limit
        for reading, busy in zip(readings, cores, strict=True)
    ]
    if sum(beside_others) < BUSY_SHARE * len(readings):
        return None
    if max(cores) > foreign_limit:
        told[f"{max(cores):.2f} foreign busy cores at most"] = None
    return f"{sum(beside_others)} of {len(readings)} windows ran beside other programs ({'; '.join(told)})."


def _answer(job: Any) -> dict[str, Any]:
    protocol = None if job["protocol"] is None else Protocol(**job["protocol"])
    return check(Path(job["folder"]), protocol, job["meter"], native_code=job["native_code"]).to_json()


if __name__ == "__main__":
    answer(_answer)
