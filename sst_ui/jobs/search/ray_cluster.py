"""Connects to a Ray cluster and divides it: how many workers, and how much of it each."""

import logging
import os
import re
import socket
from dataclasses import dataclass
from typing import Any

from sst_ui.errors import UserError
from sst_ui.paths import INSTALLED, PACKAGE, ROOT
from sst_ui.recipe import ModelSpec

MOST = 8  # workers on processors, unless said: each holds a model
STORE = 128 << 20  # bytes; what is sent are recipes and numbers
LEFT_HERE = [".git", ".venv", ".*_cache", "__pycache__", "tests", "benchmarks", "outputs", "build"]


@dataclass(frozen=True)
class Shares:
    """A cluster divided: `count` workers with so many processors, threads and GPUs each."""

    count: int
    processors: float
    threads: int
    gpus: int

    def options(self) -> dict[str, Any]:
        """Of a worker, in Ray's words; while it works it is asked how far it is, and to stop."""
        return {
            "num_cpus": self.processors, "num_gpus": self.gpus,
            "max_restarts": 0, "max_concurrency": 4,
            "runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(self.threads)}},
        }  # fmt: skip

    def __str__(self) -> str:
        return f"{self.processors:g} processors" + (f" and {self.gpus} GPU" if self.gpus else "")


def library() -> Any:
    """Ray.

    Raises:
        UserError: it is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else it warns
    try:
        import ray
        import ray.exceptions
    except ImportError:
        wanted = "ray" if INSTALLED else "-r requirements-ray.txt -c constraints.txt"
        raise UserError(f"a search on a cluster needs Ray: pip install {wanted}") from None
    return ray


def connect(ray: Any, address: str, workers: int | None = None) -> bool:
    """Connect this process to a cluster, unless it is connected already.

    Args:
        address: see `cluster.Cluster`.
        workers: that a `local` one has to have room for.

    Returns:
        whether it was not connected before.

    Raises:
        UserError: there is no cluster there, or none that can be used.
    """
    if ray.is_initialized():
        return False
    given: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address == "local":
        given["include_dashboard"] = False
        given["object_store_memory"] = STORE
        given["num_cpus"] = workers and max(workers, os.cpu_count() or 1)
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        given["runtime_env"] = {"env_vars": {"PYTHONPATH": path}}
    else:
        if address != "auto":
            _reach(address)
        if INSTALLED:  # the folder around the package holds everything else that is installed
            given["runtime_env"] = {"py_modules": [str(PACKAGE)], "excludes": LEFT_HERE}
        else:
            given["runtime_env"] = {"working_dir": str(ROOT), "excludes": LEFT_HERE}
    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        ray.init(address=address, **given)
    except Exception as error:
        words = " ".join(str(error).split())[:300]
        if address == "auto" and "Could not find any running" in words:
            raise UserError(
                "there is no Ray cluster on this machine. Start one with `ray start --head`, give "
                "its address, or use `local` for one that ends with the search."
            ) from None
        hint = ""
        if isinstance(error, ConnectionError) and "RAY_AUTH_MODE" not in os.environ:
            # Ray sends its token by itself only to a cluster that it has found on this machine.
            hint = " If it asks for a token, set RAY_AUTH_MODE=token."
        raise UserError(f"the Ray cluster {address!r} cannot be used: {words}{hint}") from error
    # A lost worker's last words would go to stdout, into a table or JSON; Ray has no public switch.
    ray._private.worker._worker_logs_enabled = False
    return True


def shares(ray: Any, spec: ModelSpec, workers: int | None = None) -> Shares:
    """The cluster divided among `workers`, or among as many as it is good for."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    processors = [node.get("CPU", 0.0) for node in nodes]
    gpus = int(sum(node.get("GPU", 0) for node in nodes))
    if gpus and spec.device not in ("cpu", "mps"):
        count = min(workers or gpus, gpus)
        return Shares(count, 0, max(1, int(sum(processors) // gpus)), 1)
    count = workers or max(1, min(MOST, sum(int(number // 2) for number in processors)))
    return Shares(count, share := _share(processors, count), max(1, int(share)), 0)


def _share(processors: list[float], count: int) -> float:
    """The most whole processors of which every worker gets as many; a fraction if need be."""
    for share in range(int(sum(processors) // count), 0, -1):
        if sum(number // share for number in processors) >= count:
            return share
    return int(1e4 * sum(processors) / count) / 1e4


def _reach(address: str) -> None:
    """Find out quickly whether anything listens there: Ray itself would wait for a minute."""
    found = re.fullmatch(r"(?:ray://)?\[?([^/\[\]]+)\]?:(\d+)/?", address)
    if not found:
        raise UserError(
            f"{address!r} is not the address of a Ray cluster; give auto, local, HOST:PORT or "
            "ray://HOST:PORT."
        )
    try:
        socket.create_connection((found[1], int(found[2])), timeout=5).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"no Ray cluster answers at {address}: {error}") from None
