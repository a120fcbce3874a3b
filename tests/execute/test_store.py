import errno
import os
import shutil
import subprocess
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from autotune.execute.store import (
    CheckpointDamaged,
    CheckpointStore,
    StoreError,
    StoreFull,
    digest_of,
    pack,
    unpack,
)


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    store = CheckpointStore(tmp_path / "checkpoints")
    store.prepare()
    return store


def content(size: int = 10) -> dict:
    generator = torch.Generator().manual_seed(0)
    return {
        "weights": OrderedDict(layer=torch.randn(size, generator=generator)),
        "half": torch.ones(3, dtype=torch.bfloat16),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "plain": [1, 2.5, float("nan"), None, True, "text", b"bytes", (1, "two")],
        "by_index": {0: {"step": torch.tensor(3.0)}},
    }


def test_a_checkpoint_comes_back_as_it_was(store: CheckpointStore) -> None:
    name = store.save(3, 20, content()).name
    assert name.startswith("trial-00003-step-000020-")
    loaded, expected = store.load(name), content()
    assert torch.equal(loaded["weights"]["layer"], expected["weights"]["layer"])
    assert loaded["half"].dtype == torch.bfloat16
    assert loaded["plain"][3:] == expected["plain"][3:]
    assert loaded["by_index"][0]["step"] == 3
    assert [(s.trial, s.step, s.name) for s in store.list()] == [(3, 20, name)]
    assert store.list()[0].size == (store.folder / name).stat().st_size
    assert store.save(3, 20, content()).name == name, "equal content has an equal name"


def test_what_is_listed_is_what_was_saved_and_not_deleted(store: CheckpointStore) -> None:
    names = [store.save(trial, step, content()).name for trial in (1, 0) for step in (10, 2)]
    store.delete(names[0])
    store.delete(names[0])
    (store.folder / "notes.txt").write_text("not a checkpoint")
    assert [(s.trial, s.step) for s in store.list()] == [(0, 2), (0, 10), (1, 2)]


@pytest.mark.parametrize("change", ["flip", "truncate", "empty", "remove"])
def test_damage_is_noticed_wherever_it_is(store: CheckpointStore, change: str) -> None:
    name = store.save(0, 1, content()).name
    path = store.folder / name
    data = bytearray(path.read_bytes())
    if change == "flip":
        for position in range(0, len(data), max(1, len(data) // 50)):
            altered = bytearray(data)
            altered[position] ^= 1
            path.write_bytes(altered)
            with pytest.raises(CheckpointDamaged, match="does not match"):
                store.load(name)
        return
    if change == "remove":
        path.unlink()
    else:
        path.write_bytes(data[:-7] if change == "truncate" else b"")
    with pytest.raises(CheckpointDamaged, match=name):
        store.load(name)


class Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/autotune_was_here",)


def test_code_is_neither_saved_nor_loaded(store: CheckpointStore, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"checkpoint\['state'\]\[1\] is a .*Evil"):
        store.save(0, 1, {"state": [0, Evil()]})
    with pytest.raises(StoreError, match=r"numpy\.float64"):
        store.save(0, 1, {"value": np.float64(1)})
    assert store.list() == []
    # a file with a right digest, made by someone else
    evil = tmp_path / "evil.safetensors"
    torch.save({"state": Evil()}, evil)

    digest = digest_of(evil.read_bytes())
    name = f"trial-00000-step-000001-{digest}.safetensors"
    shutil.copy(evil, store.folder / name)
    with pytest.raises(CheckpointDamaged, match="cannot be loaded"):
        store.load(name)
    assert not Path("/tmp/autotune_was_here").exists()


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "trial-1-step-1.safetensors", "", "/etc/passwd"]
)
def test_only_names_of_checkpoints_reach_the_disk(store: CheckpointStore, name: str) -> None:
    for use in (store.load, store.delete, store.get, store.path):
        with pytest.raises(CheckpointDamaged, match="not the name"):
            use(name)


def test_what_a_killed_writer_left_is_swept_and_never_listed(store: CheckpointStore) -> None:
    name = store.save(0, 1, content()).name
    torn = store.folder / ".unfinished-1-abc"
    torn.write_bytes(b"half a checkpoint")
    assert [stored.name for stored in store.list()] == [name]
    store.prepare()
    assert not torn.exists()
    assert [stored.name for stored in store.list()] == [name]


def test_the_file_is_flushed_under_its_name_before_that_is_returned(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[str] = []
    sync = os.fsync

    def fsync(descriptor: int) -> None:
        flushed.append(Path(f"/proc/self/fd/{descriptor}").resolve().name)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    assert flushed == [store.save(0, 1, content()).name]


@pytest.fixture
def small_disk(tmp_path: Path):
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_said_and_leaves_nothing_torn(small_disk: Path) -> None:
    store = CheckpointStore(small_disk / "checkpoints")
    store.prepare()
    kept = store.save(0, 1, content(100_000)).name
    with pytest.raises(StoreFull, match=r"disk under .*checkpoints is full .*MiB free"):
        store.save(1, 1, content(200_000))
    assert [stored.name for stored in store.list()] == [kept]
    assert {path.name for path in store.folder.iterdir()} == {kept}
    store.load(kept)
    stored, data = pack(1, 1, content(200_000))
    with pytest.raises(StoreFull):
        store.put(stored.name, data)
    assert {path.name for path in store.folder.iterdir()} == {kept}
    store.delete(kept)
    stored = store.save(1, 1, content(200_000))
    assert store.load(stored.name)["weights"]["layer"].shape == (200_000,)


def test_other_errors_of_the_disk_are_said_too(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(StoreError, match="Input/output error"):
        store.save(0, 1, content())
    assert list(store.folder.iterdir()) == []


def test_saving_again_what_is_there_loses_nothing_where_the_disk_refuses(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = store.save(0, 1, content()).name
    flushed = store.path(name).stat().st_ino

    def refuse(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(StoreError, match="Input/output error"):
        store.save(0, 1, content())
    assert [path.name for path in store.folder.iterdir()] == [name]
    assert store.path(name).stat().st_ino == flushed


def test_bytes_of_a_checkpoint_travel(store: CheckpointStore) -> None:
    stored, data = pack(4, 2, content())
    name = stored.name
    assert stored.size == len(data)
    assert store.put(name, data) == name
    assert store.get(name) == data
    assert torch.equal(unpack(name, data)["half"], content()["half"])
    with pytest.raises(CheckpointDamaged, match="altered"):
        store.put(name, data[:-1])
