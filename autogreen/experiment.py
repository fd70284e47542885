"""Experiment: one YAML file, validated once, wired to objects here and nowhere else.

task: digits                                 # or {digits: {width: 32}}, or a class of yours: {"module:Class": {}}
workload: {kind: offline, batch: 64}         # or {kind: single}, {kind: server, rate_per_s: 40, p95_s: 0.1}
space: ../search_spaces/cnn.yaml             # or the sections themselves
objectives: [quality, energy]                # also latency: of a call, a server's at the 95th percentile
constraints: {max_loss: 0.05}                # also max_latency_s (no server's), max_size_bytes, max_memory_bytes
protocol: {window_s: 0.5}
meter: {name: auto}
budget: {trials: 40, seconds: 900}           # also energy_j, payback; trial_seconds: cap of each one
strategy: guided                             # a forecast by probes, corrected by trials; or direct: the sampler alone
sampler: tpe
warm_start: digits                           # an earlier study beside this one, whose front is tried first
seed: 0
device: cpu                                  # or cuda:0; by default the first GPU, else the CPU
training_device: cuda:0                      # where policies are trained, by default the same; billed, never measured
executor: local                              # or ray, {ray: {address: auto}}: a cluster's devices (docs/cluster.md)
finalists: 6                                 # front members measured afresh and judged on the test split
seeds: 1                                     # trainings of each finalist, its first among them, judged on test
tracking: null                               # an MLflow server; by default sqlite beside the runs
carbon: {g_per_kwh: 380, source: "..., 2025"}  # grams of CO2 equivalent; absent: none is told anywhere
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autogreen.carbon import Carbon
from autogreen.engines import DEGREES
from autogreen.errors import AutogreenError, ConfigError, RefusedError
from autogreen.measurement import Protocol
from autogreen.meters import Tier
from autogreen.registry import nearest, resolve
from autogreen.schema import build, check_keys, read_yaml
from autogreen.space import SearchSpace
from autogreen.workload import Workload

if TYPE_CHECKING:
    from autogreen.evaluation import Evaluation

SAMPLERS = ("tpe", "nsgaii", "nsgaiii", "gp", "random")


@dataclass(frozen=True, kw_only=True)
class Constraints:
    """What a policy must keep. max_loss: mean quality lost against the baseline on validation (2 standard errors of
    grace while searching). max_latency_s: seconds a call. max_size_bytes: the artifact. max_memory_bytes: weights and
    the peak of one call."""

    max_loss: float | None = None
    max_latency_s: float | None = None
    max_size_bytes: float | None = None
    max_memory_bytes: float | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not 0 <= value < float("inf"):
                raise ConfigError(f"{name} must be 0 or more, not {value!r}")

    def excess(self, evaluation: "Evaluation") -> dict[str, float]:
        """For every constraint by how much it is missed (0 or less: it holds); a loss only beyond its interval."""
        latency = evaluation.measurement.latency_s.mean if evaluation.measurement else None
        pairs = {
            "max_loss": (evaluation.loss.low if evaluation.loss else None, self.max_loss),
            "max_latency_s": (latency, self.max_latency_s),
            "max_size_bytes": (evaluation.size_bytes, self.max_size_bytes),
            "max_memory_bytes": (evaluation.memory_bytes, self.max_memory_bytes),
        }
        return {name: value - limit for name, (value, limit) in pairs.items() if None not in (value, limit)}  # type: ignore[operator]


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The search stops at whichever comes first. trials: distinct policies evaluated. seconds, energy_j: of the whole
    search, also hard caps inside a trial. payback: items to be served; it stops when another trial no longer saves what
    it costs over so many (see `autogreen.payback`). trial_seconds: cap of each trial."""

    trials: int | None = 40
    seconds: float | None = None
    energy_j: float | None = None
    payback: float | None = None
    trial_seconds: float = 600.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not 0 < value < float("inf"):
                raise ConfigError(f"{name} must be above 0, not {value!r}")
        if (self.trials, self.seconds, self.energy_j) == (
            None,
            None,
            None,
        ):  # what nothing meets is never paid
            raise ConfigError("needs trials, seconds or energy_j: without one the search never ends")


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """The resolved experiment. task: the object; task_data: what it is made of, a name or {name: settings}; None: a
    model that was given in Python, to the experiment that `own_model` names."""

    name: str
    task: Any
    task_data: str | Mapping[str, Any] | None
    own_model: str | None = None
    space: SearchSpace
    workload: Workload = field(default_factory=Workload)
    objectives: tuple[str, ...] = ("quality", "energy")
    constraints: Constraints = field(default_factory=Constraints)
    protocol: Protocol = field(default_factory=Protocol)
    budget: Budget = field(default_factory=Budget)
    meter: Mapping[str, Any] = field(default_factory=dict)
    strategy: str = "guided"
    sampler: str = "tpe"
    warm_start: str | None = None
    seed: int = 0
    device: str = "auto"
    training_device: str | None = None
    executor: str | Mapping[str, Any] = "local"
    finalists: int = 6
    seeds: int = 1
    tracking: str | None = None
    carbon: Carbon | None = None

    def __post_init__(self) -> None:
        from autogreen.executors import settings_of
        from autogreen.strategies import STRATEGIES
        from autogreen.tracking.connection import check_address

        if self.sampler not in SAMPLERS:
            known = ", ".join(SAMPLERS)
            raise ConfigError(f"unknown sampler {self.sampler!r}.{nearest(self.sampler, SAMPLERS)} Known: {known}.")
        if self.strategy not in STRATEGIES:
            known = ", ".join(STRATEGIES)
            raise ConfigError(
                f"unknown strategy {self.strategy!r}.{nearest(self.strategy, STRATEGIES)} Known: {known}."
            )
        if self.objectives not in (("quality", "energy"), ("quality", "energy", "latency")):
            raise ConfigError(
                f"{self.name}.objectives must be [quality, energy], or [quality, energy, latency], not "
                f"{list(self.objectives)!r}. What else a policy must keep to is said by constraints."
            )
        settings_of(self.executor, f"{self.name}.executor")
        if self.finalists < 0:
            raise ConfigError(f"finalists must be 0 or more, not {self.finalists!r}.")
        if not 1 <= self.seeds <= 100:
            raise ConfigError(f"seeds must be from 1 to 100, not {self.seeds!r}.")
        if self.tracking is not None:
            check_address(self.tracking)
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"seed must be from 0 to 4294967295, not {self.seed!r}.")
        batches = [batch for batch in self.space.options("parallelism", "batch") if batch is not None]
        if self.workload.fixed_batch is not None and batches:
            raise ConfigError(
                f"space.parallelism.batch: the workload fixes the batch at {self.workload.fixed_batch}; leave it out, "
                "or set workload.batch to null."
            )
        self._check_serving(batches)

    def _check_serving(self, batches: Sequence[int]) -> None:
        """A server's keys stand where there is a server, and can be kept together."""
        delays = [delay for delay in self.space.options("parallelism", "batch_delay_s") if delay is not None]
        limit_s = self.workload.p95_s
        if limit_s is None:
            if delays:
                raise ConfigError(
                    "space.parallelism.batch_delay_s: nobody waits for a batch to fill in a workload of kind "
                    f"{self.workload.kind}; leave it out, or set workload.kind to server."
                )
            return
        if not batches:
            raise ConfigError(
                "a server workload needs space.parallelism.batch: how many requests go together is the policies' to "
                "choose, for example {choice: [1, 4, 16]}."
            )
        if delays and max(delays) >= limit_s:
            raise ConfigError(
                f"space.parallelism.batch_delay_s reaches {max(delays):g} s, and workload.p95_s is {limit_s:g} s: who "
                "waits so long for a batch to fill is late before it begins. Keep it below."
            )
        if self.constraints.max_latency_s is not None:
            raise ConfigError("constraints.max_latency_s: a server's limit is workload.p95_s; leave this one out.")

    def excess(self, evaluation: "Evaluation") -> dict[str, float]:
        """By how much each constraint is missed (0 or less: it holds), the limit of a server among them."""
        return {**self.constraints.excess(evaluation), **self.workload.excess(evaluation.measurement)}

    def refuse_untellable(self, tier: Tier) -> None:
        """Refuse to search what a meter of this tier cannot tell apart.

        Raises:
            RefusedError: an estimate would have to rank thread counts.
        """
        threads = self.space.options("parallelism", "threads")
        if tier == "estimated" and len(threads) > 1:
            raise RefusedError(
                f"{self.name}.space.parallelism.threads is open ({', '.join(map(str, threads))}), and energy is only "
                "estimated here, from processor time: threads that wait by spinning count as work, so an estimate "
                "cannot rank thread counts. Write one number (threads: 1), or search on a machine with a counter; "
                "autogreen doctor tells what this one lacks."
            )

    @property
    def by_latency(self) -> bool:
        """Whether latency is an objective, beside quality and energy."""
        return "latency" in self.objectives

    @property
    def ranks(self) -> int:
        """On how many ranks a policy of the space runs at most; tensor and pipeline go into no policy together."""
        data, tensor, pipeline = (max(self.space.options("parallelism", name), default=1) for name in DEGREES)
        return int(data * max(tensor, pipeline))

    @property
    def task_text(self) -> str:
        """`digits`, or `digits(width=16)`."""
        if self.task_data is None:
            return f"{self.own_model} (own model)"
        if isinstance(self.task_data, str):
            return self.task_data
        ((name, settings),) = self.task_data.items()
        return f"{name}({', '.join(f'{key}={value}' for key, value in (settings or {}).items())})"

    def to_json(self) -> dict[str, Any]:
        """Plain data that `from_json` turns back into an equal experiment, but for a task that was given in Python."""
        values = {name: getattr(self, name) for name in _SCALARS}
        held = {name: getattr(self, name) for name in _PARTS}
        parts = {name: None if part is None else asdict(part) for name, part in held.items()}
        parts["workload"] = self.workload.to_json()
        values["objectives"] = list(self.objectives)
        return {"task": self.task_data, "space": self.space.to_json(), **parts, **values}


