"""Run by a test as the processes of a team: ``team_member.py RANK PORT OUT``. Rank 0 also trains
alone; each leaves what it saw in OUT."""

from __future__ import annotations

import io
import sys

import torch
from torch import distributed, nn
from torch.nn import functional

from autotune.train import Data, NotFinite, TaskError, TorchTask
from autotune.train.task import RunContext
from autotune.train.team import join

SIZE = 2
SGD = {"name": "sgd", "learning_rate": 0.05, "momentum": 0.9}
PLAIN = {"optimizer": SGD, "batch_size": 8, "accumulation_steps": 2, "gradient_clip_norm": 1.0}
NOISY = {
    "optimizer": {"name": "adamw", "learning_rate": 0.01},
    "schedule": {"name": "cosine"},
    "batch_size": 8,
    "weight_average_decay": 0.9,
}


def plain(architecture):
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 2))


def noisy(architecture):
    """Every rank draws its own dropout and sees its own batch statistics."""
    return nn.Sequential(
        nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 2)
    )


def shaken(inputs, uniforms, configuration):
    return inputs + 0.1 * uniforms + 0.01 * torch.randn_like(inputs)


def task(model, **rest) -> TorchTask:
    generator = torch.Generator().manual_seed(0)
    # 8 divides neither; the last batch of 43 would hold 3, too few for two ranks
    inputs = torch.randn(43, 6, generator=generator)
    if rest.pop("poisoned", False):
        inputs[7] = torch.nan
    data = Data(
        train=(inputs, (inputs[:, 0] > 0).long()),
        validation=(inputs[8:], (inputs[8:, 0] > 0).long()),
        augment=rest.pop("augment", None),
        augment_draws=6,
    )
    return TorchTask(model, data, functional.cross_entropy, **rest)


def train(task, configuration, team, units, state=None):
    run = task.open(configuration, RunContext(seed=3, horizon=4, team=team))
    if state is not None:
        run.thaw(state)
    metrics = [dict(run.train()) for _ in range(units)]
    return metrics, run.freeze()


def main(rank: int, port: int, out: str) -> None:
    torch.set_num_threads(1)
    store = distributed.TCPStore("127.0.0.1", port, SIZE, is_master=rank == 0)
    team = join(rank, SIZE, "cpu", store)
    seen = {}
    seen["plain"] = train(task(plain), PLAIN, team, 3)
    closure = {"optimizer": {"name": "sam", "learning_rate": 0.05}, "batch_size": 9}
    seen["closure"] = train(task(plain), closure, team, 2)
    made = task(noisy, augment=shaken)
    seen["noisy"] = train(made, NOISY, team, 4)
    first, state = train(made, NOISY, team, 2)
    # as a checkpoint of rank 0 brings it to all
    saved = io.BytesIO()
    torch.save(state, saved)
    state = torch.load(io.BytesIO(team.share(saved.getvalue())), weights_only=True)
    second, last = train(made, NOISY, team, 2, state)
    seen["thawed"] = ([*first, *second], last)
    for name, (poisoned, configuration) in {
        "nan": (True, PLAIN),
        "small": (False, {**PLAIN, "batch_size": 1}),
        "second_order": (False, {"optimizer": {"name": "oasis"}, "batch_size": 8}),
    }.items():
        try:
            train(task(plain, poisoned=poisoned), configuration, team, 1)
        except (NotFinite, TaskError) as error:
            seen[name] = f"{type(error).__name__}: {error}"
    distributed.destroy_process_group()
    if rank == 0:
        seen["plain alone"] = train(task(plain), PLAIN, None, 3)
        seen["closure alone"] = train(task(plain), closure, None, 2)
    torch.save(seen, out)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
