"""Search space: a policy with holes.

    {choice: [a, b]}                      one of several; numbers are ordered by size
    {ordered: [none, w8a8, w4a16]}        one of several that have an order (fewer and fewer bits)
    {float: {low, high, step, log}}       Optuna's FloatDistribution
    {int: {low, high, step, log}}         Optuna's IntDistribution

Ordered options reach Optuna as ordinals, so that samplers know that 4 lies between 2 and 8. In a rule, `each: GLOB` in
the place of `target` makes one hole a unit (layer or dependency group); `by: block` shares it within a repeated block.
A rule reaches only units of its `structure`, where it has one.
"""

import glob
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autogreen.anatomy import Anatomy
from autogreen.errors import ConfigError, RefusedError
from autogreen.policy import SECTIONS, Policy, build_setting, section_class
from autogreen.schema import check_keys, read_yaml
from autogreen.techniques import Unit, matches, unreached

if TYPE_CHECKING:
    from optuna import Trial

KINDS = ("choice", "ordered", "float", "int")


@dataclass(frozen=True, kw_only=True)
class Hole:
    """options: the values to choose from, or None for a range."""

    options: tuple[Any, ...] | None = None
    ordered: bool = False
    kind: str = "choice"
    low: float = 0.0
    high: float = 0.0
    step: float | None = None
    log: bool = False

    def ask(self, trial: "Trial", name: str) -> Any:
        """Let Optuna choose."""
        if self.options is None:
            if self.kind == "int":
                return trial.suggest_int(name, int(self.low), int(self.high), step=int(self.step or 1), log=self.log)
            return self._clean(trial.suggest_float(name, self.low, self.high, step=self.step, log=self.log))
        if len(self.options) == 1:
            return self.options[0]
        if self.ordered:
            return self.options[trial.suggest_int(name, 0, len(self.options) - 1)]
        return trial.suggest_categorical(name, self.options)

    def at(self, level: float) -> Any:
        """The parameter, as Optuna sees it, at a level from 0 to 1."""
        if self.options is not None:
            return round(level * (len(self.options) - 1)) if self.ordered else self.options[0]
        if self.log:
            value = self.low * (self.high / self.low) ** level
            return round(value) if self.kind == "int" else self._clean(value)
        step = self.step or (1 if self.kind == "int" else None)
        value = level * (self.high - self.low)
        value = self.low + (round(value / step) * step if step else value)
        return value if self.kind == "int" else self._clean(value)

    def _clean(self, value: float) -> float:
        """A number of a range without the dirt of binary steps (0.30000000000000004)."""
        return min(max(float(f"{value:.12g}"), self.low), self.high)

    def extremes(self) -> tuple[Any, ...]:
        """Values that stand for all others when the hole is validated; of a float range also a broken number."""
        if self.options is not None:
            return self.options
        ends = (self.low, self.high)
        return ends if self.kind == "int" else (*ends, self.low + (self.high - self.low) / math.pi)