_PARTS = {
    "workload": Workload,
    "constraints": Constraints,
    "protocol": Protocol,
    "budget": Budget,
    "carbon": Carbon,
}
_SCALARS: dict[str, Any] = {
    "objectives": list | tuple,
    "strategy": str,
    "sampler": str,
    "seed": int,
    "device": str,
    "training_device": str,
    "warm_start": str,
    "executor": str | dict,
    "finalists": int,
    "seeds": int,
    "tracking": str,
    "meter": dict,
}
_OPTIONAL = ("tracking", "training_device", "warm_start", "carbon")


def load(path: Path, overrides: tuple[str, ...] = ()) -> Experiment:
    """Read an experiment; `overrides` are ``key.key=value`` texts whose values are YAML.

    Raises:
        ConfigError: names the path, the value and what is allowed.
    """
    data = read_yaml(path)
    for text in overrides:
        override(data, text)
    return from_json(data, name=path.stem, folder=path.parent)


def from_json(data: Mapping[str, Any], *, name: str, folder: Path, task: Any = None) -> Experiment:
    """Build an experiment from plain data; paths in it are relative to `folder`. `task`: the object, if it is made
    already; the key is then not allowed in the data."""
    known = ("task", "space", *_PARTS, *_SCALARS)
    check_keys(data, known if task is None else known[1:], name)
    for key in ("task", "space")[task is not None :]:
        if key not in data:
            raise ConfigError(f"{name} needs {key!r}.")
    for key, kind in _SCALARS.items():
        if key in data and not _is(data[key], kind) and not (key in _OPTIONAL and data[key] is None):
            raise ConfigError(f"{name}.{key} must be {_WORDS[kind]}, not {data[key]!r}.")
    scalars = {key: data[key] for key in _SCALARS if key in data}
    if "objectives" in scalars:
        scalars["objectives"] = tuple(scalars["objectives"])
    space = data["space"]
    if isinstance(space, str):
        space = read_yaml(folder / space)
    return Experiment(
        name=name,
        task=build_task(data["task"], f"{name}.task") if task is None else task,
        task_data=data["task"] if task is None else None,
        own_model=None if task is None else name,
        space=SearchSpace.from_json(space, f"{name}.space"),
        **{
            key: build(cls, data[key], f"{name}.{key}")
            for key, cls in _PARTS.items()
            if key in data and not (key in _OPTIONAL and data[key] is None)
        },
        **scalars,
    )


