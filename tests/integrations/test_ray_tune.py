"""Freeze-thaw inside Ray Tune, on a real local cluster of two CPUs."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from autotune.integrations.ray_tune import FreezeThawScheduler, ProposerSearch
from autotune.integrations.ray_tune.domains import as_tune, converted, from_tune
from autotune.plugins.search import Decided, Frozen, Observed, Start, Thaw
from autotune.space import Categorical, Float, Integer, SpaceError

ray = pytest.importorskip("ray")
from ray import tune  # noqa: E402
from ray.tune.schedulers import ASHAScheduler  # noqa: E402

pytestmark = pytest.mark.timeout(300)

PARAM_SPACE = {"x": tune.uniform(0.0, 1.0), "inner": {"kind": tune.choice(["good", "bad"])}}


def loss(config: dict[str, Any], step: int) -> float:
    penalty = 0.0 if config["inner"]["kind"] == "good" else 0.5
    return float((config["x"] - 0.3) ** 2 + penalty + 1.0 / step)


class Resumes(tune.Trainable):
    def setup(self, config: dict[str, Any]) -> None:
        self.steps = 0

    def step(self) -> dict[str, Any]:
        self.steps += 1
        return {"loss": loss(self.config, self.steps), "steps": self.steps}

    def save_checkpoint(self, folder: str) -> None:
        Path(folder, "steps.json").write_text(json.dumps(self.steps))

    def load_checkpoint(self, folder: str) -> None:
        self.steps = json.loads(Path(folder, "steps.json").read_text())

    def reset_config(self, config: dict[str, Any]) -> bool:
        self.config, self.steps = config, 0
        return True


def function_that_resumes(config: dict[str, Any]) -> None:
    begun, checkpoint = 0, tune.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            begun = json.loads(Path(folder, "steps.json").read_text())
    for step in range(begun + 1, 7):
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "steps.json").write_text(json.dumps(step))
            checkpoint = tune.Checkpoint.from_directory(folder)
            tune.report({"loss": loss(config, step), "steps": step}, checkpoint=checkpoint)


def function_that_begins_again(config: dict[str, Any]) -> None:
    for step in range(1, 7):
        tune.report({"loss": loss(config, step), "steps": step})


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import it
    yield
    ray.shutdown()


def fit(trainable: Any, folder: Path, scheduler: Any, search: ProposerSearch, samples: int) -> Any:
    tuner = tune.Tuner(
        trainable,
        param_space=PARAM_SPACE,
        tune_config=tune.TuneConfig(
            metric="loss",
            mode="min",
            num_samples=samples,
            search_alg=search,
            scheduler=scheduler,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(storage_path=str(folder), name="run", verbose=0),
    )
    return tuner.fit()


def check_curves(search: ProposerSearch) -> None:
    """Every unit of every trial was trained once, in order, and trials were thawed."""
    seen: dict[int, int] = {}
    frozen: dict[int, int] = {}
    thaws = 0
    for event in search.events:
        match event:
            case Decided(decision=Start(trial=number)):
                seen[number] = frozen[number] = 0
            case Decided(decision=Thaw(trial=number, to=to)):
                thaws += 1
                assert to > frozen[number]
            case Observed(trial=number, step=step):
                assert step == seen[number] + 1
                seen[number] = step
            case Frozen(trial=number, step=step):
                frozen[number] = step
    assert thaws >= 1


def test_freeze_thaw_in_a_tuner(tmp_path: Path) -> None:
    search = ProposerSearch(horizon=6)
    scheduler = FreezeThawScheduler(search, forecaster="parametric")
    results = fit(Resumes, tmp_path, scheduler, search, samples=9)
    assert not results.errors
    assert len(results) == 9
    check_curves(search)
    assert search.search is not None
    trials = search.search.trials
    assert 9 < trials.units <= 9 * 6
    for result in results:
        assert result.metrics["steps"] == result.metrics["training_iteration"]
    best = results.get_best_result()
    assert best.config["inner"]["kind"] == "good"
    assert best.metrics["loss"] == pytest.approx(trials.best[0])
    assert "9 trials" in scheduler.debug_string()
    # The searcher's state is plain JSON, and folds to the same.
    search.save(str(tmp_path / "state.json"))
    again = ProposerSearch(horizon=6, metric="loss", mode="min", space=PARAM_SPACE)
    again.restore(str(tmp_path / "state.json"))
    assert again.events == search.events
    again._open()
    assert again.search is not None
    assert again.search.trials.best == trials.best


def test_a_function_is_thawed_from_its_checkpoint(tmp_path: Path) -> None:
    search = ProposerSearch(horizon=6)
    scheduler = FreezeThawScheduler(search, policy="asha", max_concurrent=1)
    results = fit(function_that_resumes, tmp_path, scheduler, search, samples=6)
    assert not results.errors
    check_curves(search)


def test_a_function_that_begins_again_is_refused(tmp_path: Path) -> None:
    search = ProposerSearch(horizon=6)
    scheduler = FreezeThawScheduler(search, policy="asha", max_concurrent=1)
    with pytest.raises(Exception, match="its trainable does not resume"):
        fit(function_that_begins_again, tmp_path, scheduler, search, samples=9)


def test_the_proposer_alone_with_tunes_own_scheduler(tmp_path: Path) -> None:
    first = {"x": 0.31, "inner": {"kind": "bad"}}
    search = ProposerSearch(horizon=6, points_to_evaluate=[first])
    scheduler = ASHAScheduler(max_t=6, grace_period=1, reduction_factor=3)
    results = fit(Resumes, tmp_path, scheduler, search, samples=6)
    assert not results.errors
    configurations = [
        e.decision.configuration
        for e in search.events
        if isinstance(e, Decided) and isinstance(e.decision, Start)
    ]
    assert len(configurations) == 6
    assert configurations[1] == first
    assert {result.config["x"] for result in results} == {c["x"] for c in configurations}
    assert all(trial.metrics for trial in search.search.trials.all.values())


def test_another_searcher_is_refused(tmp_path: Path) -> None:
    scheduler = FreezeThawScheduler(ProposerSearch(horizon=3))
    other = ProposerSearch(horizon=3)
    with pytest.raises(Exception, match="give the ProposerSearch that it was made with"):
        fit(Resumes, tmp_path, scheduler, other, samples=2)
    with pytest.raises(TypeError, match="expected the ProposerSearch"):
        FreezeThawScheduler("optuna")  # type: ignore[arg-type]


def test_tunes_domains_become_a_space() -> None:
    space, meanings = converted(
        {
            "rate": tune.loguniform(1e-5, 1e-1),
            "momentum": tune.quniform(0.0, 0.9, 0.1),
            "layers": tune.randint(1, 5),
            "width": tune.lograndint(8, 257),
            "shape": {"kind": tune.choice(["a", "b"]), "sizes": tune.choice([[8], [8, 8], None])},
            "constant": 3,
        }
    )
    slots = {slot.path: slot.parameter for slot in space.slots}
    assert slots == {
        "rate": Float(1e-5, 1e-1, log=True),
        "momentum": Float(0.0, 0.9, step=0.1),
        "layers": Integer(1, 4),
        "width": Integer(8, 256, log=True),
        "shape.kind": Categorical(("a", "b")),
        "shape.sizes": Categorical(("0: [8]", "1: [8, 8]", "2: null")),
    }
    point = {"rate": 0.1, "shape": {"kind": "a", "sizes": [8, 8]}}
    named = from_tune(point, meanings)
    assert named == {"rate": 0.1, "shape": {"kind": "a", "sizes": "1: [8, 8]"}}
    assert as_tune(named, meanings) == point
    for domain, problem in (
        (tune.randn(0.0, 1.0), "this domain cannot be searched"),
        (tune.sample_from(lambda spec: 1), "this domain cannot be searched"),
        ({"grid_search": [1, 2]}, "a grid is no domain"),
    ):
        with pytest.raises(SpaceError, match=problem) as caught:
            converted({"bad": domain})
        assert "bad" in str(caught.value)


class FailsOnce(Resumes):
    """Fails at its third unit, the first time that a folder's marker is missing."""

    def step(self) -> dict[str, Any]:
        marker = Path(self.config["folder"], f"failed-{self.config['x']}")
        if self.steps == 2 and not marker.exists():
            marker.touch()
            raise RuntimeError("an accident")
        return super().step()


