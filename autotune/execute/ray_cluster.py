"""The Ray cluster as the executor finds it: joined or started, and how much of it a worker asks
for."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from typing import Any

from autotune.execute.environment import available_cores
from autotune.plugins import PluginError
from autotune.plugins.execution import ExecutionContext


def import_ray() -> Any:
    """Ray, told before its import to send no usage statistics."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # keep CUDA_VISIBLE_DEVICES of actors without a GPU as Ray 3 will, and its warning away
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    return ray


def connect(ray: Any, address: str | None) -> bool:
    """Use the connection that the user's program has, join the cluster that is named, or start
    one on this machine. True if the connection is ours to end.

    Raises:
        PluginError: there is no such cluster.
    """
    if ray.is_initialized():
        return False
    rest: dict[str, Any] = {}
    if address is not None:
        _check_listens(address)
    else:
        rest = {"num_cpus": available_cores(), "include_dashboard": False}
    # Ray puts its own handler of SIGTERM in the place of the study's
    main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            address=address or "local",
            logging_level=logging.ERROR,
            log_to_driver=False,
            configure_logging=True,
            **rest,
        )
    except Exception as error:
        where = f"at {address}" if address else "on this machine"
        hint = ""
        if address is not None and "RAY_AUTH_MODE" not in os.environ:
            # Ray offers one by itself to 'auto' only
            hint = "; if the cluster asks for a token, set RAY_AUTH_MODE=token"
        raise PluginError(f"executor ray: no cluster {where}: {error}{hint}") from error
    finally:
        if main_thread and handler is not None:
            signal.signal(signal.SIGTERM, handler)
    return True


def share_of_actor(ray: Any, context: ExecutionContext, at_once: int) -> dict[str, float]:
    """What each actor asks for; a worker is one, or a team of them.

    Args:
        at_once: how many actors must find room in the cluster as it is.

    Raises:
        PluginError: they find none, unless the cluster is awaited to grow (``min_workers``).
    """
    total, options = ray.cluster_resources(), context.options
    cpus, gpus = total.get("CPU", 0.0), total.get("GPU", 0.0)
    grows = "min_workers" in options
    request = {"num_cpus": options.get("num_cpus", min(1.0, cpus / at_once) or 1.0)}
    share = min(1.0, gpus / at_once) or (1.0 if grows and context.device == "cuda" else 0.0)
    request["num_gpus"] = options.get("num_gpus", 0.0 if context.device == "cpu" else share)
    if grows:
        return request
    for key, kind, there in (("num_cpus", "CPU", cpus), ("num_gpus", "GPU", gpus)):
        if request[key] * at_once > there + 1e-6:
            raise PluginError(
                f"executor ray: {at_once} actors with {key} {request[key]:g} need "
                f"{request[key] * at_once:g} {kind}s; the cluster has {there:g}"
            )
    return request


def _check_listens(address: str) -> None:
    """Raise `PluginError` if nobody listens at ``host:port``: Ray itself would try for minutes.
    Other forms of address (``auto``, ``ray://...``) are Ray's to judge."""
    host, _, port = address.rpartition(":")
    if not port.isdigit() or "/" in host:
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise PluginError(
            f"executor ray: no cluster at {address}: {error}; start one with 'ray start --head', "
            "or leave the address out to have one on this machine"
        ) from error
