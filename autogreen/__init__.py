"""autogreen: AutoML that measures. Search compression policies by quality and measured energy.

Importing this loads neither torch nor mlflow nor pynvml; every name below is resolved when it is used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autogreen.api import compare, export, search
    from autogreen.errors import AutogreenError
    from autogreen.front import Front
    from autogreen.policy import Policy
    from autogreen.space import SearchSpace
    from autogreen.tasks import Scores, Task

__version__ = "0.1.0"
__all__ = ["AutogreenError", "Front", "Policy", "Scores", "SearchSpace", "Task", "compare", "export", "search"]

_HOMES = {
    "AutogreenError": "errors",
    "Front": "front",
    "Policy": "policy",
    "Scores": "tasks",
    "SearchSpace": "space",
    "Task": "tasks",
    "compare": "api",
    "export": "api",
    "search": "api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'autogreen' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"autogreen.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
