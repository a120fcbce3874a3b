"""Two processes that train one trial together; see `team_member`."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

MEMBER = Path(__file__).with_name("team_member.py")


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each rank saw."""
    folder = tmp_path_factory.mktemp("team")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    members = [
        subprocess.Popen(
            [sys.executable, str(MEMBER), str(rank), str(port), str(folder / str(rank))],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    ends = [member.communicate(timeout=200)[1] for member in members]
    assert [member.returncode for member in members] == [0, 0], "\n".join(ends)
    return [torch.load(folder / str(rank), weights_only=True) for rank in range(2)]


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, f"{path}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from leaves(item, f"{path}[{index}]")
    else:
        yield path, value.tolist() if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize("what", ["plain", "closure", "noisy", "thawed"])
def test_all_ranks_have_one_state_and_one_curve(seen: list, what: str) -> None:
    assert list(leaves(seen[0][what])) == list(leaves(seen[1][what]))


@pytest.mark.parametrize("what", ["plain", "closure"])
def test_it_is_the_run_of_one_process_at_the_same_batch_size(seen: list, what: str) -> None:
    (curve, state), (curve_alone, state_alone) = seen[0][what], seen[0][f"{what} alone"]
    for ours, alone in zip(curve, curve_alone, strict=True):
        assert ours == pytest.approx(alone, rel=1e-5)
    for name, tensor in state["model"]["tensors"].items():
        torch.testing.assert_close(tensor, state_alone["model"]["tensors"][name])
    assert state["counts"] == state_alone["counts"]


def test_a_thawed_team_goes_on_as_if_nothing_had_happened(seen: list) -> None:
    """With dropout, batch norm, augmentation and an average of weights, of which every rank
    has its own part; from the state of rank 0."""
    assert list(leaves(seen[1]["thawed"])) == list(leaves(seen[1]["noisy"]))


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("nan", "NotFinite: the training loss is"),
        ("small", "TaskError: a batch of 1 cannot be divided among a team of 2 workers"),
        ("second_order", "TaskError: 'oasis' needs second_order"),
    ],
)
def test_all_ranks_end_by_the_same_error(seen: list, what: str, message: str) -> None:
    """Where one alone would leave the others waiting."""
    assert all(rank[what].startswith(message) for rank in seen)
