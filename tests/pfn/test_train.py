"""The training command: it learns, goes on where it stood, and writes weights that load."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from autotune.pfn import evaluation, train, training_data, weights
from autotune.pfn.network import Size

SIZE = Size(width=32, layers=2, heads=2, bins=100)


@pytest.fixture(autouse=True)
def few_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_data, "SHAPES", ((4, 16), (8, 16)))
    monkeypatch.setattr(training_data, "WEIGHTS", (0.5, 0.5))


def plan(data_sets: int = 400, seed: int = 0) -> train.Plan:
    return train.Plan(data_sets, 640, 5e-3, seed, SIZE, torch.device("cpu"))


def finished(folder: Path, data_sets: int = 400, seed: int = 0, every: int = 4) -> train.Training:
    training = train.Training(plan(data_sets, seed))
    folder.mkdir(exist_ok=True)
    saved = folder / "state.pt"
    if saved.exists():
        training.load(torch.load(saved, weights_only=True))
    train.run(training, folder, every, folder / "weights.safetensors", lambda line: None)
    return training


def test_training_beats_the_uniform_forecast(tmp_path: Path) -> None:
    finished(tmp_path, data_sets=3000, every=1000)
    (line,) = [json.loads(text) for text in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert line["log_likelihood"] > 0.3, "a uniform forecast has 0"
    assert line["data_sets"] >= 3000


def test_stopping_and_going_on_changes_nothing(tmp_path: Path) -> None:
    whole = finished(tmp_path / "whole")
    part = train.Training(plan())
    folder = tmp_path / "part"
    folder.mkdir()
    parts = train._parts(part, 4)
    next(parts)
    torch.save(part.state(), folder / "state.pt")
    next(parts)  # what was trained after the last state is lost
    resumed = finished(folder)
    assert resumed.step == whole.step
    for one, other in zip(
        whole.average.state_dict().values(), resumed.average.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other)


def test_another_runs_state_is_refused(tmp_path: Path) -> None:
    finished(tmp_path)
    with pytest.raises(ValueError, match=r"seed 0.*asks for 1"):
        finished(tmp_path, seed=1)


def test_weights_load_and_forecast_the_same(tmp_path: Path) -> None:
    training = finished(tmp_path)
    loaded = weights.load(tmp_path / "weights.safetensors")
    examples = evaluation.held_out(torch.device("cpu"))[0]
    with torch.no_grad():
        torch.testing.assert_close(
            evaluation.logits(loaded, examples), evaluation.logits(training.average, examples)
        )
    card = weights.read_header(tmp_path / "weights.safetensors")["card"]
    assert card["data_sets"] == training.data_sets
    text = (tmp_path / "weights.md").read_text()
    assert f"{training.data_sets:,} artificial studies" in text
    assert set(card["held_out"]) == {"log_likelihood", "squared_error", "below_5", "above_95"}


def test_weights_are_trained_further(tmp_path: Path) -> None:
    first = finished(tmp_path / "first", data_sets=3000, every=1000)
    begun = tmp_path / "first" / "weights.safetensors"
    further = train.Training(replace(plan(seed=1), begin_with=begun))
    for mine, theirs in zip(further.network.parameters(), first.average.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    folder = tmp_path / "further"
    folder.mkdir()
    train.run(further, folder, 1000, folder / "weights.safetensors", lambda line: None)
    card = weights.read_header(folder / "weights.safetensors")["card"]
    assert card["begun_with"]["data_sets"] == first.data_sets
    text = (folder / "weights.md").read_text()
    assert text.index(f"{first.data_sets:,} artificial") < text.index(f"{further.data_sets:,} art")
    state = torch.load(folder / "state.pt", weights_only=True)
    train.Training(further.plan).load(state)
    with pytest.raises(ValueError, match="other weights"):
        train.Training(plan(seed=1)).load(state)


def test_weights_are_not_trained_on_what_they_have_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    training = finished(tmp_path)
    begun = tmp_path / "weights.safetensors"
    card = weights.read_header(begun)["card"]
    weights.save(begun, training.average, {**card, "seed": 1, "begun_with": card})
    command = ["train", "--begin-with", str(begun), "--folder", str(tmp_path / "further")]
    for seed in "01":
        monkeypatch.setattr("sys.argv", [*command, "--seed", seed, "--data-sets", "0"])
        with pytest.raises(SystemExit):
            train.main()
        assert f"have seen the data of seed {seed}" in capsys.readouterr().err


def test_weights_to_begin_with_are_not_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    finished(tmp_path)
    begun, folder = str(tmp_path / "weights.safetensors"), str(tmp_path / "further")
    command = ["train", "--begin-with", begun, "--seed", "1", "--output", begun]
    monkeypatch.setattr("sys.argv", [*command, "--folder", folder, "--data-sets", "0"])
    with pytest.raises(SystemExit):
        train.main()
    assert "would be written over" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"not weights", b"\x08\0\0\0\0\0\0\0{}      "])
def test_other_files_are_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="weights"):
        weights.load(path)


@pytest.mark.parametrize("known", [True, False])
def test_a_processor_without_bfloat16_trains_in_float32(
    known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: known)
    training = train.Training(plan())
    found: list[torch.dtype] = []
    layer = next(m for m in training.network.blocks.modules() if isinstance(m, torch.nn.Linear))
    layer.register_forward_hook(lambda module, given, out: found.append(out.dtype))
    training.advance()
    assert set(found) == {torch.bfloat16 if known else torch.float32}
    assert train.halves(torch.device("cuda"))


def test_the_rate_warms_up_stays_and_falls() -> None:
    assert train.rate_factor(0.0) < 0.05
    assert train.rate_factor(0.1) == train.rate_factor(0.5) == 1.0
    assert train.rate_factor(0.75) == pytest.approx(0.5)
    assert train.rate_factor(1.0) == 0.0
