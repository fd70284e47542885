"""Two cores are shared by everything: torch takes one thread, and no test reaches the network."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
