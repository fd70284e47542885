"""The YAML edge: whatever a file holds, the answer is a value or one clear message, and soon."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from autogreen.errors import ConfigError
from autogreen.schema import MAX_BYTES, build, check_keys, parse_yaml, read_yaml


@dataclass(frozen=True, kw_only=True)
class Inner:
    deep: int = 0


@dataclass(frozen=True, kw_only=True)
class Knobs:
    count: int = 1
    share: float = 0.5
    label: str = ""
    switch: bool = False
    maybe: float | None = None
    pair: tuple[int, int] = (1, 2)
    inner: Inner = Inner()
    other: Inner | None = None

    def __post_init__(self) -> None:
        if self.count > 100:
            raise ConfigError(f"count must be at most 100, not {self.count!r}")


# --- text to data -----------------------------------------------------------------------------------------------------


def test_plain_values() -> None:
    text = "a: 1\nb: [x, 2.5, true, null]\nc: {d: 'text'}\n"
    assert parse_yaml(text, "t") == {"a": 1, "b": ["x", 2.5, True, None], "c": {"d": "text"}}


@pytest.mark.parametrize("text, number", [("1e-3", 1e-3), ("1E5", 1e5), ("-2e+3", -2e3), ("2.5e-3", 2.5e-3)])
def test_numbers_with_an_exponent_are_numbers(text: str, number: float) -> None:
    value = parse_yaml(f"value: {text}", "t")["value"]
    assert value == number and isinstance(value, float)


@pytest.mark.parametrize("text", ["1e", "e3", "1e-3s", "'1e-3'", "0x1e3z"])
def test_what_only_looks_like_one_stays_text(text: str) -> None:
    assert isinstance(parse_yaml(f"value: {text}", "t")["value"], str)


@pytest.mark.parametrize(
    "text, told",
    [
        ("", "is empty"),
        ("# only a comment\n", "is empty"),
        ("- a\n- b\n", "must hold a mapping .* not list"),
        ("just text", "must hold a mapping .* not str"),
        ("3", "must hold a mapping .* not int"),
        ("a: [1", "not valid YAML"),
        ("a: b: c", "not valid YAML"),
        ("a: 1\n---\nb: 2\n", "not valid YAML"),
        ("\ta: 1", "not valid YAML"),
        ("a: \x00", "not valid YAML"),
        ("a: 1\na: 2\n", "'a' stands twice, on line 2"),
        ("x: {a: 1, b: 2, a: 3}", "'a' stands twice"),
        ("1: a", "key 1 on line 1 is not text"),
        ("true: a", "key True on line 1 is not text"),
        ("x:\n  null: a", "key None on line 2 is not text"),
        ("? [a, b]\n: 1", "not valid YAML|is not text"),
        ("a: &x 1", "anchors and aliases"),
        ("a: &x [1]\nb: *x", "anchors and aliases"),
        ("a: &x {b: 1}\nc: {<<: *x}", "anchors and aliases"),
        ("a: *unknown", "anchors and aliases"),
        ("a: !!python/object/apply:os.system ['true']", "tags .* are not allowed"),
        ("a: !!python/name:os.system", "tags .* are not allowed"),
        ("a: !!set {b, c}", "tags .* are not allowed"),
        ("a: !!binary aGk=", "tags .* are not allowed"),
        ("a: !own {b: 1}", "tags .* are not allowed"),
        ("!!map {a: 1}", "tags .* are not allowed"),
        ("a: 2020-13-45", "not valid YAML"),
    ],
)
def test_what_is_refused(text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told) as caught:
        parse_yaml(text, "here.yaml")
    assert str(caught.value).startswith("here.yaml ")


def test_an_alias_bomb_is_refused_at_once() -> None:
    levels = "\n".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]" for n in range(1, 12))
    began = time.monotonic()
    with pytest.raises(ConfigError, match="anchors and aliases"):
        parse_yaml("l0: &l0 [x, x, x, x, x, x, x, x, x]\n" + levels, "bomb")
    assert time.monotonic() - began < 2


@pytest.mark.parametrize(
    "text", ["a: " + "[" * 20_000, "a: " + "[" * 5000 + "]" * 5000, "{a: " * 5000 + "1" + "}" * 5000]
)
def test_deep_nesting_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"nested too deeply|not valid YAML"):
        parse_yaml(text, "deep")


def test_a_whole_number_of_too_many_digits_is_refused() -> None:
    with pytest.raises(ConfigError, match="not valid YAML"):
        parse_yaml(f"a: {'9' * 6000}", "long")


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_missing_file_names_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "digits.yaml").write_text("a: 1")
    with pytest.raises(ConfigError, match=r"does not exist\. Did you mean 'digits\.yaml'\?"):
        read_yaml(tmp_path / "digit.yaml")
    with pytest.raises(ConfigError, match="does not exist"):
        read_yaml(tmp_path / "nowhere" / "digits.yaml")


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a folder"):
        read_yaml(tmp_path)


def test_a_file_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a: 1")
    with pytest.raises(ConfigError, match=r"cannot be read|does not exist"):
        read_yaml(tmp_path / "file" / "x.yaml")


@pytest.mark.parametrize("name", ["a\0b.yaml", "x" * 300 + ".yaml"])
def test_a_name_that_no_file_can_have(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_yaml(tmp_path / name)


def test_100_megabytes_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "large.yaml"
    with path.open("wb") as file:
        file.truncate(100_000_000)
    began = time.monotonic()
    with pytest.raises(ConfigError, match="more than 1,000,000 bytes"):
        read_yaml(path)
    assert time.monotonic() - began < 1


def test_a_device_without_end_is_not_read() -> None:
    with pytest.raises(ConfigError, match="more than 1,000,000 bytes"):
        read_yaml(Path("/dev/zero"))


def test_the_size_limit_itself_is_allowed(tmp_path: Path) -> None:
    path = tmp_path / "full.yaml"
    path.write_bytes(b"a: 1 #".ljust(MAX_BYTES, b"x"))
    assert read_yaml(path) == {"a": 1}


def test_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "latin.yaml"
    path.write_bytes("a: Größe".encode("latin-1"))
    with pytest.raises(ConfigError, match="not text in UTF-8"):
        read_yaml(path)


# --- data to dataclasses ----------------------------------------------------------------------------------------------


def test_build() -> None:
    data = {"count": 3, "share": 1, "label": "x", "switch": True, "pair": [3, 4], "inner": {"deep": 2}}
    built = build(Knobs, data, "k")
    assert built == Knobs(count=3, share=1.0, label="x", switch=True, pair=(3, 4), inner=Inner(deep=2))
    assert isinstance(built.share, float) and isinstance(built.pair, tuple)
    assert build(Knobs, {}, "k") == Knobs()


@pytest.mark.parametrize(
    "key, value",
    [
        ("count", "3"),
        ("count", True),
        ("count", 3.0),
        ("count", None),
        ("count", [3]),
        ("share", "0.5"),
        ("share", True),
        ("share", {}),
        ("label", 3),
        ("label", False),
        ("switch", "yes"),
        ("switch", 1),
        ("maybe", "null"),
        ("pair", [1, "2"]),
        ("inner", 3),
    ],
)
def test_a_wrong_type_names_path_and_value(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"^file\.part\.{key}") as caught:
        build(Knobs, {key: value}, "file.part")
    found = value[-1] if isinstance(value, list) and len(value) == 2 else value
    assert repr(found) in str(caught.value)
    assert str(caught.value).endswith(".") and ".." not in str(caught.value)


def test_a_value_of_no_json_type_is_refused() -> None:
    data = parse_yaml("label: 2020-01-02", "t")  # YAML makes a date of it
    with pytest.raises(ConfigError, match="k: "):
        build(Knobs, data, "k")


def test_a_rule_of_the_class_is_told_with_its_path() -> None:
    with pytest.raises(ConfigError, match=r"^k: count must be at most 100, not 101\.$"):
        build(Knobs, {"count": 101}, "k")


def test_unknown_keys_name_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"k: unknown key 'cuont'\. Did you mean 'count'\? Allowed: count, share"):
        build(Knobs, {"cuont": 3}, "k")
    with pytest.raises(ConfigError, match=r"k\.inner: unknown key 'dep'\. Did you mean 'deep'"):
        build(Knobs, {"inner": {"dep": 3}}, "k")
    with pytest.raises(ConfigError, match=r"k\.other: unknown key 'dep'\. Did you mean 'deep'"):
        build(Knobs, {"other": {"dep": 3}}, "k")
    with pytest.raises(ConfigError, match="unknown key 'b'"):
        check_keys({"a": 1, "b": 2}, ("a",), "k")


@pytest.mark.parametrize("data", [None, [], "text", 3])
def test_not_a_mapping(data: Any) -> None:
    with pytest.raises(ConfigError, match="k must be a mapping"):
        build(Knobs, data, "k")
