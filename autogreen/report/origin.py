"""Where the figures come from: what the search cost, on which machine, by what method, and how to have them again."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from autogreen import __version__
from autogreen.carbon import J_PER_WH
from autogreen.front import Front
from autogreen.measurement import Protocol
from autogreen.meters import Tier
from autogreen.point import Point
from autogreen.report.markup import Html, folded, joined, meter_bar, table, tag
from autogreen.wording import about, percent, quantity

TIERS: Mapping[Tier, str] = {
    "measured": "Energy is measured: the device's own counter of joules.",
    "integrated": "Energy is integrated: from samples of the device's power, because it counts no joules.",
    "estimated": (
        "Energy is estimated, not measured: no counter can be read here, so processor time is multiplied by watts from "
        "a table. It ranks policies that keep the same threads busy; its absolute joules may be off by half and more."
    ),
}
NOT_REPEATED = (
    "Too little was measured twice to tell how well energy can be repeated: differences of a few percent may vanish."
)


def bill(front: Front, knee: Point | None) -> Html:
    """What the search cost, by purpose, and when that is paid back."""
    results, paid = front.results, front.results.bill
    spent = (
        f"The search took {quantity(paid.energy_j, 'J')} ({quantity(paid.energy_j / J_PER_WH, 'Wh')}), {results.tier}"
    )
    if results.carbon is not None:
        spent += f": {quantity(results.carbon.emission_g(paid.energy_j), 'gCO2e')} at {results.carbon.words}"
    spent += f", in {_lasted(paid.total_s)}. {front.stopped_words}"
    rows = [
        (purpose, meter_bar(joules / paid.energy_j, "after"), quantity(joules, "J"), percent(joules / paid.energy_j))
        for purpose, joules in sorted(paid.joules.items(), key=lambda found: -found[1])
        if joules > 0
    ]
    return joined(
        (
            tag("p", spent),
            table(("for", "", results.tier, "share"), rows, cls="bill") if rows else None,
            *(tag("p", _paid(front, name, point)) for name, point in _candidates(front, knee)),
        )
    )


def hardware(front: Front) -> Html:
    """The machine and the versions, as the study recorded them."""
    found = {**front.results.hardware, "this page by": f"autogreen {__version__}"}
    pairs = (
        part for name, value in found.items() for part in (tag("dt", name.replace("_", " ")), tag("dd", str(value)))
    )
    return tag("dl", *pairs, cls="facts")


def method(front: Front) -> Html:
    """One paragraph for each thing that a figure of energy or quality depends on."""
    results, protocol = front.results, Protocol(**front.results.experiment.get("protocol", {}))
    workload = ", ".join(f"{key} {value}" for key, value in results.workload.items())
    said = {
        "Tier": f"{TIERS[results.tier]} Energy of: {results.boundary}. What the device takes at rest is in it.",
        "Workload": f"{workload}. Every policy is saved and loaded again, and that program is measured.",
        "Protocol": (
            f"A policy and the baseline run in turns, in windows of at least {protocol.window_s:g} s: "
            f"{protocol.min_windows} to {protocol.max_windows} of them, until the interval is within "
            f"±{percent(protocol.target_relative)}; finalists are measured longer. A window that was disturbed is "
            "discarded. Joules per item are the ratio to the baseline times the baseline's own."
        ),
        "Quality": (
            "A loss is paired with the baseline, example by example, on validation data. The test split is opened "
            "once, for finalists."
        ),
        "Intervals": (
            "All are 95 %: of an energy ratio over pairs of neighbouring windows, allowing for windows that resemble "
            "their neighbours; of a loss by bootstrap over examples. "
            f"{front.repeatability.words or NOT_REPEATED}"
        ),
        "Floor": "The least that a policy's work can cost on this device; what would lie below it is refused.",
        "Front": (
            "A member is feasible, and nothing beats it with a probability of at least 10 %, as far as all intervals "
            "tell."
        ),
        "Joules by layer": (
            "A layer's share of the time of a profiled call, times the joules per item. Power counts as the same "
            "throughout the call. What no layer took alone "
            "(activations, normalisation, copies, waiting) is everything else."
        ),
    }
    return joined(tag("p", tag("b", f"{head}."), " ", text) for head, text in said.items())


def warnings(front: Front, shown: Sequence[Point]) -> Html:
    """What may be wrong with a measurement, each said once."""
    where: dict[str, list[str]] = {}
    for point in (*front.references, *shown):
        for said in point.measurement.warnings:
            where.setdefault(said, []).append(point.name)
    if not where:
        return tag("p", "No measurement on this page has a warning.")
    items = (
        tag("li", f"{', '.join(names[:4])}{f' and {len(names) - 4} more' if names[4:] else ''}: {said}")
        for said, names in where.items()
    )
    return tag("ul", *items)


def again(front: Front, shown: Sequence[Point], knee: Point | None) -> Html:
    """Commands, the resolved experiment and each policy, to be copied."""
    name = shlex.quote(front.results.study)
    file = shlex.quote(f"{front.results.study}.yaml")
    seed = front.results.experiment.get("seed")
    commands = [f"autogreen sweep {file}", f"autogreen front {name}"]
    if knee is not None:
        commands += [
            f"autogreen export {name} --pick {knee.id} --to bundle",
            "autogreen verify bundle",
            f"autogreen measure {file} --policy policy.yaml",
        ]
    told = {key: value for key, value in front.results.experiment.items() if key != "name" and value is not None}
    own = str(told.get("task", "")).endswith("(own model)")
    return joined(
        (
            tag(
                "p",
                "The model of this study was given in Python: call autogreen.search with it and the settings below. "
                if own
                else f"Keep the experiment below as {front.results.study}.yaml, and a policy as policy.yaml. ",
                "A measurement repeats within its interval on the same machine; a search proposes the same policies "
                f"only as long as it measures the same figures{'' if seed is None else f' (seed {seed})'}.",
            ),
            tag("pre", "\n".join(commands)),
            folded("The experiment, as resolved", tag("pre", written(told))),
            *(
                folded(f"Policy {number}: {point.name}, {point.words}", tag("pre", written(point.trial.policy)))
                for number, point in enumerate(shown, 1)
                if point.trial
            ),
        )
    )


def written(data: Any) -> str:
    """YAML, a rule a line."""
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, default_flow_style=None, width=10_000).rstrip()


def _lasted(seconds: float) -> str:
    for unit, size in (("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"


def _candidates(front: Front, knee: Point | None) -> list[tuple[str, Point]]:
    if knee is None:
        return []
    cheapest = front.members[0]
    return [("The knee", knee)] + ([("The cheapest member", cheapest)] if cheapest.id != knee.id else [])


def _paid(front: Front, name: str, point: Point) -> str:
    after, item = front.paid_back_after(point), front.results.item
    if after is None:
        return f"{name} takes no less than the baseline: it never pays the search back."
    saved_j = front.baseline.energy_per_item_j.mean - point.energy_per_item_j.mean
    return (
        f"{name} saves {quantity(saved_j, 'J')} per {item} and has paid the search back after {about(after)} {item}s."
    )
