"""How MLflow is reached: short timeouts, no telemetry, no messages."""

import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager

LOCAL = "http://127.0.0.1:5000"  # where `mlflow server` and `autogreen ui` listen unless told otherwise


@contextmanager
def patience(timeout_s: float) -> Iterator[None]:
    """Short timeouts, no telemetry, no messages, for as long as the mirror is written."""
    wanted = {
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(max(1, math.ceil(timeout_s))),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING": "false",
        "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    }
    before = {key: os.environ.get(key) for key in wanted}
    os.environ.update(wanted)
    levels: dict[logging.Logger, int] = {}
    try:
        import mlflow  # noqa: F401 - it sets its own loggers up, so they are silenced afterwards

        for name in ("mlflow", "alembic", "urllib3"):
            logger = logging.getLogger(name)
            levels[logger] = logger.level
            logger.setLevel(logging.CRITICAL + 1)
        yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value
