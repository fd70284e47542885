"""A real Ray cluster of several nodes on this machine: the same study as elsewhere, nodes that are killed, what is refused."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import cloudpickle
import psutil
import pytest
import toys
from test_executors import run, setup

from autogreen.errors import ConfigError, EvaluationError, LostError, RefusedError, StudyError
from autogreen.executors import EXECUTORS, Job, opened
from autogreen.front import Front
from autogreen.store import Store
from autogreen.sweep import sweep

pytest.importorskip("ray", reason="needs the extra ray")
cloudpickle.register_pickle_by_value(toys)
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::FutureWarning:torch"),
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),  # Ray's
]


@pytest.fixture(scope="module")
def cluster():
    """A head that has nothing to give, and two nodes of one processor each."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        found.add_node(num_cpus=1)
    yield found
    found.shutdown()


def on(cluster, **settings):
    return {"ray": {"address": cluster.address, **settings}}


def test_contract(cluster, tmp_path):
    executor = opened(on(cluster), setup(tmp_path))
    try:
        assert executor.slots == 2
        done = run(executor, "prepare")
        assert done.error is None and done.value["item"] == "image" and done.duration_s > 0
        assert (tmp_path / "golden.safetensors").exists()
        failed = run(executor, "publish", key="none", recipe=None, reference="none", protocol=None)
        assert isinstance(failed.error, EvaluationError) and "node " in str(failed.error)
        assert run(executor, "prepare").error is None
    finally:
        executor.close()
        executor.close()
