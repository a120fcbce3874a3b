"""Order and augmentation are functions of (seed, epoch, index), however the data is loaded."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset
from train_tasks import configuration, images, small_data, small_task

from autotune.train import Data, RunContext, TaskError, TorchTask
from autotune.train.data import fingerprint, order, part_of_stream, uniforms
from autotune.train.feed import Feed


class Items(Dataset[Any]):
    """Draws from all global generators in `__getitem__`, as random transforms do."""

    def __init__(self, samples: int = 21) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> Any:
        noise = torch.rand(()) + np.random.rand() + random.random()  # noqa: NPY002
        return torch.tensor([float(index), float(noise)]), index % 3


class Numbers(IterableDataset[Any]):
    def __init__(self, samples: int = 20) -> None:
        self.samples = samples

    def __iter__(self) -> Iterator[Any]:
        for index in range(self.samples):
            yield torch.tensor([float(index), 1.0]), index % 3


class ResumableNumbers(Numbers):
    position = 0

    def __iter__(self) -> Iterator[Any]:
        while self.position < self.samples:
            self.position += 1
            yield torch.tensor([float(self.position - 1), 1.0]), self.position % 3

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


VALIDATION = (torch.randn(12, 2), torch.arange(12) % 3)


def collect(data: Data, size: int, epochs: int = 2) -> list[list[tuple[Any, ...]]]:
    """The samples of each epoch: index, noise, uniform."""
    feed, result = Feed(data, seed=5), []
    for _ in range(epochs):
        seen: list[tuple[Any, ...]] = []
        while (batch := feed.next(size)) is not None:
            rows = torch.cat([batch.inputs, batch.uniforms], dim=1).tolist()
            seen += [tuple(row) for row in rows]
        result.append(seen)
        feed.next_epoch()
    return result


def test_every_sample_once_in_a_new_order_each_epoch() -> None:
    first, second = collect(Data(Items(), VALIDATION, augment_draws=1), size=4)
    assert sorted(row[0] for row in first) == list(range(21))
    assert [row[0] for row in first] != [row[0] for row in second]
    assert {row[1] for row in first}.isdisjoint({row[1] for row in second})


def test_batch_size_and_workers_change_no_sample() -> None:
    expected = collect(Data(Items(), VALIDATION, augment_draws=1), size=4)
    assert collect(Data(Items(), VALIDATION, augment_draws=1), size=7) == expected
    assert collect(Data(Items(), VALIDATION, augment_draws=1, workers=2), size=5) == expected


def test_loader_processes_follow_a_changing_batch_size() -> None:
    def sizes(workers: int) -> list[Any]:
        feed = Feed(Data(Items(), VALIDATION, workers=workers), seed=1)
        return [feed.next(size).inputs.tolist() for size in (4, 4, 7, 3)]  # type: ignore[union-attr]

    assert sizes(2) == sizes(0)


def test_a_feed_goes_on_from_its_position() -> None:
    data = Data(Items(), VALIDATION, augment_draws=2)
    feed = Feed(data, seed=1)
    feed.next(4), feed.next_epoch(), feed.next(4)
    state = feed.state_dict()
    expected = feed.next(6)
    again = Feed(data, seed=1)
    again.load_state_dict(state)
    found = again.next(6)
    assert expected is not None
    assert found is not None
    assert torch.equal(found.inputs, expected.inputs)
    assert torch.equal(found.uniforms, expected.uniforms)


def test_no_batch_of_one_sample() -> None:
    feed = Feed(small_data(), seed=0)  # 42 samples
    sizes = []
    while (batch := feed.next(41)) is not None:
        sizes.append(batch.samples)
    assert sizes == [42]
    assert feed.samples_in(3, 10) == 30
    assert feed.samples_in(5, 10) == 42 + 0 * 10
    assert feed.samples_in(6, 10) == 52


def test_uniforms_are_uniform_and_independent() -> None:
    draws = uniforms(0, 0, np.arange(20_000), 3)
    assert draws.dtype == torch.float32
    assert draws.min() >= 0
    assert draws.max() < 1
    histogram = torch.histc(draws, bins=20, min=0, max=1) / draws.numel()
    assert (histogram - 0.05).abs().max() < 0.003
    flat = torch.cat([draws, uniforms(0, 1, np.arange(20_000), 3)], dim=1)
    lagged = torch.stack([draws[:-1, 0], draws[1:, 0]])
    assert (torch.corrcoef(flat.t()) - torch.eye(6)).abs().max() < 0.03
    assert torch.corrcoef(lagged)[0, 1].abs() < 0.03
    assert torch.equal(uniforms(0, 0, np.array([7]), 3), draws[7:8])
    assert not torch.equal(uniforms(1, 0, np.array([7]), 3), draws[7:8])


def test_order_is_a_permutation_of_its_own_for_each_epoch() -> None:
    assert sorted(order(3, 0, 50)) == list(range(50))
    assert not np.array_equal(order(3, 0, 50), order(3, 1, 50))
    assert not np.array_equal(order(3, 0, 50), order(4, 0, 50))


def linear_task(train: Any, **further: Any) -> TorchTask:
    data = {key: further.pop(key) for key in ("samples_per_epoch", "workers") if key in further}
    return TorchTask(
        model=lambda architecture: nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.2), nn.Linear(8, 3)),
        data=Data(train, VALIDATION, **data),
        loss=functional.cross_entropy,
        **further,
    )


@pytest.mark.parametrize(
    ("train", "further"),
    [
        (Items(), {"unit": "step"}),
        (Numbers(), {"samples_per_epoch": 20}),
        (Numbers(), {"samples_per_epoch": 50}),
        (ResumableNumbers(), {"samples_per_epoch": 20, "unit": "step"}),
        (ResumableNumbers(30), {"samples_per_epoch": 13, "unit": "step"}),
    ],
)
def test_freeze_and_thaw_over_any_kind_of_data(train: Any, further: dict[str, Any]) -> None:
    chosen = {"batch_size": 6, "optimizer": {"name": "adamw"}, "accumulation_steps": 2}
    context = RunContext(seed=0, horizon=20)
    run = linear_task(train, **further).open(chosen, context)
    curve = [run.train() for _ in range(9)]
    for start in range(9):
        first = linear_task(train, **further).open(chosen, context)
        for _ in range(start):
            first.train()
        second = linear_task(train, **further).open(chosen, context)
        second.thaw(first.freeze())
        assert [second.train() for _ in range(9 - start)] == curve[start:]


def test_loader_processes_leave_the_generators_alone() -> None:
    """A thaw within an epoch starts them once more than an uninterrupted run does."""
    chosen, context = {"batch_size": 6, "optimizer": {"name": "sgd"}}, RunContext(0, 9)

    def opened(workers: int) -> Any:
        task = linear_task(Items(), unit="step", workers=workers)
        return task.open(chosen, context)

    run = opened(2)
    curve = [run.train(), run.train()]
    state = run.freeze()
    curve.append(run.train())
    thawed = opened(2)
    thawed.thaw(state)
    assert thawed.train() == curve[2]
    alone = opened(0)
    assert [alone.train() for _ in range(3)] == curve


def test_a_resumable_stream_goes_on_where_an_epoch_cut_it() -> None:
    feed = Feed(Data(ResumableNumbers(10), VALIDATION, samples_per_epoch=4), seed=0)
    seen = []
    for _ in range(4):
        while (batch := feed.next(4)) is not None:
            seen += batch.inputs[:, 0].int().tolist()
        feed.next_epoch()
    assert seen == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2, 3]


def test_a_stream_that_cannot_resume_freezes_between_epochs_only() -> None:
    with pytest.raises(TaskError, match="end of an epoch only"):
        linear_task(Numbers(), samples_per_epoch=20, unit="step").open(
            {"optimizer": {"name": "adamw"}}, RunContext(0, 3)
        )
    with pytest.raises(TaskError, match="samples_per_epoch"):
        linear_task(Numbers()).open({"optimizer": {"name": "adamw"}}, RunContext(0, 3))


@pytest.mark.parametrize("kind", ["dict", "tuple"])
def test_inputs_may_be_tuples_or_dicts(kind: str) -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))

        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            return self.net(torch.cat([left, right], dim=1))

    def inputs(samples: int) -> Any:
        both = torch.randn(samples, 2), torch.randn(samples, 2)
        return both if kind == "tuple" else dict(zip(("right", "left"), both, strict=True))

    def split(samples: int) -> Any:
        return inputs(samples), torch.arange(samples) % 3

    data = Data(split(20), split(10), test=split(6), shifted={"same": split(18)})
    task = TorchTask(lambda architecture: Both(), data, functional.cross_entropy, unit="step")
    chosen, context = {"batch_size": 4, "optimizer": {"name": "adamw"}}, RunContext(0, 9)
    run = task.open(chosen, context)
    run.train()
    state = run.freeze()
    expected = run.train()
    thawed = task.open(chosen, context)
    thawed.thaw(state)
    assert thawed.train() == expected
    for evaluation in ({}, {"tta": {"name": "tent"}}, {"tta": {"name": "none"}}):
        assert set(run.evaluate(evaluation, "report")) == {"shifted_loss", "shifted_accuracy"}
        assert run.latency(evaluation)[0] > 0


def test_parts_of_a_stream_share_nothing_and_miss_nothing() -> None:
    for samples in (2, 3, 64, 65, 1000):
        select = [i for batch in part_of_stream(samples, 64, "select") for i in batch]
        report = [i for batch in part_of_stream(samples, 64, "report") for i in batch]
        assert sorted(select + report) == list(range(samples))
        assert select
        assert report
    assert part_of_stream(5, 2, "select") == [[0, 1], [4]]


def test_fingerprint_tells_data_apart() -> None:
    one, same, other = small_data(), small_data(), small_data(train=images(42, 9))
    assert fingerprint(one) == fingerprint(same) == small_task().fingerprint()
    digests = {
        fingerprint(one),
        fingerprint(other),
        fingerprint(small_data(validation=images(29, 1))),
        fingerprint(small_data(shifted={})),
        fingerprint(Data(Items(), VALIDATION)),
        fingerprint(Data(Items(22), VALIDATION)),
        fingerprint(Data(Numbers(), VALIDATION)),
    }
    assert len(digests) == 7
    assert fingerprint(Data(Items(), VALIDATION)) == fingerprint(Data(Items(), VALIDATION))


def test_a_tensor_data_set_is_taken_the_fast_way() -> None:
    pairs = images(42, 0)
    assert fingerprint(Data(pairs, pairs)) == fingerprint(Data(TensorDataset(*pairs), pairs))


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (DataLoader(Items()), "is a DataLoader"),
        ((torch.zeros(3, 2), torch.zeros(4)), "differ in the number of samples"),
        ((torch.zeros(3, 2), [1, 2, 3]), "expected tensors"),
        ((torch.zeros(0, 2), torch.zeros(0)), "is empty"),
        (Items(0), "is empty"),
        (3, "expected a pair"),
    ],
)
def test_wrong_data_is_said_to_be_wrong(train: Any, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        Data(train, VALIDATION)


def test_items_that_are_no_pairs_are_named() -> None:
    data = Data([torch.zeros(2), torch.ones(2), torch.ones(2)], VALIDATION)
    task = TorchTask(lambda architecture: nn.Linear(2, 3), data, functional.cross_entropy)
    run = task.open({"optimizer": {"name": "adamw"}}, RunContext(0, 3))
    with pytest.raises(
        TaskError, match=r"item \d of the data set is float32\[2\]; expected a pair"
    ):
        run.train()


def test_an_iterable_validation_set_is_refused() -> None:
    with pytest.raises(TaskError, match=r"only Data\.train may be one"):
        Data(VALIDATION, Numbers())


def test_the_data_factory_gets_the_whole_configuration() -> None:
    calls = []

    def factory(chosen: Any) -> Data:
        calls.append(chosen["noise"])
        return small_data(train=(images(42, 0)[0] * chosen["noise"], images(42, 0)[1]))

    task, context = small_task(data=factory, pretrained=None), RunContext(0, 4)
    first = task.open(configuration(noise=1.0), context).train()
    assert task.open(configuration(noise=1.0), context).train() == first
    assert task.open(configuration(noise=0.0), context).train() != first
    assert calls == [1.0, 0.0]
    with pytest.raises(TaskError, match="data factory returned int; expected Data"):
        small_task(data=lambda chosen: 3).open(configuration(), context)
