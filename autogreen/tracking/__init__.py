"""MLflow: a mirror of studies, and the registry of what was exported. The only room that imports mlflow."""

from autogreen.tracking.background import Background
from autogreen.tracking.connection import Server
from autogreen.tracking.fill import Filled, find, sync
from autogreen.tracking.server import serving

__all__ = ["Background", "Filled", "Server", "find", "serving", "sync"]
