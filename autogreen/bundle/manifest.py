"""manifest.json: what a bundle states about itself, written and read strictly.

The text is canonical (sorted, indented by one) and holds a hash of itself, so any changed byte is noticed.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any

from autogreen.carbon import Carbon
from autogreen.engines import DEGREES, ENGINES, Kernel, Recipe
from autogreen.errors import BundleError, ConfigError
from autogreen.measurement import Interval, Protocol, Served
from autogreen.meters import Tier
from autogreen.schema import build, parse_json
from autogreen.workload import Workload

FORMAT = 5  # in 4 no recipe said how long a batch waits to be filled
NAME = "manifest.json"
DIGEST = "manifest_sha256"

# What an energy ratio moves by between two days although nothing changed: the program is compiled afresh, laid out
# elsewhere in memory, the machine is warmer. Such changes of set-up alone shift run times by several percent
# (Mytkowicz et al., "Producing wrong data without doing anything obviously wrong!", ASPLOS 2009); no number of windows
# within one process shows it. Here, fresh processes on two busy cores came out 6 % below to 2 % above. Relative, each
# way.
DRIFT = 0.10
MOST_RANKS = 1024


@dataclass(frozen=True, kw_only=True)
class File:
    """One file of the bundle."""

    size_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Mean score, and the paired loss against the reference (None: it is the reference), each with a 95 % interval."""

    quality: Interval
    quality_loss: Interval | None


@dataclass(frozen=True, kw_only=True)
class Energy:
    """items_per_call, reference_items_per_call: by which joules of a call were divided; None: it is the reference.
    per_item_j: joules per item; the interval of repeating. range_per_item_j: widened by the meter's own range.
    net_per_item_j: joules per item above those of the device at rest, at idle_w watts, for as long; None: rest was not
    looked at. energy_delay_js: of one call. times_above_floor: joules over the least that the work can cost on the
    device; None: nothing bounds it. latency_s: of a call, of a server of a request, which to it is a call. served: how
    its requests were answered; None: calls followed one another. emission_per_item_g: grams of CO2 equivalent at
    `carbon`; None: none was stated. ratio: joules per item over the reference's, measured in turns. ratio_prediction:
    where a fresh measurement of that ratio on the same device falls in 95 of 100 cases. windows: pairs (or windows)
    that the intervals rest on. protocol: takes as many pairs as that. meter: its settings, as the search had them.
    """

    items_per_call: int
    reference_items_per_call: int | None
    per_item_j: Interval
    range_per_item_j: Interval
    net_per_item_j: Interval | None
    idle_w: float | None
    per_item_wh: float
    energy_delay_js: float
    times_above_floor: float | None
    emission_per_item_g: float | None
    carbon: Carbon | None
    latency_s: Interval
    served: Served | None
    tier: Tier
    boundary: str
    windows: int
    protocol: Protocol
    meter: dict[str, Any]
    warnings: tuple[str, ...]
    ratio: Interval | None
    ratio_prediction: Interval | None


@dataclass(frozen=True, kw_only=True)
class Golden:
    """inputs, outputs: shapes of the trees in golden.safetensors. tolerance: relative, see `golden.difference`."""

    inputs: Any
    outputs: Any
    examples: int
    tolerance: float


@dataclass(frozen=True, kw_only=True)
class Versions:
    """What the bundle was exported with."""

    autogreen: str
    torch: str
    torchao: str
    python: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """item: what is counted. hardware: as `hardware.describe` gave it. converted_from: the engine in which it was
    searched, where it was only converted since; energy is then None, layers are not told, and quality is that of the
    program it was made from. kernels: matrix kernels of one call, counted; layers: the one of them that ran each
    convolution and linear layer. validation: what the search saw; test: judged once when the front was published, or
    None. files: by path inside the bundle, with forward slashes."""

    format: int
    study: str
    key: str
    task: str
    workload: dict[str, Any]
    item: str
    hardware: dict[str, Any]
    versions: Versions
    recipe: Recipe
    converted_from: str | None
    kernels: tuple[Kernel, ...]
    layers: dict[str, str]
    validation: Quality
    test: Quality | None
    energy: Energy | None
    golden: Golden
    files: dict[str, File]


def prediction(ratio: Interval) -> Interval:
    """Where the mean of a fresh measurement of an energy ratio falls in 95 of 100 cases.

    With the log-ratio's mean x and standard error s from n paired windows, its 95 % interval is x ± t·s, t the quantile
    of Student's distribution with n − 1 degrees of freedom. A fresh mean of as many windows has an error of its own, so
    the difference of the two has the standard error √(s² + s²), and the fresh one falls in x ± t·s·√2 (Hahn and Meeker,
    Statistical Intervals, 1991, chapter 4). t·s is read off the interval: half its width on the log scale.

    Where the interval is as wide as one measurement can be repeated (see `repeatability`), this is the limit of
    repeatability of ISO 5725-6. Never narrower than `DRIFT`, each way.
    """
    half = max(math.log(ratio.high / ratio.low) / 2 * math.sqrt(2), math.log1p(DRIFT))
    return Interval(mean=ratio.mean, low=ratio.mean * math.exp(-half), high=ratio.mean * math.exp(half))


def render(manifest: Manifest) -> str:
    """The manifest's text."""
    return seal(asdict(manifest))


