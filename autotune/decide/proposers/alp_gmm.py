"""Proposals where learning progress is: ALP-GMM."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

import numpy as np

from autotune.decide.configurations import TRIES, identity, unseen
from autotune.plugins.search import (
    Event,
    FloatArray,
    Frozen,
    Key,
    Proposer,
    SearchContext,
)
from autotune.plugins.trials import Trials
from autotune.space import Categorical, Configuration, Float, Integer, Space

REGULARISATION = 1e-6
"""Added to the diagonal of covariances, as scikit-learn does."""

_STREAM = 43


@dataclass(frozen=True)
class _Mixture:
    """Gaussians over the unit cube and one more coordinate, absolute learning progress.

    Args:
        means: (components, dimensions + 1), the last column that of progress.
        factors: of the covariances, (components, dimensions + 1, dimensions + 1), lower.
        shares: with which each is drawn from, (components,), positive and adding up to 1.
    """

    means: FloatArray
    factors: FloatArray
    shares: FloatArray


@dataclass
class _State:
    """Evaluated vectors with the reward of each, (dimensions + 1,); the last of them with their
    progress in place of the reward; and the mixture last fitted."""

    seen: list[FloatArray] = field(default_factory=list)
    window: deque[FloatArray] = field(default_factory=deque)
    evaluated: int = 0
    mixture: _Mixture | None = None


class ALPGMM(Proposer):
    """Proposes what lies where results still change.

    Whenever a segment ends, its configuration, as a vector of the unit cube, is an evaluation with
    the negative oriented value as its reward. Its absolute learning progress is the difference
    from the reward of the nearest earlier evaluation: of the same trial if it was trained before,
    else of the most similar configuration. After every `fit_rate` evaluations Gaussian mixtures of
    2 to `components` parts are fitted to the last `window` rows of [vector, progress], and the one
    with the best criterion is kept. A proposal draws a Gaussian in proportion to the mean of its
    progress, and a vector from it; with probability `random_ratio`, and before the first fit, it is
    uniform.

    It was made for teachers that choose what a learner trains on, where rewards are scarce at
    first; as a sampler of configurations it looks for regions where training still gains, not for
    the best value. Inactive entries of a vector are 0, and count as such. Categories are places on
    the axis. Nearest neighbours are sought among the last 1,000 evaluations.

    Source: Portelas et al. 2019, algorithm 1; the authors' code uses windows and fits of 250
    evaluations, 2 to 10 Gaussians and AIC, for 10^5 episodes; ours are smaller by default.
    """

    name = "alp_gmm"
    summary = "Gaussian mixtures over learning progress: samples where results still change"
    reference = (
        "Portelas et al. 2019, Teacher algorithms for curriculum learning of Deep RL in "
        "continuously parameterized environments, 1910.07224"
    )

    @classmethod
    def space(cls) -> Space:
        """How often and on how much it is fitted, by which criterion, and the uniform share."""
        return Space(
            {
                "fit_rate": Integer(10, 500, log=True, default=25),
                "window": Integer(20, 1000, log=True, default=250),
                "components": Integer(2, 20, default=10),
                "criterion": Categorical(("aic", "bic"), default="aic"),
                "random_ratio": Float(0.05, 0.5, default=0.2),
            }
        )

    def initial(self, context: SearchContext) -> _State:
        """Nothing was evaluated."""
        return _State()

    def observe(self, state: _State, event: Event, trials: Trials) -> _State:
        """Note an evaluation; fit after every so many."""
        if not isinstance(event, Frozen):
            return state
        trial = trials[event.trial]
        known = trials.known(event.trial, event.step)
        reward = -trials.score(known)
        # What breaks a constraint teaches nothing that is asked for.
        if math.isfinite(reward) and len(trial.encoded) and not trials.violation(known):
            self._evaluated(state, trial.encoded, reward)
        return state

    def _evaluated(self, state: _State, vector: FloatArray, reward: float) -> None:
        if state.seen:
            known = np.stack(state.seen)
            distances = ((known[:, :-1] - vector) ** 2).sum(1)
            nearest = len(known) - 1 - int(np.argmin(distances[::-1]))  # the latest of equals
            state.window.append(np.append(vector, abs(reward - known[nearest, -1])))
        state.seen.append(np.append(vector, reward))
        del state.seen[:-1000]
        while len(state.window) > int(self.configuration["window"]):
            state.window.popleft()
        state.evaluated += 1
        if state.evaluated % int(self.configuration["fit_rate"]) == 0:
            most, criterion = self.configuration["components"], self.configuration["criterion"]
            state.mixture = _fitted(np.stack(state.window), int(most), str(criterion))

    def propose(
        self, context: SearchContext, state: _State, trials: Trials, key: Key, count: int
    ) -> list[Configuration]:
        """`count` allowed configurations, all different."""
        generator = key.generator(_STREAM)
        taken: set[str] = set()
        found: list[Configuration] = []
        mixture = state.mixture
        ratio = float(self.configuration["random_ratio"])
        wanted = int((generator.random(count) >= ratio).sum()) if mixture is not None else 0
        for _ in range(wanted * TRIES):
            if len(found) == wanted or mixture is None:
                break
            configuration = context.space.decode(_drawn(mixture, generator))
            text = identity(configuration)
            if text not in taken and context.space.forbids(configuration) is None:
                taken.add(text)
                found.append(configuration)
        return found + unseen(context.space, generator, count - len(found), taken)


def _fitted(rows: FloatArray, most: int, criterion: str) -> _Mixture | None:
    """The mixture with the best criterion; None where there are too few different rows."""
    from sklearn.mixture import GaussianMixture

    # A progress that spans a ten-thousandth of the cube would be no coordinate of the clusters.
    scale = float(rows[:, -1].max())
    scaled = np.column_stack([rows[:, :-1], rows[:, -1] / scale if scale > 0 else rows[:, -1]])
    different = len(np.unique(scaled, axis=0))
    fits = []
    for components in range(2, min(most, different - 1) + 1):
        model = GaussianMixture(
            components, covariance_type="full", random_state=0, reg_covar=REGULARISATION
        )
        model.fit(scaled)
        fits.append((float(getattr(model, criterion)(scaled)), components, model))
    if not fits:
        return None
    model = min(fits, key=lambda fit: fit[:2])[2]
    progress = np.maximum(model.means_[:, -1], 0.0)
    total = progress.sum()
    shares = progress / total if total > 0 else np.full(len(progress), 1.0 / len(progress))
    return _Mixture(model.means_, np.linalg.cholesky(model.covariances_), shares)


def _drawn(mixture: _Mixture, generator: np.random.Generator) -> FloatArray:
    """A vector of the unit cube, shape (dimensions,)."""
    which = int(generator.choice(len(mixture.shares), p=mixture.shares))
    normal = generator.standard_normal(mixture.means.shape[1])
    drawn = mixture.means[which] + mixture.factors[which] @ normal
    return np.asarray(np.clip(drawn[:-1], 0.0, 1.0))
