"""Lazy tables and references: what is known, what is nearest, what is told when something cannot be had."""

import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import pytest

from autogreen.engines import ENGINES
from autogreen.errors import AutogreenError, ConfigError, UnknownNameError
from autogreen.executors import EXECUTORS
from autogreen.registry import Table, nearest, resolve
from autogreen.tasks import TASKS
from autogreen.techniques import TECHNIQUES

FAMILIES = [ENGINES, EXECUTORS, TASKS, TECHNIQUES]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.family)
def test_every_entry_resolves(family: Table) -> None:
    assert len(family) == len(list(family)) > 0
    for name, member in family.items():
        assert member is family[name]
        assert isinstance(member, type), name


def test_an_unknown_name_is_answered_with_the_nearest_and_all() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown engine 'induktor'\. Did you mean 'inductor'\? Known: eager, "):
        ENGINES["induktor"]
    with pytest.raises(UnknownNameError) as caught:
        ENGINES["zzzzzz"]
    assert "Did you mean" not in str(caught.value)
    assert "zzzzzz" not in ENGINES and 3 not in ENGINES


def test_listing_names_imports_no_member() -> None:
    code = (
        "import sys\n"
        "from autogreen.engines import ENGINES\n"
        "from autogreen.techniques import TECHNIQUES\n"
        "list(ENGINES), list(TECHNIQUES), 'inductor' in ENGINES\n"
        "print([name for name in ('torch', 'autogreen.engines.inductor', 'autogreen.techniques.pruning') "
        "if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_resolve() -> None:
    assert resolve("collections:OrderedDict") is OrderedDict


@pytest.mark.parametrize("reference", ["", "collections", ":OrderedDict", "collections:"])
def test_a_reference_of_the_wrong_form(reference: str) -> None:
    with pytest.raises(ConfigError, match=r"is not of the form 'package\.module:Name'"):
        resolve(reference)


def test_a_reference_to_nothing() -> None:
    with pytest.raises(ConfigError, match=r"cannot import 'no_such_module'.*Install what is missing"):
        resolve("no_such_module:Thing")
    with pytest.raises(ConfigError, match=r"no 'OrderedDic'\. Did you mean 'OrderedDict'\?"):
        resolve("collections:OrderedDic")
    with pytest.raises(ConfigError):
        resolve("..relative:Thing")


@pytest.mark.parametrize("text", ["def broken(:", "raise RuntimeError('no data here')"])
def test_a_module_that_breaks_while_it_is_imported(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "breaks_on_import.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"importing 'breaks_on_import' .* raised (SyntaxError|RuntimeError)"):
        resolve("breaks_on_import:Thing")


def test_nearest() -> None:
    assert nearest("temprature", ["alpha", "temperature"]) == " Did you mean 'temperature'?"
    assert nearest("x", ["alpha", "temperature"]) == ""
    assert nearest("x", []) == ""


def test_every_error_is_one_that_the_command_line_prints() -> None:
    assert issubclass(UnknownNameError, ConfigError) and issubclass(ConfigError, AutogreenError)
    assert issubclass(ConfigError, ValueError)