def seal(data: Mapping[str, Any]) -> str:
    """Canonical text of plain data with its own hash inside."""
    return _text({**data, DIGEST: hashlib.sha256(_text(data).encode()).hexdigest()})


def parse(text: bytes, where: str) -> Manifest:
    """Read a manifest's text; `where` names it in errors.

    Raises:
        BundleError: too long, not JSON, changed, of another format, with unknown or missing keys or wrong types.
    """
    try:
        data = parse_json(text, where)
    except ConfigError as error:
        raise BundleError(f"{where} is not a manifest: {error}") from None
    if not isinstance(data, dict) or not isinstance(data.get("format"), int):
        raise BundleError(f"{where} is not a manifest: it states no format.")
    if data["format"] != FORMAT:
        raise BundleError(f"{where} has format {data['format']}; this autogreen reads {FORMAT}. Use the one it names.")
    digest = data.pop(DIGEST, None)
    if digest is None or seal(data).encode() != text:
        raise BundleError(f"{where} was changed after the export. Export again, or get the bundle from its source.")
    try:
        manifest = build(Manifest, data, where)
    except (ConfigError, RecursionError) as error:
        raise BundleError(f"{where} is not a manifest: {error}") from None
    if _text(asdict(manifest)) != _text(data) and json.loads(_text(asdict(manifest))) != data:
        raise BundleError(f"{where} is not a manifest: a nested part holds keys that no export writes.")
    _check(manifest, where)
    return manifest


def _check(manifest: Manifest, where: str) -> None:
    check_recipe(manifest.recipe, where)
    if (manifest.energy is None) != (manifest.converted_from is not None):
        raise BundleError(f"{where}: energy stands in every bundle but those that were only converted.")
    if manifest.converted_from is not None and manifest.converted_from not in ENGINES:
        raise BundleError(f"{where}: it was converted from {manifest.converted_from!r}, which is no engine.")
    if manifest.energy is not None:
        _check_energy(manifest.energy, where)
        workload(manifest, where)
    if not 0 < manifest.golden.tolerance < 1 or manifest.golden.examples < 1:
        raise BundleError(f"{where}: golden examples need a tolerance in (0, 1) and one example at least.")
    if len({name.casefold() for name in (*manifest.files, NAME)}) != len(manifest.files) + 1:
        raise BundleError(f"{where} names two files that some disks take for one: their names differ in case alone.")
    for name, file in manifest.files.items():
        path = PurePosixPath(name)
        plain = name == str(path) and not path.is_absolute() and ".." not in path.parts and name not in (".", NAME)
        if not plain or not re.fullmatch(r"[\w.\-/]+", name, re.ASCII):
            raise BundleError(f"{where} names the file {name!r}, which is no plain path inside the bundle.")
        if file.size_bytes < 0 or not re.fullmatch(r"[0-9a-f]{64}", file.sha256):
            raise BundleError(f"{where}: size or hash of {name!r} is none.")


def _check_energy(energy: Energy, where: str) -> None:
    if (energy.ratio is None) != (energy.ratio_prediction is None):
        raise BundleError(f"{where}: a ratio needs a prediction interval, and the other way round.")
    if (energy.ratio is None) != (energy.reference_items_per_call is None):
        raise BundleError(f"{where}: a ratio needs the reference's items per call, and the other way round.")
    if energy.items_per_call < 1 or (energy.reference_items_per_call or 1) < 1:
        raise BundleError(f"{where}: a call has one item at least.")


def workload(manifest: Manifest, where: str) -> Workload:
    """In which the energy was measured.

    Raises:
        BundleError: there is none like it.
    """
    try:
        return build(Workload, manifest.workload, f"{where}: workload")
    except ConfigError as error:
        raise BundleError(str(error)) from None


def check_recipe(recipe: Recipe, where: str) -> None:
    """Refuse a recipe that names no known engine or device, or absurd numbers, before anything runs by it."""
    if recipe.engine not in ENGINES:
        raise BundleError(f"{where}: unknown engine {recipe.engine!r}; this autogreen knows {', '.join(ENGINES)}.")
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", recipe.device):
        raise BundleError(f"{where}: the device is {recipe.device!r}; allowed: cpu, cuda, cuda:N.")
    if recipe.cuda_graph and not recipe.device.startswith("cuda"):
        raise BundleError(f"{where}: a CUDA graph on {recipe.device!r}, which is no NVIDIA GPU.")
    if not all(1 <= getattr(recipe, name) <= MOST_RANKS for name in DEGREES) or not 1 <= recipe.ranks <= MOST_RANKS:
        raise BundleError(f"{where}: degrees of parallelism are from 1 to {MOST_RANKS} together.")
    if recipe.micro_batch is not None and (recipe.micro_batch < 1 or recipe.batch % recipe.micro_batch):
        raise BundleError(f"{where}: micro-batches of {recipe.micro_batch} do not make up a batch of {recipe.batch}.")
    if not 0 <= recipe.batch_delay_s < math.inf:
        raise BundleError(f"{where}: batches wait {recipe.batch_delay_s!r} s to be filled, which is no time.")
    if not 1 <= recipe.threads <= 4096 or not 1 <= recipe.batch <= 1_000_000:
        raise BundleError(f"{where}: {recipe.threads} threads and batches of {recipe.batch} are out of bounds.")


def _text(data: Mapping[str, Any]) -> str:
    return json.dumps(data, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
