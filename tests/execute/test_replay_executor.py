import dataclasses
from pathlib import Path

import numpy as np
import pytest
from execute_tasks import small
from jobs import context, evaluate, finish, go_on, train, without_times

from autotune.execute.local import Local
from autotune.execute.recorded_table import RecordedTable
from autotune.execute.replay import Replay
from autotune.plugins import PluginError
from autotune.plugins.execution import Broken, Done, TrainJob, Unit
from autotune.train.task import TaskError

CURVES = Path("/work/shared/curves")


def table(n: int = 12, units: int = 6, **changes) -> RecordedTable:
    generator = np.random.default_rng(0)
    rows = np.stack(
        [
            10 ** generator.uniform(-4, -1, n),
            generator.integers(1, 200, n),
            generator.choice([16, 32, 64], n),
            generator.integers(0, 3, n),
            np.full(n, 7.0),
        ],
        axis=1,
    )
    curves = generator.uniform(size=(n, 1)) + 1 / np.arange(1, units + 1)
    curves[3, 4:] = np.nan
    return RecordedTable(
        rows,
        ("rate", "width", "batch", "optimizer(0=SGD,1=Momentum,2=Adam)", "constant"),
        (True, False, True, False, False),
        curves,
        seconds=generator.uniform(1, 2, (n, units)),
        test=curves + 0.5,
        **changes,
    )


def job(table: RecordedTable, row: int, to: int, start: int = 0, checkpoint=None) -> TrainJob:
    plain = train(row, to, start, checkpoint)
    return dataclasses.replace(plain, configuration=table.candidates[row])


@pytest.fixture
def replay(tmp_path: Path):
    executor = Replay()
    executor.open(context(table(), tmp_path, workers=2))
    yield executor
    executor.close()


def test_the_space_is_what_was_recorded() -> None:
    recorded = table()
    kinds = {name: type(p).__name__ for name, p in recorded.space.parameters.items()}
    assert kinds == {
        "rate": "Float",
        "width": "Integer",
        "batch": "Ordinal",
        "optimizer": "Categorical",
    }
    for configuration in recorded.candidates:
        recorded.space.validate(configuration)
    generator = np.random.default_rng(1)
    for _ in range(50):
        assert 0 <= recorded.nearest(recorded.space.sample(generator)) < 12


def test_every_candidate_is_its_own_row_and_neighbours_map_to_it() -> None:
    recorded = table()
    assert [recorded.nearest(c) for c in recorded.candidates] == list(range(12))
    moved = {**recorded.candidates[5], "rate": recorded.candidates[5]["rate"] * 1.01}
    assert recorded.nearest(moved) == 5


def test_reports_are_the_recorded_curve_at_the_recorded_times(replay: Replay) -> None:
    recorded = table()
    (reports,) = finish(replay, job(recorded, 2, 4))
    assert [type(r) for r in reports] == [Unit] * 4 + [Done]
    assert [r.metrics["validation_loss"] for r in reports[:4]] == list(recorded.curves[2, :4])
    assert [r.seconds for r in reports[:4]] == list(recorded.seconds[2, :4])
    assert replay.now() == pytest.approx(recorded.seconds[2, :4].sum())
    assert reports[-1].seconds == pytest.approx(replay.now())


def test_two_virtual_workers_advance_together(replay: Replay) -> None:
    recorded = table()
    first, second = job(recorded, 0, 6), job(recorded, 1, 6)
    replay.submit(first)
    replay.submit(second)
    assert replay.free == 0
    assert replay.poll(0.0) == []
    assert replay.now() == 0.0, "who only looks does not move the clock"
    times, order = [], []
    while replay.free < 2:
        order += [r.identifier for r in replay.poll(1.0)]
        times.append(replay.now())
    assert times == sorted(times)
    assert set(order[:3]) == {first.identifier, second.identifier}, "they interleave"
    assert times[-1] == pytest.approx(max(recorded.seconds[:2].sum(axis=1)))


def test_a_diverged_run_is_not_finite_and_the_end_is_said(replay: Replay) -> None:
    recorded = table()
    (reports,) = finish(replay, job(recorded, 3, 6))
    assert [type(r) for r in reports] == [Unit] * 4 + [Broken]
    assert (reports[-1].cause, reports[-1].step) == ("not_finite", 4)
    (reports,) = finish(replay, job(recorded, 0, 7))
    assert reports[-1].message == "the recorded curves end at unit 6"


