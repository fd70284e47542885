"""Conventions of the house, kept by tests: light imports, no circles, one road to each third party."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import autogreen

PACKAGE = Path(autogreen.__file__).parent
FILES = {
    ".".join(("autogreen", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}
FAMILIES = ("tasks", "techniques", "engines", "meters", "executors")
FACES = {"autogreen", *(f"autogreen.{family}" for family in FAMILIES)}


def imports(name: str, top_only: bool) -> set[str]:
    """Modules of ours that a module imports, where type checking alone does not count."""
    tree = ast.parse(FILES[name].read_text())
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found = set()
    for node in tree.body if top_only else ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("autogreen"):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in FILES else node.module)
    return found


def foreign(name: str) -> set[str]:
    tree = ast.parse(FILES[name].read_text())
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names


def test_no_import_circles():
    graph = {name: imports(name, top_only=True) - {name} for name in FILES}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"import circle: {' -> '.join((*path[path.index(name) :], name))}"
        if name not in done:
            for other in graph[name]:
                visit(other, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_the_spine_imports_faces_never_members():
    allowed = {  # parts of a family that are no plug-ins, or the one plug-in that is the subject
        # which data types a device really multiplies is asked once, for schemes and for the floor alike
        "autogreen.floor": {"techniques.quantization.schemes"},
        "autogreen.anatomy": {"techniques.trace"},
        "autogreen.probe": {"techniques.trace"},
        "autogreen.evaluate": {
            "techniques.precision",
            "techniques.quantization.schemes",
            "techniques.trace",
            "engines.profile",
            "engines.timing",
        },
        "autogreen.workbench": {"tasks.trees"},
        "autogreen.doctor": {"techniques.quantization.schemes"},
        "autogreen.surroundings": {"meters.processor"},
        "autogreen.api": {"tasks.given"},
        "autogreen.applying": {"tasks.retrained"},  # a task around the experiment's own
        "autogreen.store": {"tasks.trees"},
        # quantization's own table of schemes is the subject; layers alone are a model that was given
        "autogreen.kernels.bench": {
            "techniques.quantization.schemes",
            "techniques.trace",
            "tasks.given",
            "engines.profile",
        },
        # what one rank runs is made by the technique and saved by an engine, part by part
        "autogreen.ranks.placed": {
            "engines.exported",
            "engines.profile",
            "techniques.parallelism.shards",
            "techniques.parallelism.stages",
        },
        "autogreen.ranks.rank": {"techniques.parallelism.shards"},
        "autogreen.kernels.cases": {"techniques.quantization.schemes"},
        "autogreen.kernels.table": {"techniques.quantization.schemes"},
        "autogreen.kernels.worker": {"techniques.quantization.schemes"},
    }
    for name in FILES:
        if name.split(".")[1:2] and name.split(".")[1] in (*FAMILIES, "bundle"):
            continue
        members = {other for other in imports(name, top_only=False) if other.count(".") > 1 and other not in FACES}
        members = {other.removeprefix("autogreen.") for other in members if other.split(".")[1] in FAMILIES}
        assert members <= allowed.get(name, set()), f"{name} imports members: {members}"


def test_members_never_import_the_spine():
    neutral = {"autogreen.errors", "autogreen.registry"}
    for name in FILES:
        parts = name.split(".")
        if len(parts) == 3 and parts[1] in FAMILIES and name != "autogreen.executors.worker":
            reached = imports(name, top_only=False) - FACES - neutral
            spine = {other for other in reached if other.split(".")[1] not in FAMILIES}
            if parts[1] != "executors":  # executors run the evaluator: that is their subject
                assert not spine, f"{name} imports {spine}"


@pytest.mark.parametrize(
    ("library", "home"),
    [
        ("mlflow", {name for name in FILES if name.startswith("autogreen.tracking.")}),
        ("ray", {"autogreen.executors.ray"}),
        ("pynvml", {"autogreen.meters.nvml_device", "autogreen.meters.nvml_sidecar"}),
    ],
)
def test_one_road_to_each_third_party(library, home):
    using = {name for name in FILES if library in foreign(name)}
    assert using <= home | {"autogreen.hardware", "autogreen.meters.nvml"}


@pytest.mark.parametrize("command", [["-c", "import autogreen"], ["-m", "autogreen.cli", "--help"]])
def test_starting_loads_nothing_heavy(command):
    code = "import sys, runpy; sys.argv = ['autogreen', '--help']\n"
    if command[0] == "-c":
        code += "import autogreen\n"
    else:
        code += "from autogreen.cli import main\ntry: main()\nexcept SystemExit: pass\n"
    code += "print([m for m in ('torch', 'mlflow', 'pynvml', 'optuna', 'plotly', 'pydantic') if m in sys.modules])"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.strip().splitlines()[-1] == "[]"


def test_public_names_are_exactly_all():
    public = {name for name in dir(autogreen) if not name.startswith("_")}
    assert public == set(autogreen.__all__)
    for name in autogreen.__all__:
        assert getattr(autogreen, name) is not None


def test_every_file_has_a_docstring_and_a_subject_of_bearable_size():
    for name, path in FILES.items():
        text = path.read_text()
        assert ast.get_docstring(ast.parse(text)), f"{name} has no docstring"
        assert len(text.splitlines()) <= 450, f"{name} has outgrown its subject"
