"""MODEL_CARD.md: the manifest, told to people."""

from autogreen.bundle.manifest import Energy, Manifest
from autogreen.engines import ENGINES
from autogreen.hardware import name
from autogreen.measurement import Interval

TEXT = """# {study}: {key}

A compressed PyTorch model for the task `{task}`, found and exported by autogreen {autogreen}. `policy.yaml` says what \
was done to it, `manifest.json` holds every number in full.

| | mean | 95 % interval |
|---|--:|--:|
{rows}

{energy} Numbers hold for this hardware and workload, for the engine `{engine}` with batches of {batch} and {threads} \
thread(s), and torch {torch}.{prediction}

{layers}## Use

```python
import torch
from autogreen.bundle import load

program = load("path/to/this/folder"{trust})  # checks every hash first
outputs = program({call})  # any number of examples, tensors on the CPU
```

`autogreen verify path/to/this/folder{option}` compares its outputs with the recorded ones and, on the same hardware, \
its energy with the promise.

## Limits

- The hashes show that nothing changed since the export. They do not show who made it: take bundles only from sources \
that you trust.
- Loading runs {executes}. {guard}
- Inputs must look like those it was exported with: {inputs}.
"""

PLAIN = "It is looked through first: pickled content, machine code and foreign operators are refused."
NATIVE = "Nobody can look through that: it is loaded only where you say that you trust its source."


def card(manifest: Manifest) -> str:
    """Markdown, about a page."""
    energy, recipe, engine = manifest.energy, manifest.recipe, ENGINES[manifest.recipe.engine]
    hardware = name(manifest.hardware)
    workload = ", ".join(f"{key}: {value}" for key, value in manifest.workload.items())
    rows = [_row("quality on validation", manifest.validation.quality)]
    if manifest.validation.quality_loss is not None:
        rows.append(_row("quality lost against the reference, validation", manifest.validation.quality_loss))
    if manifest.test is not None:
        rows.append(_row("quality on test", manifest.test.quality))
        if manifest.test.quality_loss is not None:
            rows.append(_row("quality lost against the reference, test", manifest.test.quality_loss))
    prediction = ""
    if energy is None:
        told = (
            f"**Energy not measured**: the program was searched in the engine `{manifest.converted_from}`, in the "
            f"workload `{workload}`, on {hardware}, and only converted since. Quality is that of the program it was "
            "converted from, whose golden outputs it gives within the tolerance."
        )
    else:
        rows += _energy(manifest, energy)
        told = f"Energy is **{energy.tier}** ({energy.boundary}), in the workload `{workload}`, on {hardware}."
        if energy.ratio_prediction is not None:
            promised = energy.ratio_prediction
            prediction = (
                f" A fresh measurement of the energy ratio on this device is promised to fall in {promised.low:.4g} to "
                f"{promised.high:.4g}."
            )
    parts = manifest.golden.inputs["tuple"]
    names = [*(f"arg{place}" for place, _ in enumerate(parts[0]["tuple"])), *(f"{k}={k}" for k in parts[1]["dict"])]
    return TEXT.format(
        study=manifest.study,
        key=manifest.key,
        task=manifest.task,
        autogreen=manifest.versions.autogreen,
        rows="\n".join(rows),
        energy=told,
        engine=recipe.engine,
        batch=recipe.batch,
        threads=recipe.threads,
        torch=manifest.versions.torch,
        prediction=prediction,
        call=", ".join(names),
        executes=engine.executes,
        guard=NATIVE if engine.native else PLAIN,
        trust=", native_code=True" if engine.native else "",
        option=" --trust-native-code" if engine.native else "",
        inputs=", ".join(names),
        layers=_layers(manifest),
    )


def _energy(manifest: Manifest, energy: Energy) -> list[str]:
    rows = [_row(f"millijoules per {manifest.item}", energy.per_item_j, 1e3)]
    if energy.net_per_item_j is not None:
        rows.append(_row(f"of these above the device at rest ({energy.idle_w:.3g} W)", energy.net_per_item_j, 1e3))
    rows.append(f"| watt-hours per {manifest.item} | {energy.per_item_wh:.4g} | |")
    if energy.carbon is not None and energy.emission_per_item_g is not None:
        stated = energy.carbon.words.replace("|", "\\|")
        rows.append(f"| grams of CO2e per {manifest.item}, at {stated} | {energy.emission_per_item_g:.4g} | |")
    rows.append(f"| energy-delay product, joule-seconds per call | {energy.energy_delay_js:.4g} | |")
    if energy.times_above_floor is not None:
        rows.append(f"| energy over the least that the work can cost here | {energy.times_above_floor:.3g} | |")
    if energy.served is None:
        rows.append(_row("milliseconds per call", energy.latency_s, 1e3))
    else:
        rows.append(_row("milliseconds within which half of the requests were answered", energy.served.p50_s, 1e3))
        rows.append(_row("milliseconds within which 95 of 100 were", energy.served.p95_s, 1e3))
    if energy.ratio is not None:
        rows.append(_row("energy over the reference's", energy.ratio))
    return rows


def _layers(manifest: Manifest) -> str:
    """Which kernel ran which layers, one row a kernel."""
    found: dict[str, list[str]] = {}
    for layer, kernel in manifest.layers.items():
        found.setdefault(kernel, []).append(f"`{layer}`")
    if not found:
        return ""
    rows = [f"| {kernel} | {len(names)} | {', '.join(names)} |" for kernel, names in sorted(found.items())]
    return "\n".join(["## Kernels", "", "| kernel | layers | which |", "|---|--:|---|", *rows, "", ""])


def _row(what: str, value: Interval, scale: float = 1.0) -> str:
    return f"| {what} | {value.mean * scale:.4g} | {value.low * scale:.4g} to {value.high * scale:.4g} |"
