"""What others may have written: manifests, recipes, shapes. Whatever it holds, the answer is a value or one clear line,
and soon."""

import json
import os
import random
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from test_bundle import QUICK, original, put, seal, stated, study

from autogreen import bundle
from autogreen.bundle import manifest, worker
from autogreen.errors import AutogreenError, BundleError, ConfigError
from autogreen.schema import MAX_BYTES, MAX_DEPTH, parse_json, parse_yaml
from autogreen.store import Store

__all__ = ["original", "study"]  # fixtures
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
    pytest.mark.filterwarnings("ignore::FutureWarning:torch"),
]


@pytest.fixture
def copy(original: Path, tmp_path: Path) -> Path:
    shutil.copytree(original, tmp_path / "copy")
    return tmp_path / "copy"


def nested(depth: int) -> Any:
    found: Any = 1
    for _ in range(depth):
        found = [found]
    return found


# --- one bounded reader -----------------------------------------------------------------------------------------------


def test_json_within_bounds() -> None:
    held = {"a": [1, -2.5, None, True, "ß"], "b": {"c": nested(MAX_DEPTH - 2)}, "n": 2**63 - 1}
    assert parse_json(json.dumps(held).encode(), "t") == held


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"[" * 100_000, "nested too deeply|not valid JSON"),
        (b"[" * 900 + b"]" * 900, "nested too deeply"),
        (b'{"a":' * 70 + b"1" + b"}" * 70, f"more than {MAX_DEPTH} levels"),
        (b" " * (MAX_BYTES + 1), "more than 1,000,000 bytes"),
        (b"9" * 5000, "not valid JSON"),
        (b"9" * 30, "more than 64 bits"),
        (b'{"a": -9223372036854775809}', "more than 64 bits"),
        (b"1e999", "no finite number"),
        (b"[NaN]", "no finite number"),
        (b"-Infinity", "no finite number"),
        (b'{"a": 1, "a": 1}', "stands twice"),
        (b'{"x": {"a": 1, "\\u0061": 2}}', "stands twice"),
        (b'"\\ud800"', "surrogates not allowed"),
        (b"\xff\xfe", "not valid JSON"),
        (b"", "not valid JSON"),
        (b"{} {}", "not valid JSON"),
        (b"{'a': 1}", "not valid JSON"),
    ],
)
def test_json_that_is_refused(text: bytes, told: str) -> None:
    began = time.monotonic()
    with pytest.raises(ConfigError, match=told) as caught:
        parse_json(text, "here.json")
    assert str(caught.value).startswith("here.json ") and time.monotonic() - began < 2


@pytest.mark.parametrize("text", [f"a: {'[' * 70}{']' * 70}", "a: " + "{b: " * 70 + "1" + "}" * 70])
def test_yaml_is_bounded_alike(text: str) -> None:
    with pytest.raises(ConfigError, match="nested too deeply"):
        parse_yaml(text, "deep.yaml")


# --- manifests --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "../x", "..", ".", "/x", "//x", "a/../../x", "a/..", "./x", "a/", "a//b", "a\\..\\x", "C:\\x", "C:x",
        "\\\\host\\x", "a\0b", "a\nb", "", " ", "~/x", "a b", "%2e%2e/x", "ａ",
        "manifest.json", "MANIFEST.json", "Model.pt2", "model.PT2",
    ],
)  # fmt: skip
def test_a_name_cannot_leave_the_bundle(copy: Path, name: str) -> None:
    file = {"size_bytes": 1, "sha256": "0" * 64}
    with pytest.raises(BundleError, match=r"no plain path|in case alone"):
        bundle.read(seal(copy, lambda data: data["files"].update({name: file})))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("golden", "inputs"), nested(500)),
        (("golden", "inputs"), nested(80)),
        (("workload", "batch"), nested(300)),
        (("energy", "meter", "x"), nested(200)),
        (("energy", "ratio", "mean"), 10**400),
        (("energy", "windows"), 10**30),
        (("files", "model.pt2", "size_bytes"), 10**25),
        (("recipe", "batch"), 10**19),
    ],
)
def test_depth_and_size_within_a_manifest(copy: Path, path: tuple[Any, ...], value: Any) -> None:
    with pytest.raises(BundleError, match=r"manifest\.json is not a manifest: .*(deeply|64 bits)"):
        bundle.read(seal(copy, put(path, value)))