def _is(value: Any, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


_WORDS: dict[Any, str] = {
    str: "text",
    int: "a whole number",
    dict: "a mapping",
    list | tuple: "a list",
    str | dict: "a name or one {name: settings}",
}


def build_task(data: Any, where: str) -> Any:
    """A task from its name, ``module:Class``, or a mapping of one of these to its settings."""
    from autogreen.tasks import TASKS, Task

    if isinstance(data, str):
        data = {data: {}}
    if not isinstance(data, Mapping) or len(data) != 1:
        raise ConfigError(f"{where} must be a name or one {{name: settings}}, not {data!r}.")
    ((name, settings),) = data.items()
    if ":" in name and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # a user's own module, beside which the command is run
    cls = resolve(name) if ":" in name else TASKS[name]
    where, settings = f"{where}.{name}", {} if settings is None else settings
    if not (isinstance(cls, type) and issubclass(cls, Task)):
        raise ConfigError(f"{where} is no subclass of autogreen.tasks.Task, which says what a task must do.")
    if settings and not is_dataclass(cls):
        raise ConfigError(f"{where} takes no settings: make {cls.__name__} a dataclass whose fields they are.")
    try:
        return build(cls, settings, where) if is_dataclass(cls) else cls()
    except AutogreenError:
        raise
    except Exception as error:
        raise ConfigError(f"{where} cannot be made: {type(error).__name__}: {error}.") from error


def pick_device(wanted: str, key: str = "device") -> str:
    """The first GPU where "auto" finds one, else the CPU. key: what messages call it."""
    import torch

    if wanted != "auto":
        if "," in wanted:
            raise ConfigError(f"{key} is {wanted!r}, and a search runs on one device; name one of them.")
        if wanted != "cpu" and not (wanted.startswith("cuda") and torch.cuda.is_available()):
            raise ConfigError(
                f"{key} {wanted!r} is not here; use cpu{' or cuda:0' if torch.cuda.is_available() else ''}."
            )
        return wanted
    return "cuda:0" if torch.cuda.is_available() else "cpu"


def override(data: dict[str, Any], text: str) -> None:
    """Change one key of plain data, in place, as a text ``key.key=value`` says.

    Raises:
        ConfigError: it is not of that form, or leads below what is no mapping.
    """
    from autogreen.schema import parse_yaml

    path, equals, value = text.partition("=")
    if not equals or not path:
        raise ConfigError(f"--set {text!r} is not of the form key=value or key.key=value.")
    *owners, last = path.split(".")
    for owner in owners:
        data = data.setdefault(owner, {})
        if not isinstance(data, dict):
            raise ConfigError(
                f"--set {text!r}: {owner!r} is {data!r}, not a mapping. Where that is a file, change it there."
            )
    data[last] = parse_yaml(f"value: {value}", f"--set {path}")["value"]