@dataclass(frozen=True)
class SearchSpace:
    """sections: for each section its rules; a rule maps a field to a literal or a `Hole`."""

    sections: Mapping[str, tuple[Mapping[str, Any], ...]]

    @classmethod
    def load(cls, path: Path) -> "SearchSpace":
        """Read from a YAML file."""
        return cls.from_json(read_yaml(path), str(path))

    @classmethod
    def from_json(cls, data: Any, where: str = "space") -> "SearchSpace":
        """Build from plain data; every literal and every end or option of a hole is validated here.

        Raises:
            ConfigError: names the path, the value and what is allowed.
        """
        if not isinstance(data, Mapping):
            raise ConfigError(f"{where} must be a mapping of sections, not {data!r}. Sections: {', '.join(SECTIONS)}.")
        check_keys(data, SECTIONS, where)
        sections: dict[str, tuple[Mapping[str, Any], ...]] = {}
        for section in SECTIONS:
            if section not in data:
                continue
            rules, path = data[section], f"{where}.{section}"
            if not section_class(section).ordered:
                sections[section] = (_rule(section, rules, path),)
                continue
            if not isinstance(rules, list):
                raise ConfigError(f"{path} must be a list of rules (- target: ...), not {rules!r}.")
            sections[section] = tuple(_rule(section, rule, f"{path}.{n}") for n, rule in enumerate(rules))
            _refuse_twice(sections[section], path)
        return cls(sections)

    def holes(self) -> dict[str, Hole]:
        """Every open hole by its name; an `each` that is not expanded yet counts as one."""
        found = {}
        for section, rule, field, hole in self._walk():
            if hole.options is None or len(hole.options) > 1:
                found[hole_name(section, rule, field)] = hole
        return found

    def expand(self, anatomy: Anatomy) -> "SearchSpace":
        """Replace every `each` by one rule a unit that no earlier rule covers.

        Raises:
            RefusedError: a target or `each` matches nothing that the technique can treat (those there are named).
        """
        sections: dict[str, tuple[Mapping[str, Any], ...]] = {}
        for section, rules in self.sections.items():
            if not section_class(section).ordered:
                sections[section] = rules
                continue
            units, covered, expanded = anatomy.units.get(section, ()), set[tuple[str, str]](), list[Mapping[str, Any]]()
            named: dict[str, int] = {}
            for n, rule in enumerate(rules):
                pattern = rule.get("each", rule.get("target"))
                structure = rule.get("structure", getattr(section_class(section), "structure", ""))
                reached = [unit for unit in units if unit.structure == structure]
                hit = [unit for unit in reached if matches(pattern, unit)]
                if not hit:
                    raise RefusedError(
                        f"{section}: {pattern!r} matches nothing that {section} can treat in {anatomy.model}"
                        f"{unreached(pattern, structure, units)}"
                    )
                fresh = [unit for unit in hit if (unit.structure, unit.name) not in covered]
                covered.update((unit.structure, unit.name) for unit in hit)
                if "target" in rule:
                    expanded.append(rule)
                    continue
                shared = {key: value for key, value in rule.items() if key not in ("each", "by")}
                for unit in fresh:
                    name = _shared_name(section, unit, rule.get("by"))
                    if named.setdefault(name, n) != n:  # two rules share within one block, each for itself
                        name = f"{pattern} in {name}"
                    expanded += [{"target": glob.escape(member), "name": name, **shared} for member in unit.members]
            sections[section] = tuple(expanded)
        return SearchSpace(sections)

    def uniform(self, levels: Mapping[str, float]) -> dict[str, Any]:
        """Parameters for Optuna in which every hole of a section stands at one level of its range, 0 (first option or
        low end) to 1; unordered holes stay at their first option, sections without a level in the middle."""
        return {
            name: hole.at(levels.get(name.partition("[")[0].partition(".")[0], 0.5))
            for name, hole in self.holes().items()
        }

    def everywhere(self, section: str, field: str, option: Any) -> dict[str, Any]:
        """Parameters for Optuna in which every hole for this field of a section stands at one option (where it has
        it), and all else as in `uniform` with the least pruning."""
        found = self.uniform({"pruning": 0.0})
        for name, hole in self.holes().items():
            owner, _, leaf = name.rpartition(".")
            if owner.partition("[")[0] == section and leaf == field and option in (hole.options or ()):
                found[name] = hole.options.index(option) if hole.ordered else option  # type: ignore[union-attr]
        return found

    def at(self, level: float) -> Policy:
        """The policy in which every hole stands at one level of its range."""

        def answer(name: str, hole: Hole) -> Any:
            value = hole.at(level)
            return hole.options[value] if hole.options is not None and hole.ordered else value

        return self._filled(answer)

    def fill(self, trial: "Trial") -> Policy:
        """Ask a trial for every hole."""
        answers: dict[str, Any] = {}

        def answer(name: str, hole: Hole) -> Any:
            if name not in answers:
                answers[name] = hole.ask(trial, name)
            return answers[name]

        return self._filled(answer)

    def filled(self, answers: Mapping[str, Any]) -> Policy:
        """The policy with these answers to the holes, in the user's own values."""
        return self._filled(lambda name, hole: answers[name] if name in answers else hole.extremes()[0])

    def shown(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """A trial's parameters in the user's own values, ordinals decoded."""
        holes = self.holes()
        return {
            name: holes[name].options[value] if holes[name].ordered and holes[name].options else value  # type: ignore[index]
            for name, value in params.items()
        }

    def params(self, answers: Mapping[str, Any]) -> dict[str, Any]:
        """Parameters for Optuna of answers in the user's own values, as far as this space has such holes and values."""
        found = {}
        for name, hole in self.holes().items():
            if name not in answers:
                continue
            value = answers[name]
            if hole.options is not None and value in hole.options:
                found[name] = hole.options.index(value) if hole.ordered else value
            elif hole.options is None and isinstance(value, int | float) and hole.low <= value <= hole.high:
                found[name] = value
        return found

    def policy(self) -> Policy:
        """The one policy of a space without holes.

        Raises:
            ConfigError: the space leaves something open.
        """
        if holes := self.holes():
            raise ConfigError(
                f"this is a search space, not one policy: it leaves {', '.join(holes)} open. Write one value for each."
            )
        return self._filled(lambda name, hole: hole.extremes()[0])

    def restrict(self, refusal: Callable[[Policy], str | None]) -> tuple["SearchSpace", dict[str, list[str]]]:
        """Take out every option that `refusal` turns down when it stands alone; also return where, by reason.

        Raises:
            RefusedError: a literal is refused, or a hole is left without options.
        """
        bad: dict[str, set[Any]] = {}
        reasons: dict[str, list[str]] = {}
        for section, rule, field, value in self._walk(literals=True):
            name = hole_name(section, rule, field)
            for option in value.options or () if isinstance(value, Hole) else (value,):
                alone = {key: item for key, item in rule.items() if not isinstance(item, Hole) and key != "name"}
                setting = build_setting(section, {**alone, field: option}, section)
                if reason := refusal(Policy({section: (setting,)})):
                    if not isinstance(value, Hole):
                        raise RefusedError(f"{name} = {option!r} cannot be done here: {reason}.")
                    bad.setdefault(name, set()).add(option)
                    # the reason ends in what holds for every layer; the layers stand in the names
                    where = reasons.setdefault(f"{field} {option!r}: {reason.rpartition(': ')[2]}", [])
                    where += [name] if name not in where else []
        return self.without(bad), reasons

    def without(self, bad: Mapping[str, Collection[Any]]) -> "SearchSpace":
        """The same without some options, by name of the hole.

        Raises:
            RefusedError: a hole is left without options.
        """
        sections = {}
        for section, rules in self.sections.items():
            kept = []
            for rule in rules:
                kept.append({field: self._without(bad, section, rule, field) for field in rule})
            sections[section] = tuple(kept)
        return SearchSpace(sections)

    @staticmethod
    def _without(bad: Mapping[str, Collection[Any]], section: str, rule: Mapping[str, Any], field: str) -> Any:
        value, name = rule[field], hole_name(section, rule, field)
        if not isinstance(value, Hole) or value.options is None or name not in bad:
            return value
        left = tuple(option for option in value.options if option not in bad[name])
        if not left:
            raise RefusedError(
                f"{name}: every option ({', '.join(map(str, value.options))}) is refused on this device."
            )
        return Hole(options=left, ordered=value.ordered)

    def alone(self, name: str) -> Iterator[tuple[Any, Policy]]:
        """For each option of a hole the policy that does this, with the literals of its rules, and nothing else."""
        rules = [
            (section, rule, field, hole)
            for section, rule, field, hole in self._walk()
            if hole_name(section, rule, field) == name
        ]
        for option in rules[0][3].options or ():
            settings: dict[str, list[Any]] = {}
            for section, rule, field, _ in rules:
                literals = {key: value for key, value in rule.items() if not isinstance(value, Hole) and key != "name"}
                settings.setdefault(section, []).append(build_setting(section, {**literals, field: option}, name))
            yield option, Policy({section: tuple(found) for section, found in settings.items()})

    def options(self, section: str, field: str) -> tuple[Any, ...]:
        """Every value that some rule can give a field, in order of appearance; of a range its ends."""
        found: dict[Any, None] = {}
        for rule in self.sections.get(section, ()):
            value = rule.get(field)
            values = value.extremes() if isinstance(value, Hole) else (value,) if field in rule else ()
            found.update(dict.fromkeys(values))
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        """Plain data that `from_json` reads."""

        def show(value: Any) -> Any:
            if not isinstance(value, Hole):
                return value
            if value.options is not None:
                return {"ordered" if value.ordered else "choice": list(value.options)}
            ends = {"low": value.low, "high": value.high, "step": value.step, "log": value.log}
            return {value.kind: {key: end for key, end in ends.items() if end is not None}}

        shown = {}
        for section, rules in self.sections.items():
            plain = [{key: show(value) for key, value in rule.items() if key != "name"} for rule in rules]
            shown[section] = plain if section_class(section).ordered else plain[0]
        return shown

    def _walk(self, literals: bool = False) -> Iterator[tuple[str, Mapping[str, Any], str, Any]]:
        for section, rules in self.sections.items():
            for rule in rules:
                for field, value in rule.items():
                    if isinstance(value, Hole) or (literals and field not in ("target", "each", "by", "name")):
                        yield section, rule, field, value

    def _filled(self, answer: Any) -> Policy:
        settings = {}
        for section, rules in self.sections.items():
            filled = []
            for rule in rules:
                values = {
                    field: answer(hole_name(section, rule, field), value) if isinstance(value, Hole) else value
                    for field, value in rule.items()
                    if field != "name"
                }
                filled.append(build_setting(section, values, section))
            settings[section] = tuple(filled)
        return Policy(settings)


def hole_name(section: str, rule: Mapping[str, Any], field: str) -> str:
    """What a hole in a rule of an expanded space is called; rules of one name share it."""
    owner = rule.get("name") or _told(section, rule.get("structure"), rule.get("each") or rule.get("target"))
    return f"{section}[{owner}].{field}" if owner else f"{section}.{field}"


def _shared_name(section: str, unit: Unit, by: str | None) -> str:
    """What a hole is called, and so shared by: its unit or its block; with the structure if that is unusual."""
    return str(_told(section, unit.structure, f"block {unit.block}" if by == "block" else unit.name))


def _told(section: str, structure: str | None, owner: str | None) -> str | None:
    usual = getattr(section_class(section), "structure", "")
    return owner if owner is None or (structure or usual) == usual else f"{structure} {owner}"


def _rule(section: str, data: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where} must be a mapping, not {data!r}.")
    cls = section_class(section)
    keys = tuple(field.name for field in fields(cls))
    check_keys(data, (*keys, "each", "by") if cls.ordered else keys, where)
    if cls.ordered and ("each" in data) == ("target" in data):
        raise ConfigError(f"{where} needs either `target` or `each`, a glob on module names.")
    if data.get("by", "block") != "block" or ("by" in data and "each" not in data):
        raise ConfigError(f"{where}.by must be `block`, beside `each`; not {data['by']!r}.")
    if isinstance(data.get("structure"), Mapping):
        raise ConfigError(f"{where}.structure cannot be left open; write one rule for each structure.")
    for key in ("target", "each"):
        if not isinstance(data.get(key, ""), str):
            raise ConfigError(f"{where}.{key} must be a glob on module names, not {data[key]!r}.")
    rule = {
        key: _value(value, f"{where}.{key}") if isinstance(value, Mapping) else value for key, value in data.items()
    }
    _validate(section, rule, where)
    return rule


def _refuse_twice(rules: tuple[Mapping[str, Any], ...], where: str) -> None:
    seen: dict[tuple[Any, Any], int] = {}
    for n, rule in enumerate(rules):
        pattern = rule.get("each", rule.get("target"))
        if (first := seen.setdefault((pattern, rule.get("structure")), n)) != n:
            raise ConfigError(f"{where}.{n} can never apply: rule {first} has the same glob {pattern!r} and wins.")


def _validate(section: str, rule: Mapping[str, Any], where: str) -> None:
    """Build the setting with every option of every hole, so that a wrong one is told before anything runs."""
    sample = {key: value.extremes()[0] if isinstance(value, Hole) else value for key, value in rule.items()}
    sample.pop("by", None)
    if "each" in sample:
        sample["target"] = sample.pop("each")
    build_setting(section, sample, where)
    for key, value in rule.items():
        if isinstance(value, Hole):
            for option in value.extremes():
                build_setting(section, {**sample, key: option}, where)


def _value(data: Mapping[str, Any], where: str) -> Hole:
    if len(data) != 1 or (kind := next(iter(data))) not in KINDS:
        raise ConfigError(f"{where} must be a value or one hole ({', '.join(KINDS)}), not {dict(data)!r}.")
    given = data[kind]
    if kind in ("choice", "ordered"):
        if not isinstance(given, list) or not given:
            raise ConfigError(f"{where}.{kind} must be a list with at least one option, not {given!r}.")
        for n, option in enumerate(given):
            if isinstance(option, list | dict) or (isinstance(option, int | float) and not _finite(option)):
                raise ConfigError(f"{where}.{kind}.{n} must be text, a finite number or true/false, not {option!r}.")
            if option in given[:n]:
                raise ConfigError(f"{where}.{kind} names {option!r} twice.")
        numbers = all(isinstance(option, int | float) and not isinstance(option, bool) for option in given)
        options = tuple(sorted(given)) if numbers else tuple(given)
        return Hole(options=options, ordered=numbers or kind == "ordered")
    return _range(kind, given, f"{where}.{kind}")


def _range(kind: str, given: Any, where: str) -> Hole:
    if not isinstance(given, Mapping):
        raise ConfigError(f"{where} must be a mapping with low and high, not {given!r}.")
    check_keys(given, ("low", "high", "step", "log"), where)
    number = int if kind == "int" else (int, float)
    for key in ("low", "high", "step"):
        value = given.get(key, None if key == "step" else "")
        if value is not None and (not isinstance(value, number) or isinstance(value, bool) or not _finite(value)):
            raise ConfigError(
                f"{where}.{key} must be {'a whole' if kind == 'int' else 'a finite'} number, not {value!r}."
            )
    low, high, step, log = given["low"], given["high"], given.get("step"), given.get("log", False)
    if not isinstance(log, bool):
        raise ConfigError(f"{where}.log must be true or false, not {log!r}.")
    if low >= high:
        raise ConfigError(f"{where}: low ({low}) must be below high ({high}).")
    if step is not None and not 0 < step <= high - low:
        raise ConfigError(f"{where}.step must be above 0 and at most high - low, not {step!r}.")
    if log and (low <= 0 or step is not None):
        raise ConfigError(f"{where}: log needs low above 0 and no step.")
    if step is not None:  # the last step is the end of the range, as Optuna has it
        last = low + math.floor((high - low) / step + 1e-9) * step
        high = last if kind == "int" else float(f"{last:.12g}")
    return Hole(kind=kind, low=low, high=high, step=step, log=log)


def _finite(value: float) -> bool:
    return abs(value) < 2**53  # where whole numbers stay exact on their way through the study's database
