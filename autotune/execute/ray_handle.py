"""The driver's side of one worker in a Ray cluster: an actor, or the actors of a team that
trains each trial together."""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from typing import Any

from autotune.execute.ray_worker import RayWorker, end_process
from autotune.plugins.execution import Job

_LEAVES, _ENDS = 2.0, 30.0
"""Seconds that a process has to leave by itself once Ray was told to end it, and to be gone."""

_log = logging.getLogger(__name__)


class Handle:
    """One worker of the executor. Its `lead` reports; the `others` of a team do as it does.

    Args:
        ray: the module.
        number: of the worker.
        request: what each actor asks for.
        team: how many actors there are; several get a placement group, so that they start
            together or not at all.
    """

    def __init__(self, ray: Any, number: int, request: dict[str, float], team: int) -> None:
        self._ray = ray
        self.number = number
        self.deadline = 0.0
        self.ready = False
        self.shared = True
        self.process = 0
        self.node = ""
        self.job: Job | None = None
        self.holds: dict[type, tuple[int, str | None] | None] = {}
        self.used = 0
        self.files: set[str] = set()
        self.reports: Any = None
        self.failed: dict[str, Any] | None = None
        """The end of a job in which another than the lead broke."""
        self.overdue = float("inf")
        """When a team whose members should all have ended is given up."""
        self._opening: list[Any] = []
        self._following: list[Any] = []
        self._place: Any = None
        self._processes: list[tuple[str, int]] = []
        options: dict[str, Any] = {"max_restarts": 0, "concurrency_groups": {"control": 1}}
        if team > 1:
            kinds = {"CPU": request["num_cpus"], "GPU": request["num_gpus"]}
            bundle = {kind: count for kind, count in kinds.items() if count} or {"CPU": 0.001}
            self._place = ray.util.placement_group([bundle] * team, strategy="PACK")
        actors = []
        for rank in range(team):
            if self._place is not None:
                options["scheduling_strategy"] = (
                    ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy(
                        self._place, placement_group_bundle_index=rank
                    )
                )
            actors.append(ray.remote(**options, **request)(RayWorker).remote())
        self.lead, self.others = actors[0], actors[1:]

    @property
    def free(self) -> bool:
        """Whether it can take a job."""
        return self.ready and self.job is None and not self._following

    @property
    def awaited(self) -> list[Any]:
        """References of which the next thing it says will come."""
        if not self.ready:
            return self._opening
        return [*self._following, *([] if self.job is None else [self.reports])]

    def open(self, seconds: float, *orders: Any) -> None:
        """Have all actors import the task; `seconds` is how long that may take."""
        self.deadline = time.monotonic() + seconds
        self._nodes = alive_nodes(self._ray)
        size = 1 + len(self.others)
        meeting = self.lead.meet.remote(size) if self.others else None
        self._opening = [
            actor.open.remote(*orders, rank, size, meeting)
            for rank, actor in enumerate([self.lead, *self.others])
        ]
        self._lead_opening = self._opening[0]

    @property
    def node_left(self) -> bool:
        """Whether a node has left the cluster since this worker was started: maybe its own."""
        return not self._nodes <= alive_nodes(self._ray)

    def answered(self, source: Any, answer: dict[str, Any]) -> bool:
        """Take in how an actor opened; whether all have."""
        self._processes.append((answer["place"], answer["process"]))
        if source == self._lead_opening:
            self.process, self.node = answer["process"], answer["node"]
        self.shared &= answer["shared"]
        self._opening.remove(source)
        self.ready = not self._opening
        return self.ready

    def run(self, message: dict[str, Any], files: dict[str, bytes]) -> None:
        """Start a job on all actors."""
        self.failed, self.overdue = None, float("inf")
        self.reports = self.lead.run.options(num_returns="streaming").remote(message, files)
        if message["type"] == "TrainJob":  # the rest is done by one
            self._following = [other.follow.remote(message, files) for other in self.others]

    def follows(self, source: Any) -> bool:
        """Whether a reference is of another actor than the lead."""
        return source in self._following

    def followed(self, source: Any, end: dict[str, Any]) -> None:
        """Take in how the job ended on another actor."""
        self._following.remove(source)
        if end["type"] != "Done":
            self.failed = self.failed or end

    def tell(self, what: str, **told: Any) -> None:
        """Call a method of the lead beside the job that it runs."""
        getattr(self.lead, what).options(concurrency_group="control").remote(**told)

    def wait_until_dead(self) -> None:
        """Return once no process of killed actors is left: Ray only sends word to end them, and
        one that hangs may not hear it."""
        ray, tasks = self._ray, []
        here = ray.get_runtime_context().get_node_id()
        for place, process in self._processes:
            if place == here:
                end_process(process, _LEAVES)
                continue
            there = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(place, soft=False)
            task = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(end_process)
            tasks.append(task.remote(process, _LEAVES))
        try:
            ray.get(tasks, timeout=_ENDS)
        except ray.exceptions.RayError as error:  # the node has gone, and its processes with it
            _log.info("worker %d is not known to have ended: %s", self.number, error)

    def kill(self) -> None:
        """End all actors."""
        for actor in [self.lead, *self.others]:
            with suppress(Exception):  # a cluster that has gone cannot be told so
                self._ray.kill(actor, no_restart=True)
        if self._place is not None:
            with suppress(Exception):
                self._ray.util.remove_placement_group(self._place)


def alive_nodes(ray: Any) -> frozenset[str]:
    """Identifiers of the cluster's nodes."""
    return frozenset(node["NodeID"] for node in ray.nodes() if node["Alive"])
