"""Checkpoints at a URL. `local://` is fsspec's plain files, without any rename."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import execute_tasks
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from jobs import context, go_on, train
from studies import tune

import autotune
from autotune.execute import remote_store
from autotune.execute.messages import to_plain
from autotune.execute.opening import opening
from autotune.execute.ray_worker import RayWorker
from autotune.execute.remote_store import RemoteStore, open_store
from autotune.execute.store import (
    CheckpointDamaged,
    CheckpointStore,
    OverRoom,
    StoreError,
    checkpoint_name,
)
from autotune.execute.worker import JobRunner, cause_of
from autotune.surroundings import stop_if_unreachable

CONTENT = {"trial": 3, "weights": torch.arange(5.0)}


@pytest.fixture
def store(request: pytest.FixtureRequest) -> RemoteStore:
    store = open_store(Path("nowhere"), f"memory://bucket/{request.node.name}")
    assert isinstance(store, RemoteStore)
    store.prepare()
    return store


def test_what_is_saved_is_loaded_listed_and_deleted(store: RemoteStore) -> None:
    name, later = store.save(3, 1, CONTENT).name, store.save(3, 12, CONTENT).name
    other = store.save(2, 5, {"trial": 2}).name
    assert torch.equal(store.load(name)["weights"], CONTENT["weights"])
    assert [(s.name, s.trial, s.step) for s in store.list()] == [
        (other, 2, 5),
        (name, 3, 1),
        (later, 3, 12),
    ]
    assert all(stored.size == len(store.get(stored.name)) for stored in store.list())
    store.delete(name)
    store.delete(name)
    assert [stored.name for stored in store.list()] == [other, later]
    with pytest.raises(OverRoom):
        store.save(3, 13, CONTENT, room=10)
    left = store.save(3, 14, CONTENT).name
    store.sweep(3, keep={later})
    assert left not in {stored.name for stored in store.list()}
    assert [stored.name for stored in store.list()] == [other, later]
    assert store.where(later) == f"{store.url}/{later}"
    with pytest.raises(CheckpointDamaged, match=f"{store.url}/{name} cannot be read"):
        store.load(name)


def test_what_was_torn_or_altered_is_noticed(store: RemoteStore) -> None:
    name = store.save(3, 1, CONTENT).name
    whole = store.get(name)
    for data in (whole[:-7], whole[:50] + b"x" + whole[51:]):
        store._files.pipe_file(store._path(name), data)
        with pytest.raises(CheckpointDamaged, match="was altered"):
            store.load(name)
    with pytest.raises(CheckpointDamaged, match="not the name of a checkpoint"):
        store.get("../secrets")


def test_a_network_that_fails_now_and_then(
    store: RemoteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(remote_store.time, "sleep", slept.append)
    failing, write = [3], MemoryFileSystem.pipe_file

    def pipe_file(self, path, value, **rest):
        if failing[0] > 0:
            failing[0] -= 1
            raise ConnectionError("the line is dead")
        return write(self, path, value, **rest)

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", pipe_file)
    assert store.load(store.save(3, 1, CONTENT).name)["trial"] == 3
    assert slept == list(remote_store._PAUSES)
    failing[0] = 99
    with pytest.raises(StoreError, match=r"cannot write memory://.*: the line is dead") as dead:
        store.save(3, 2, CONTENT)
    assert cause_of(dead.value) == "disk"
    with pytest.raises(autotune.StudyError, match=r"go on with the study in here"):
        stop_if_unreachable(store, Path("here"))
    failing[0] = 0
    stop_if_unreachable(store, Path("here"))
    assert [stored.step for stored in store.list()] == [1]


def test_runs_are_frozen_and_thawed_there(store: RemoteStore) -> None:
    def losses(*jobs):
        runner = JobRunner(execute_tasks.small, store, "cpu", None)
        reports = [report for job in jobs for report in runner.run(job)]
        return [r.metrics["loss"] for r in reports if hasattr(r, "metrics")], reports[-1]

    whole, _ = losses(train(0, 4))
    job = train(0, 2)
    first, done = losses(job)
    rest, _ = losses(go_on(job, done, 4))
    assert first + rest == whole


def test_what_cannot_be_deleted_is_told(
    store: RemoteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: str) -> None:
        raise OSError("the network is down")

    stored = store.save(3, 1, CONTENT)
    with monkeypatch.context() as patch:
        patch.setattr(store._files, "rm_file", refuse)
        assert not store.delete(stored.name)
        assert store.sweep(3, keep=set()) == [stored]
        assert store.sweep(3, keep={stored.name}) == []
    assert store.delete(stored.name)
    assert store.delete(stored.name), "it is gone already"
    assert store.list() == []


def test_a_checkpoint_that_a_ray_worker_was_not_sent_cannot_be_read(tmp_path: Path) -> None:
    orders = opening(
        context(execute_tasks.small, tmp_path / "unseen"),
        0,
        "execute_tasks:small",
        torch.get_num_threads(),
    )
    worker = RayWorker()
    worker.open(asdict(orders), (b"", []), [], None, 0, 1, None)
    job = train(0, 4, start=2, checkpoint=checkpoint_name(0, 2, "ab" * 16))
    *_, (end, _) = worker.run(to_plain(job), {})
    assert (end["type"], end["cause"]) == ("Broken", "checkpoint")
    assert "was not sent" in end["message"]


def test_a_ray_worker_that_does_not_see_the_study_writes_there(tmp_path: Path) -> None:
    """It hands over only pretrained weights."""
    url = "memory://bucket/worker"
    orders = opening(
        context(execute_tasks.small, tmp_path / "unseen", checkpoint_url=url),
        0,
        "execute_tasks:small",
        torch.get_num_threads(),
    )
    worker = RayWorker()
    answer = worker.open(asdict(orders), (b"", []), [], None, 0, 1, None)
    assert (answer["type"], answer["shared"]) == ("ready", False)
    job = train(0, 1, bad="pretrain", at=1)
    *_, (done, made) = worker.run(to_plain(job), {"pretrained/other.safetensors": b"given"})
    assert made == {"pretrained/base.safetensors": b"made once"}
    assert RemoteStore(url).load(done["checkpoint"])["trial"] == 0
    assert not (tmp_path / "unseen").exists()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://bucket/x", "Install s3fs"),
        ("nonsense://x", "Protocol not known: nonsense"),
        ("bucket/x", "no URL of storage"),
        ("file://shared/x", "names no folder; expected an absolute path and no host"),
        ("file:///", "names no folder"),
    ],
)
def test_storage_that_cannot_be_reached_is_said_before_the_study_begins(
    tmp_path: Path, url: str, message: str
) -> None:
    with pytest.raises(autotune.StudyError, match=f"checkpoint_url: .*{message}"):
        tune(tmp_path, checkpoint_url=url)
    assert not list(tmp_path.iterdir())


def test_a_shared_folder_is_written_to_with_renames(tmp_path: Path) -> None:
    store = open_store(Path("nowhere"), f"file://{tmp_path}")
    assert isinstance(store, CheckpointStore)
    store.save(1, 1, CONTENT)
    assert [stored.trial for stored in CheckpointStore(tmp_path).list()] == [1]


def test_a_study_keeps_its_checkpoints_there(tmp_path: Path) -> None:
    url = f"local://{tmp_path / 'storage'}"
    result = tune(tmp_path / "studies", checkpoint_url=url, budget={"epochs": 12})
    (own,) = (tmp_path / "storage").iterdir()
    assert own.name.startswith("study-")
    assert result.view.checkpoints == f"{url}/{own.name}"
    assert result.best is not None
    assert result.best.checkpoint in {path.name for path in own.iterdir()}
    assert not (result.folder / "checkpoints").exists()
    loss = result.best.metrics["validation_loss"]
    assert result.best.load_model().bias.item() == pytest.approx(loss, abs=1e-6)
    assert f"checkpoint_url: {url}\n" in (result.folder / "study.yaml").read_text()
    # another study of that name keeps its own
    tune(tmp_path / "elsewhere", checkpoint_url=url, budget={"epochs": 6})
    assert len(list((tmp_path / "storage").iterdir())) == 2
    assert result.best.checkpoint in {path.name for path in own.iterdir()}