def test_interrupt_ends_after_the_unit_in_flight(replay: Replay) -> None:
    recorded = table()
    replay.submit(job(recorded, 0, 6))
    replay.poll(1.0)
    replay.interrupt()
    replay.interrupt()
    assert [(type(r), r.step) for r in replay.poll(1.0)] == [(Unit, 2), (Done, 2)]
    assert replay.poll(1.0) == []


def test_the_same_jobs_give_the_same_reports(tmp_path: Path) -> None:
    def once() -> list:
        executor, recorded = Replay(), table()
        executor.open(context(recorded, tmp_path, workers=2))
        return [finish(executor, *[job(recorded, row, 5) for row in range(8)]), executor.now()]

    first, second = once(), once()
    assert [without_times(r) for r in first[0]] == [without_times(r) for r in second[0]]
    assert first[1] == second[1]


def test_local_workers_report_a_table_as_replay_does(replay: Replay, tmp_path: Path) -> None:
    recorded = table()
    local = Local()
    local.open(context(recorded, tmp_path))
    try:
        for row in (0, 3):
            starts = job(recorded, row, 3)
            both = []
            for executor in (replay, local):
                ((*units, done),) = finish(executor, starts)
                (rest,) = finish(executor, go_on(starts, done, 6))
                both.append(without_times([*units, done, *rest]))
            assert both[0] == both[1]
        ((*_, done),) = finish(local, starts := job(recorded, 1, 2))
        ((*_, virtual),) = finish(replay, starts)
        for what in ("stream", "test", "alone"):
            (live,) = finish(local, evaluate(starts, done, what))
            (replayed,) = finish(replay, evaluate(starts, virtual, what))
            assert without_times(live) == without_times(replayed)
            assert live[0].report == replayed[0].report if what != "alone" else True
    finally:
        local.close()


def test_wrong_tables_and_tasks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="needs a RecordedTable"):
        Replay().open(context(small, tmp_path))
    with pytest.raises(PluginError, match="no option 'speed'"):
        Replay().open(context(table(), tmp_path, options={"speed": 2}))
    with pytest.raises(TaskError, match="need rows of shape"):
        dataclasses.replace(table(), names=("rate",))
    with pytest.raises(TaskError, match="log scale"):
        dataclasses.replace(table(), log=(True, False, True, True, False))
    np.savez(tmp_path / "no_space.npz", Y=np.ones((2, 3)))
    with pytest.raises(TaskError, match="no X, hp_names"):
        RecordedTable.load(tmp_path / "no_space.npz")


def test_a_table_is_read_from_a_file(tmp_path: Path) -> None:
    recorded = table()
    padded = np.pad(recorded.curves, ((0, 0), (1, 0)), constant_values=9.0)
    np.savez(
        tmp_path / "table.npz",
        X=recorded.rows,
        hp_names=recorded.names,
        log=recorded.log,
        Y=padded,
        Y_seeds=np.ones((12, 7, 2)),
        Y_accuracy=1 - padded,
        time=np.arange(7.0)[None] * 10 + np.ones((12, 1)),
        fidelity=np.arange(7),
        metric="validation loss (mean)",
        minimise=True,
    )
    loaded = RecordedTable.load(tmp_path / "table.npz")
    assert (loaded.horizon, loaded.metric) == (6, "validation_loss")
    assert loaded.objective.direction == "minimize"
    np.testing.assert_array_equal(loaded.curves, recorded.curves)
    assert loaded.unit_seconds(0, 1) == 10
    assert set(loaded.metrics(0, 1)) == {"validation_loss", "accuracy"}
    assert loaded.candidates == recorded.candidates


@pytest.mark.skipif(not CURVES.is_dir(), reason=f"no recorded curves at {CURVES}")
@pytest.mark.parametrize(
    ("name", "horizon"), [("taskset_patch32_GRU64_avg_bs128", 50), ("lcbench_surrogate_7593", 52),
                          ("deepobs_fmnist_2c2d", 100), ("arlbench_sac_brax_hopper", 10)]
)  # fmt: skip
def test_real_tables_replay(name: str, horizon: int, tmp_path: Path) -> None:
    recorded = RecordedTable.load(CURVES / f"{name}.npz")
    assert recorded.horizon == horizon
    for row in (0, 50, 100):
        assert recorded.nearest(recorded.candidates[row]) == row
        recorded.space.validate(recorded.candidates[row])
    executor = Replay()
    executor.open(context(recorded, tmp_path, workers=2))
    reports = finish(executor, *[job(recorded, row, horizon) for row in range(10)])
    assert all(isinstance(r[-1], Done | Broken) for r in reports)
    assert executor.now() > 0
