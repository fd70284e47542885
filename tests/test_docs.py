"""What the documents tell users to write loads."""

import re
from pathlib import Path
from typing import Any

import pytest

from autogreen.experiment import from_json
from autogreen.schema import parse_yaml
from autogreen.space import SearchSpace

ROOT = Path(__file__).parent.parent
BLOCKS = [
    pytest.param(block, id=f"{path.name}-{number}")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    for number, block in enumerate(re.findall(r"^```yaml\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL))
]


@pytest.mark.parametrize("block", BLOCKS)
def test_an_example_loads(block: str) -> None:
    data: Any = parse_yaml(block, "the example")
    if "task" in data:
        assert from_json(data, name="example", folder=ROOT / "experiments").space.sections
    else:
        assert SearchSpace.from_json(data).sections


def test_there_are_examples() -> None:
    assert len(BLOCKS) >= 5


@pytest.mark.parametrize(
    "path", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda path: path.name
)
def test_links_within_the_project_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)", path.read_text()):
        assert (path.parent / target).exists(), target
