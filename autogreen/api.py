"""The same job from Python, on one's own model."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from autogreen.experiment import from_json
from autogreen.front import Front
from autogreen.store import Store

if TYPE_CHECKING:
    from torch import Tensor, nn

    from autogreen.comparison import Comparison


def search(
    model: "nn.Module",
    *,
    train: Iterable[Any],
    validation: Iterable[Any],
    test: Iterable[Any],
    loss: "Callable[[Any, Any], Tensor]",
    score: "Callable[[Any, Any], Tensor]",
    space: Any,
    calibration: Iterable[Any] | None = None,
    inputs: Callable[[Any], Any] | None = None,
    item: str = "sample",
    outputs: Literal["logits", "values"] = "logits",
    name: str = "search",
    runs: str | Path = "runs",
    report: Callable[[Any], Any] = lambda progress: None,
    **settings: Any,
) -> Front:
    """Search compression policies for a trained model; called again with the same arguments, it goes on.

    Args:
        model: the uncompressed model, trained.
        train, validation, test, calibration: loaders of batches (tuples, dicts or dataclasses of tensors).
        loss: (outputs, batch) -> scalar tensor to minimise while fine-tuning.
        score: (outputs, batch) -> tensor [n], one number per example, higher is better; differences in it are what
            `constraints.max_loss` limits.
        space: a mapping like the YAML, or the path of one.
        inputs: (batch) -> what the model is called with: a tensor, a tuple of arguments or a dict of keyword arguments;
            by default a tuple's first element, or a dict without `labels`.
        item: what one example is called. outputs: "logits" (distilled by KL divergence) or "values" (squared error).
        name, runs: results live in `runs`/`name`.
        report: called with a `Progress` after every step.
        settings: other keys of an experiment: workload, constraints, budget, protocol, meter, sampler, ...

    Raises:
        AutogreenError: says what, why and the next step.
    """
    from autogreen.sweep import sweep as run
    from autogreen.tasks.given import Given

    task = Given(
        model=model,
        train=train,
        validation=validation,
        test=test,
        calibration=calibration,
        loss_fn=loss,
        score_fn=score,
        inputs_fn=inputs,
        item=item,
        outputs=outputs,
    )
    if isinstance(space, Path):
        space = str(space)
    experiment = from_json({"space": space, **settings}, name=name, folder=Path.cwd(), task=task)
    folder = Path(runs) / name
    for progress in run(experiment, folder, Path(runs) / ".cache"):
        report(progress)
    return Front.of(Store.open(folder).results())


def export(front: Front, *, to: str | Path, pick: str = "knee", runs: str | Path = "runs") -> Path:
    """Write the picked policy of a front, as measured, as a bundle.

    Raises:
        AutogreenError: the rule fits no member, or the folder cannot be written.
    """
    from autogreen import bundle

    point = front.pick(pick)
    store = Store.open(Path(runs) / front.results.study)
    return bundle.export(
        point.evaluation,
        published=point.published,
        results=front.results,
        artifacts=store.folder / "artifacts",
        golden=store.golden(),
        to=Path(to),
    )


def compare(
    a: str | Path,
    b: str | Path,
    *,
    runs: str | Path = "runs",
    protocol: Mapping[str, Any] | None = None,
    record: str | Path | None = None,
    native_code: bool = False,
) -> "Comparison":
    """Measure two programs in turns, in one fresh process, and tell which takes less energy per item.

    Args:
        a, b: each the folder of a bundle, or STUDY:RULE: `baseline`, `plain`, a rule of `Front.pick`, an id.
        runs: folder that holds the studies.
        protocol: settings to change; else it is A's own, to ±1 % or one minute of windows.
        record: file to write every reading to.
        native_code: run machine code that came with a bundle, where its format holds some.

    Raises:
        AutogreenError: says what, why and the next step.
    """
    from autogreen import comparison

    file = None if record is None else Path(record)
    return comparison.compare(str(a), str(b), runs=Path(runs), changes=protocol, record=file, native_code=native_code)
