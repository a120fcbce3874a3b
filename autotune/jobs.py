"""What a decision is as a job for a worker."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np

from autotune.plugins.execution import EvaluateJob, Job, TrainJob
from autotune.plugins.search import Evaluate, Measure, Start, Thaw
from autotune.plugins.trials import Trial, Trials


def job_of(
    number: int, decision: Start | Thaw | Evaluate | Measure, trials: Trials, seed: int
) -> Job | None:
    """The job of decision `number`, which `trials` has folded; None if the checkpoint that it
    would begin from, another trial's, is gone."""
    trial = trials[decision.trial]
    if isinstance(decision, Evaluate | Measure):
        what: Literal["alone", "stream"] = "alone" if isinstance(decision, Measure) else "stream"
        step, evaluation = decision.step, decision.evaluation
        return evaluation_job(number, trial.number, step, evaluation, what, trials, seed)
    job = TrainJob(
        identifier=number,
        trial=trial.number,
        configuration=trial.configuration,
        seed=_seed(trial, seed),
        horizon=trial.horizon,
        start=trial.frozen,
        to=decision.to,
        checkpoint=trial.checkpoint,
    )
    origin = trial.origin
    if origin is None or trial.checkpoint is not None:
        return job
    checkpoint = trials[origin.trial].checkpoints.get(origin.step)
    if checkpoint is None:
        return None
    begin: Literal["branch", "refine"] = "branch" if origin.how == "cooldown" else "refine"
    return replace(job, checkpoint=checkpoint, begin=begin, source=origin.trial)


def evaluation_job(
    number: int,
    trial: int,
    step: int,
    evaluation: Any,
    what: Literal["stream", "alone", "test"],
    trials: Trials,
    seed: int,
) -> EvaluateJob:
    """An evaluation of a checkpoint; `seed` is the study's."""
    return EvaluateJob(
        identifier=number,
        trial=trial,
        configuration=trials[trial].configuration,
        seed=_seed(trials[trial], seed),
        horizon=trials[trial].horizon,
        step=step,
        checkpoint=trials[trial].checkpoints[step],
        evaluation=evaluation,
        what=what,
    )


def trial_seed(seed: int, trial: int) -> int:
    """The seed of a trial: a function of the study's seed and the trial's number, below 2**31."""
    return int(np.random.SeedSequence([seed, trial]).generate_state(1)[0] >> 1)


def job_step(job: Job) -> int:
    """The unit that a job starts from."""
    return job.start if isinstance(job, TrainJob) else job.step


def _seed(trial: Trial, seed: int) -> int:
    """A cooldown goes on with the seed of the trial that it is branched off."""
    origin = trial.origin
    of = origin.trial if origin is not None and origin.how == "cooldown" else trial.number
    return trial_seed(seed, of)
