"""MLflow: a mirror of studies, and the registry of what was exported. The only room that imports mlflow."""

from autogreen.tracking.fill import link, sync

__all__ = ["link", "sync"]
