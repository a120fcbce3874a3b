"""Several processes that train one trial together, each on its part of every batch: what they
must tell each other so that they stay one trial."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed

from autotune.train.generators import derive_seed, isolated
from autotune.train.task import TaskError

_PATIENCE = timedelta(hours=6)
"""How long one waits for the others, who may be validating; whoever has died or failed is
noticed by the driver, which ends the whole team."""


@dataclass(frozen=True)
class Team:
    """One process among those that train a trial together. Whatever one of them calls, all
    call, in the same order.

    Args:
        rank: of this process, from 0; rank 0 speaks for the team.
        size: processes in it.
        device: a torch device string.
    """

    rank: int
    size: int
    device: str

    def part(self, count: int) -> slice:
        """Which of `count` samples are this process's. Parts differ by one sample at most."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the team, one message a type of number."""
        for alike in _by_type(tensors):
            flat = torch.cat([tensor.reshape(-1) for tensor in alike])
            distributed.all_reduce(flat)
            _spread(flat, alike)

    def total(self, *values: float) -> list[float]:
        """Each number's sum over the team."""
        summed = torch.tensor(values, dtype=torch.float64, device=self.device)
        distributed.all_reduce(summed)
        return summed.tolist()

    def any(self, flag: bool) -> bool:
        """Whether the flag is set anywhere."""
        return self.total(float(flag))[0] > 0

    def take_over(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by that of rank 0."""
        for alike in _by_type(tensors):
            flat = torch.cat([tensor.reshape(-1) for tensor in alike])
            distributed.broadcast(flat, 0)
            _spread(flat, alike)

    def share(self, value: Any) -> Any:
        """The value that rank 0 gives: plain, no tensors."""
        values = [value]
        distributed.broadcast_object_list(values, 0, device=torch.device(self.device))
        return values[0]


def sum_gradients(team: Team, parameters: Sequence[Tensor]) -> None:
    """Give every process the sum of all gradients; a parameter that nobody used keeps none.

    Raises:
        TaskError: a gradient is sparse.
    """
    used = torch.tensor([float(p.grad is not None) for p in parameters], device=team.device)
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    if any(gradient.layout != torch.strided for gradient in gradients):
        raise TaskError("workers that train a trial together cannot use sparse gradients")
    team.sum([*gradients, used])
    for parameter, gradient, anywhere in zip(parameters, gradients, used.tolist(), strict=True):
        parameter.grad = gradient if anywhere else None


@contextmanager
def apart(team: Team | None, device: torch.device, *place: int | str) -> Iterator[None]:
    """In a team, generators of this process alone, seeded by `place`; those that all share stay
    as they are."""
    if team is None:
        yield
        return
    with isolated(derive_seed("apart", *place, team.rank), device):
        yield


def join(rank: int, size: int, device: str, store: distributed.Store) -> Team:
    """Join the team that meets at `store`; returns when all have."""
    backend = "nccl" if torch.device(device).type == "cuda" else "gloo"
    if backend == "nccl":
        torch.cuda.set_device(torch.device(device))
    distributed.init_process_group(
        backend, store=store, rank=rank, world_size=size, timeout=_PATIENCE
    )
    return Team(rank, size, device)


def _by_type(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    kinds: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault(tensor.dtype, []).append(tensor)
    return list(kinds.values())


def _spread(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))