def test_half_a_character(copy: Path) -> None:
    text = json.dumps({"format": manifest.FORMAT, "study": "\ud800"}).encode()
    (copy / manifest.NAME).write_bytes(text)
    with pytest.raises(BundleError, match="surrogates not allowed"):
        bundle.read(copy)


JUNK = (None, True, -1, 0, 2**62, 1e308, "", "x" * 5000, [], {}, [[]], {"": None}, nested(60), "../x", float("1e-320"))


def places(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inside = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [path] * bool(path) + [found for key, part in inside for found in places(part, (*path, key))]


@pytest.mark.parametrize("seed", range(8))
def test_a_manifest_with_junk_in_it_is_a_value_or_one_clear_line(copy: Path, seed: int) -> None:
    """Every hash fits again, so that what is wrong reaches the checks behind it."""
    chance, data = random.Random(seed), stated(copy)
    for _ in range(40):
        changed = json.loads(json.dumps(data))
        for path in chance.sample(places(data), chance.choice((1, 1, 2))):
            try:
                if chance.random() < 0.2:
                    part = changed
                    for key in path[:-1]:
                        part = part[key]
                    del part[path[-1]]
                else:
                    put(path, chance.choice(JUNK))(changed)
            except (KeyError, IndexError, TypeError):
                pass  # the first change took away what the second was to change
        (copy / manifest.NAME).write_text(manifest.seal(changed))
        try:
            program = bundle.load(copy)
            bundle.read(copy)
            assert program.recipe.device == "cpu"
        except AutogreenError as error:
            assert len(str(error).splitlines()) <= 3 and len(str(error)) < 20_000


@pytest.mark.parametrize("seed", range(4))
def test_flipped_bytes_of_a_manifest_are_always_noticed(copy: Path, seed: int) -> None:
    chance, content = random.Random(seed), (copy / manifest.NAME).read_bytes()
    for _ in range(60):
        changed = bytearray(content)
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
        (copy / manifest.NAME).write_bytes(changed)
        with pytest.raises(BundleError):
            bundle.read(copy)


# --- what lies beside it ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", [b"[" * 100_000, b'{"engine": "eager", "engine": "eager"}', b"9" * 6000, b"\xff", b"[]"]
)
def test_a_crafted_recipe_of_the_reference(copy: Path, text: bytes) -> None:
    (copy / "reference" / "recipe.json").write_bytes(text)
    with pytest.raises(BundleError, match="is not a recipe"):
        worker.check(seal(copy), QUICK, None)


@pytest.mark.parametrize("text", [b"[" * 100_000, b'{"tuple": ' + b"[" * 80 + b"]" * 80 + b"}", b"{", b"\xff"])
def test_crafted_examples_of_a_study(tmp_path: Path, text: bytes) -> None:
    found = Store.create(tmp_path / "study")
    (tmp_path / "study" / "golden.json").write_bytes(text)
    with pytest.raises(ConfigError, match=r"golden\.json is (not valid JSON|nested too deeply)"):
        found.golden()


@pytest.mark.parametrize("what", ["file", "folder", "pipe"])
def test_links_and_devices_are_refused(copy: Path, tmp_path: Path, what: str) -> None:
    (tmp_path / "outside").mkdir()
    shutil.copy(copy / "model.pt2", tmp_path / "outside" / "model.pt2")
    if what == "file":
        (copy / "model.pt2").unlink()
        (copy / "model.pt2").symlink_to(tmp_path / "outside" / "model.pt2")
    elif what == "folder":
        shutil.move(copy / "reference", tmp_path / "outside" / "reference")
        (copy / "reference").symlink_to(tmp_path / "outside" / "reference")
    else:
        os.mkfifo(copy / "pipe")
    with pytest.raises(BundleError, match="is a link or no plain file"):
        bundle.read(copy)
