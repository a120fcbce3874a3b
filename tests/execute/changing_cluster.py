"""Run by a test in a process of its own: a cluster whose nodes come and go under a study."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import torch
from execute_tasks import SmallRun
from jobs import context, finish, go_on, train

from autotune.execute.ray import Ray
from autotune.plugins.execution import Done, Unit, WorkerLost
from autotune.train import Data, Task

MEGABYTES = 64


class Run(SmallRun):
    """Says which process it is in, and whether the data lies in memory that is shared."""

    def train(self):
        data, place = self.configuration["data"], self.task.data.train.inputs.data_ptr()
        assert data == MEGABYTES
        shared = any("plasma" in area for area in maps() if within(place, area))
        return {**super().train(), "shared": shared, "process": os.getpid()}


def maps() -> list[str]:
    return Path("/proc/self/maps").read_text().splitlines()


def within(place: int, area: str) -> bool:
    first, last = (int(end, 16) for end in area.split()[0].split("-"))
    return first <= place < last


class Large(Task):
    """Holds the data, as a `TorchTask` does."""

    def __init__(self) -> None:
        inputs = torch.zeros(MEGABYTES, 1 << 18)
        pairs = inputs, torch.zeros(MEGABYTES)
        self.data = Data(train=pairs, validation=(torch.zeros(4, 1), torch.zeros(4)))

    def open(self, configuration, context):
        run = Run(configuration, context)
        run.task = self
        return run


def wait_for(executor: Ray, free: int) -> None:
    end = time.monotonic() + 100
    while executor.free < free:
        assert time.monotonic() < end, f"{executor.free} of {free} workers are up"
        executor.poll(0.5)


def main(folder: Path) -> None:
    from ray.cluster_utils import Cluster

    said = {}
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    import ray

    executor = Ray()
    options = {
        "address": cluster.address,
        "num_cpus": 1,
        "min_workers": 1,
        "shared_folder": False,
    }
    executor.open(context(Large(), folder, workers=3, options=options))
    said["begun with"] = executor.free
    ((*units, first),) = finish(executor, train(0, 2, data=MEGABYTES))
    node = cluster.add_node(num_cpus=2)
    wait_for(executor, 3)
    jobs = [train(trial, 2, data=MEGABYTES) for trial in range(1, 7)]
    reports = [[*units, first], *finish(executor, *jobs)]
    trained = [unit.metrics for one in reports for unit in one if isinstance(unit, Unit)]
    said["processes"] = len({metrics["process"] for metrics in trained})
    said["shared"] = all(metrics["shared"] for metrics in trained)
    reference = executor._task_reference
    where = ray.experimental.get_object_locations([reference])[reference]
    said["copies"] = len(where["node_ids"])
    said["megabytes"] = where["object_size"] // 1_000_000
    # all three are at work when two of them go with their node
    long = [
        train(trial, 3, data=MEGABYTES, bad="sleep", at=2, seconds=2.0) for trial in range(7, 10)
    ]
    for job in long:
        executor.submit(job)
    ended = []
    cluster.remove_node(node)
    while len(ended) < 3:
        ended += [r for r in executor.poll(5.0) if not isinstance(r, Unit)]
    said["lost"] = sum(isinstance(report, WorkerLost) for report in ended)
    lost = {report.identifier for report in ended if isinstance(report, WorkerLost)}
    again = [train(j.trial, 3, data=MEGABYTES) for j in long if j.identifier in lost]
    # what was trained on the node that has gone goes on elsewhere, from the driver's copy
    goes_on = [go_on(job, one[-1], 4) for job, one in zip(jobs, reports[1:], strict=True)]
    later = finish(executor, *again, *goes_on)
    said["completed"] = sum(isinstance(one[-1], Done) for one in later)
    uninterrupted = finish(executor, *(train(j.trial, 4, data=MEGABYTES) for j in jobs))
    said["exact"] = [losses(one) for one in later[len(again) :]] == [
        losses(one)[2:] for one in uninterrupted
    ]
    executor.close()
    said["left running"] = not ray.is_initialized() and len(cluster.list_all_nodes()) == 1
    cluster.shutdown()
    print(json.dumps(said))


def losses(reports):
    return [unit.metrics["loss"] for unit in reports if isinstance(unit, Unit)]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
