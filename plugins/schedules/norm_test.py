"""Batch size that grows where the gradient's noise drowns its signal (AdAdaGrad)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from autotune.plugins import (
    Control,
    ModelInfo,
    Progress,
    Schedule,
    Signals,
    no_per_sample_gradients,
)
from autotune.space import Categorical, Choice, Float, Integer, Ordinal, Prior, Space

from ._shapes import cosine, linear, share_done, warm_up, warm_up_space

MEASURED_SAMPLES = 128
"""Samples whose gradients a test looks at, at most: enough for a variance summed over
coordinates, and a bound on what a test costs however large the batch has grown."""

_DECAYS = {"linear": linear, "cosine": cosine}


class NormTest(Schedule):
    """After every ``interval`` steps the batch size becomes the one with which the last batch
    would just have passed a test of its gradient, if that is larger, and at most
    ``largest_batch_size``.

    With ``g_i`` the gradients of the samples, ``g`` their batch's, ``V`` unbiased variances:

    - ``norm``: ``b = sum_j V(g_ij) / (eta^2 |g|^2)`` (the norm test of AdAdaGrad and
      AdAdaGradNorm);
    - ``coordinate_wise``: ``b = max_j V(g_ij) / (eta^2 g_j^2)`` (AdAdaGrad's coordinate-wise
      test; far stricter, since the noisiest coordinate decides);
    - ``inner_product``: ``b = V(<g_i, g>) / (theta^2 |g|^4)``;
    - ``orthogonality``: ``b = sum_j V((g_i - (<g_i, g> / |g|^2) g)_j) / (nu^2 |g|^2)``;
    - ``augmented``: the larger of these two (Bollapragada et al., whose theta = 0.9 and
      nu = 5.84 are the defaults).

    With the optimizer ``adagrad`` this is AdAdaGrad, with ``adagrad_norm`` AdAdaGradNorm; it
    works with any. Gradient and variance are the batch's, in the place of the expected ones, as
    in papers and code. The authors' code tests the parameters tensor by tensor and adds up inner
    products that belong to different tensors; here ``g`` is the whole gradient, as in the papers.
    Both look at the whole batch at every step, this at no more than 128 samples every
    ``interval`` steps.

    The rate is the base rate after a warm-up, with a decay to the horizon where wanted, all
    counted in samples, so that a growing batch moves nothing. To couple the rate to the batch
    size set ``learning_rate_scaling`` in the configuration.
    """

    name: ClassVar[str] = "norm_test"
    summary: ClassVar[str] = "Batch size grows by the norm test and its kin (AdAdaGrad)."
    reference: ClassVar[str] = (
        "Lau, Liu, Kolar: AdAdaGrad: Adaptive Batch Size Schemes for Adaptive Gradient Methods, "
        "2024, arXiv 2402.11215, code: github.com/timlautk/AdAdaGrad; Bollapragada, Byrd, "
        "Nocedal: Adaptive Sampling Strategies for Stochastic Optimization, SIAM J. Optim. 2018, "
        "arXiv 1710.11258"
    )
    needs: ClassVar[frozenset[str]] = frozenset({"per_sample_gradients"})

    _batch_size: int | None = None

    @classmethod
    def space(cls) -> Space:
        """The test with its tolerance, how often, the cap, warm-up and decay."""
        eta = Float(0.05, 1.0, log=True, default=0.25, prior=Prior(0.25, "medium"))
        theta = Float(0.1, 2.0, log=True, default=0.9, prior=Prior(0.9, "medium"))
        nu = Float(1.0, 12.0, log=True, default=5.84, prior=Prior(5.84, "medium"))
        return Space(
            {
                "test": Choice(
                    {
                        "norm": Space({"eta": eta}),
                        "inner_product": Space({"theta": theta}),
                        "orthogonality": Space({"nu": nu}),
                        "augmented": Space({"theta": theta, "nu": nu}),
                        "coordinate_wise": Space({"eta": eta}),
                    },
                    default="norm",
                    prior=Prior("norm", "low"),
                ),
                "interval": Ordinal((1, 5, 10, 20, 50), default=10),
                "largest_batch_size": Integer(64, 8192, log=True, default=512),
                "warmup_samples": warm_up_space(),
                "decay": Categorical(("none", *_DECAYS), default="none"),
            }
        )

    @classmethod
    def supports(cls, model_info: ModelInfo) -> str | None:
        """Where each sample has a gradient of its own."""
        return no_per_sample_gradients(model_info)

    def bound_from(self) -> float | None:
        """From the first step if the rate decays, otherwise never."""
        return None if self.configuration["decay"] == "none" else 0.0

    def control(self, progress: Progress, signals: Signals) -> Control:
        """Factor of the coming step, and the batch size after it."""
        if self._batch_size is None:
            self._batch_size = progress.batch_size
        wanted = self.wanted_batch_size(signals)
        largest = max(self._batch_size, self.configuration["largest_batch_size"])
        self._batch_size = max(self._batch_size, math.ceil(min(wanted, largest)))
        tested = progress.steps % self.configuration["interval"] == 0
        return Control(
            factor=self._factor(progress),
            batch_size=self._batch_size,
            measured_samples=MEASURED_SAMPLES if tested else 0,
        )

    def wanted_batch_size(self, signals: Signals) -> float:
        """The batch size with which the test would just be passed; 0 where nothing was
        measured, or what was is no number."""
        test, squared = self.configuration["test"], (signals.gradient_norm or 0.0) ** 2
        across = signals.per_sample_gradient_variance
        if across is None or not math.isfinite(across) or not math.isfinite(squared):
            return 0.0
        if test["name"] == "norm":
            return _ratio(across, test["eta"] ** 2 * squared)
        if test["name"] == "coordinate_wise":
            return _ratio(signals.coordinate_variance_ratio, test["eta"] ** 2)
        wanted = 0.0
        if "theta" in test:
            wanted = _ratio(signals.inner_product_variance, test["theta"] ** 2 * squared**2)
        if "nu" in test:
            orthogonal = _ratio(signals.orthogonal_variance, test["nu"] ** 2 * squared)
            wanted = max(wanted, orthogonal)
        return wanted

    def state_dict(self) -> dict[str, Any]:
        """The batch size."""
        return {"batch_size": self._batch_size}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self._batch_size = state["batch_size"]

    def _factor(self, progress: Progress) -> float:
        length = self.configuration["warmup_samples"]
        factor = warm_up(progress.samples, progress.batch_size, length)
        if self.configuration["decay"] != "none":
            share = share_done(progress.samples, 0, progress.horizon_samples)
            factor *= _DECAYS[self.configuration["decay"]](share, 0.0)
        return factor


def _ratio(variance: float | None, tolerated: float) -> float:
    """How many samples bring a variance down to what is tolerated: any number where a gradient
    of zero tolerates none, but the samples do differ."""
    if not variance:
        return 0.0
    return variance / tolerated if tolerated > 0 else math.inf