def test_trials_that_tune_tries_again_and_stops_itself(tmp_path: Path) -> None:
    search = ProposerSearch(horizon=6)
    scheduler = FreezeThawScheduler(search, policy="asha")
    tuner = tune.Tuner(
        FailsOnce,
        param_space={**PARAM_SPACE, "folder": str(tmp_path)},
        tune_config=tune.TuneConfig(
            metric="loss", mode="min", num_samples=6, search_alg=search, scheduler=scheduler
        ),
        run_config=tune.RunConfig(
            storage_path=str(tmp_path / "results"),
            name="run",
            verbose=0,
            stop={"training_iteration": 6},
            failure_config=tune.FailureConfig(max_failures=2),
        ),
    )
    results = tuner.fit()
    assert not results.errors
    assert list(tmp_path.glob("failed-*"))
    check_curves(search)
    assert search.search is not None
    trials = search.search.trials.all.values()
    assert not [trial.failure for trial in trials if trial.failure]
    assert any(trial.status == "done" for trial in trials)


def test_a_limit_that_counts_paused_trials_is_refused(tmp_path: Path) -> None:
    search = ProposerSearch(horizon=3, metric="loss", mode="min")
    tuner = tune.Tuner(
        Resumes,
        param_space=PARAM_SPACE,
        tune_config=tune.TuneConfig(
            metric="loss",
            mode="min",
            num_samples=2,
            max_concurrent_trials=1,
            search_alg=search,
            scheduler=FreezeThawScheduler(search),
        ),
        run_config=tune.RunConfig(storage_path=str(tmp_path), name="run", verbose=0),
    )
    with pytest.raises(Exception, match="FreezeThawScheduler\\(max_concurrent"):
        tuner.fit()
