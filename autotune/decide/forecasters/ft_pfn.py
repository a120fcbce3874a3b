"""FT-PFN, the published network of the ifBO paper, for those who have its weights.

The network's code comes from the package ``ifbo``. Its published weights are a pickle behind a web
link, which the package downloads and unpickles when its `FTPFN` is made. Nothing here does
either: the classes of the network alone are used, with weights that the user has converted to
safetensors once, by `CONVERSION`, if they trust the pickle.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from autotune.decide.forecasters.history import (
    DIVERGED,
    History,
    Sample,
    beginning,
    oriented_bounds,
)
from autotune.decide.scale import Scale
from autotune.plugins.base import PluginError
from autotune.plugins.search import (
    Event,
    FloatArray,
    Forecast,
    Forecaster,
    Objective,
    Query,
    SearchContext,
)
from autotune.plugins.trials import Trials

WEIGHTS = "AUTOTUNE_FT_PFN_WEIGHTS"
"""The environment variable that names the file of converted weights."""

CONVERSION = (
    "python -c \"import sys, torch, safetensors.torch as s; m = torch.load(sys.argv[1], 'cpu', "
    "weights_only=False); s.save_file({k: v.contiguous() for k, v in m.state_dict().items()}, "
    "sys.argv[2], {'heads': str(m.transformer_encoder.layers[0].self_attn.num_heads)})\" "
    "bopfn_broken_unisep_1000curves_10params_2M.pt ft_pfn.safetensors"
)
"""Unpickles the published file, which can run code that stands in it, and writes its tensors."""

DIMENSIONS, CURVES, OBSERVATIONS = 10, 1000, 2000
"""What the network was trained for: hyperparameters, curves, and observations with queries."""

_BORDERS = "criterion.borders"


class BarForecast(Forecast):
    """Piecewise uniform distributions on the normalised scale.

    Args:
        borders: of the bars, normalised, ascending, (bars + 1,).
        probability: of every bar, (queries, bars).
        bounds: of the oriented metric, where they are known.
    """

    def __init__(
        self,
        scale: Scale,
        borders: FloatArray,
        probability: FloatArray,
        bounds: tuple[float, float] | None,
    ) -> None:
        self._scale, self._borders, self._probability = scale, borders, probability
        start = np.zeros((len(probability), 1))
        self._below = np.concatenate([start, np.cumsum(probability, axis=1)], axis=1)
        self._below /= self._below[:, -1:]
        self._bounds = bounds or (-np.inf, np.inf)

    def __len__(self) -> int:
        return len(self._below)

    def probability_below(self, threshold: float | FloatArray) -> FloatArray:
        """P(value < threshold), shape (queries,)."""
        z = np.broadcast_to(self._scale.normalise(np.asarray(threshold, float)), (len(self),))
        place, share = self._bar(z)
        row = np.arange(len(self))
        left, right = self._below[row, place], self._below[row, place + 1]
        return np.asarray(left + share * (right - left))

    def quantile(self, probability: float) -> FloatArray:
        """Quantiles, shape (queries,)."""
        place = np.maximum((self._below[:, 1:] < probability).sum(axis=1), 0)
        place = np.minimum(place, len(self._borders) - 2)
        row = np.arange(len(self))
        left, right = self._below[row, place], self._below[row, place + 1]
        share = np.clip((probability - left) / np.maximum(right - left, 1e-300), 0.0, 1.0)
        z = self._borders[place] + share * (self._borders[place + 1] - self._borders[place])
        return np.clip(self._scale.restore(z), *self._bounds)

    def mean(self) -> FloatArray:
        """Means, shape (queries,)."""
        middles = self._scale.restore(0.5 * (self._borders[1:] + self._borders[:-1]))
        return np.asarray(np.diff(self._below, axis=1) @ np.clip(middles, *self._bounds))

    def log_density(self, value: FloatArray) -> FloatArray:
        """Log density at `value` (queries,), shape (queries,); beyond the bars, the last's."""
        value = np.asarray(value, dtype=np.float64)
        place, _ = self._bar(self._scale.normalise(value))
        inside = self._below[np.arange(len(self)), place + 1]
        inside = inside - self._below[np.arange(len(self)), place]
        width = self._borders[place + 1] - self._borders[place]
        return np.asarray(np.log(np.maximum(inside, 1e-16) / width) + self._scale.log_slope(value))

    def _bar(self, z: FloatArray) -> tuple[np.ndarray, FloatArray]:
        """The bar that holds z, and how far in."""
        place = np.searchsorted(self._borders, z, side="right") - 1
        place = np.clip(place, 0, len(self._borders) - 2)
        width = self._borders[place + 1] - self._borders[place]
        return place, np.clip((z - self._borders[place]) / width, 0.0, 1.0)


class FTPFN(Forecaster):
    """The published FT-PFN, if the package ``ifbo`` is installed and `WEIGHTS` names its converted
    weights. It looks at no more than 1,000 curves of 2,000 observations together.

    Example:
        >>> forecaster = FTPFN()                                               # doctest: +SKIP
    """

    name = "ft_pfn"
    summary = "the published FT-PFN, with its package ifbo and converted weights"
    reference = (
        "Rakotoarison et al. 2024, In-Context Freeze-Thaw Bayesian Optimization for "
        "Hyperparameter Optimization, 2404.16795; github.com/automl/ifBO"
    )

    def __init__(self, configuration: Mapping[str, Any] | None = None) -> None:
        super().__init__(configuration)
        path = _weights_path()
        self._network, self._borders = _loaded(path, path.stat().st_mtime_ns)

    def initial(self, context: SearchContext) -> History:
        """Nothing is known. Raises PluginError if the space has too many hyperparameters."""
        count = len(context.space.slots)
        if count > DIMENSIONS:
            raise PluginError(
                f"forecaster {self.name!r} takes at most {DIMENSIONS} hyperparameters; the space "
                f"has {count}. Choose another forecaster"
            )
        return beginning(context.objective)

    def observe(self, state: History, event: Event, trials: Trials) -> History:
        """Remember the curve."""
        state.record(event, trials)
        return state

    def forecast(
        self, context: SearchContext, state: History, trials: Trials, queries: Sequence[Query]
    ) -> Forecast:
        """Predictive distributions for the queries; before any observation, uniform."""
        scale, span = _scaling(context.objective, state)
        bounds = oriented_bounds(context.objective)
        # The network's value is 1 at the best and 0 at the worst.
        borders = span * (1.0 - self._borders[::-1])
        if not state.curves or not queries:
            flat = np.tile(np.diff(borders), (len(queries), 1))
            return BarForecast(scale, borders, flat, bounds)
        sample = _sample(state, trials)
        logits = self._logits(context, sample, trials, queries, scale, state, span)
        probability = torch.softmax(logits.double(), dim=-1).numpy()[:, ::-1]
        return BarForecast(scale, borders, probability, bounds)

    def _logits(
        self,
        context: SearchContext,
        sample: Sample,
        trials: Trials,
        queries: Sequence[Query],
        scale: Scale,
        state: History,
        span: float,
    ) -> torch.Tensor:
        place = {number: row + 1 for row, number in enumerate(sample.numbers)}
        row, column = np.nonzero(sample.known)
        encoded = np.stack([trials[number].encoded for number in sample.numbers])
        time = (sample.steps / sample.horizon[:, None])[row, column]
        values = state.scale.restore(sample.values[row, column])
        normalised = np.where(sample.values[row, column] >= DIVERGED, span, scale.normalise(values))
        y = np.clip(1.0 - normalised / span, 0.0, 1.0)
        seen = np.column_stack([row + 1.0, time, encoded[row]])
        asked = np.array([_token(query, place, context, trials) for query in queries])
        x = torch.from_numpy(np.concatenate([seen, np.clip(asked, 0.0, None)])).float()
        with torch.no_grad():
            out = self._network(
                (x[:, None], torch.from_numpy(y).float()[:, None]), single_eval_pos=len(y)
            )
        logits: torch.Tensor = out[:, 0]
        return logits


def _scaling(objective: Objective, state: History) -> tuple[Scale, float]:
    """A scale and the normalised value that the network's 0 stands for: the bounds where they are
    known, else the study's scale down to what has diverged."""
    ends = oriented_bounds(objective)
    if ends is not None:
        # Steep enough that nothing within the bounds is squeezed.
        return Scale(ends[0], ends[1] - ends[0]), 1.0
    return state.scale, DIVERGED


def _sample(state: History, trials: Trials) -> Sample:
    """As many curves as the network holds, as whole as it holds them."""
    points = max(len(curve.steps) for curve in state.curves.values())
    numbers = state.chosen(CURVES)
    sample = state.sample(numbers, trials, points)
    while sample.known.sum() > OBSERVATIONS:
        if points <= 2:
            numbers = state.chosen(len(numbers) // 2)
        points = max(points // 2, 2)
        sample = state.sample(numbers, trials, points)
    return sample


def _token(
    query: Query, place: Mapping[int, int], context: SearchContext, trials: Trials
) -> list[float]:
    if query.trial is not None:
        trial = trials[query.trial]
        time = query.step / trial.horizon
        return [float(place.get(query.trial, 0)), time, *trial.encoded]
    if query.configuration is None:
        raise ValueError("a query names a trial or a configuration")
    encoded, _ = context.space.encode(query.configuration)
    return [0.0, query.step / context.horizon, *encoded]


# --- the network ----------------------------------------------------------------------------


def _weights_path() -> Path:
    """The converted weights; PluginError that says what to do if something is missing."""
    if importlib.util.find_spec("ifbo") is None:
        raise PluginError("forecaster 'ft_pfn' needs the package ifbo: pip install ifbo")
    given = os.environ.get(WEIGHTS)
    if not given:
        raise PluginError(
            f"forecaster 'ft_pfn' needs the published weights, which are not downloaded: get the "
            f"file named in ifbo.download yourself, convert it once (this runs what the pickle "
            f"holds; trust it first): {CONVERSION} and set {WEIGHTS}=ft_pfn.safetensors"
        )
    path = Path(given)
    if not path.is_file():
        raise PluginError(f"{WEIGHTS}={given}: there is no such file")
    return path


@lru_cache(maxsize=1)
def _loaded(path: Path, _changed: int) -> tuple[torch.nn.Module, FloatArray]:
    """The network and the borders of its bars on [0, 1]."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            heads = int((file.metadata() or {}).get("heads", 0))
    except SafetensorError as error:
        raise PluginError(
            f"{WEIGHTS}={path}: not a safetensors file ({error}); pickles are not loaded here. "
            f"Convert it once, if you trust it: {CONVERSION}"
        ) from error
    if heads < 1 or _BORDERS not in tensors:
        raise PluginError(
            f"{path} lacks {_BORDERS!r} or the metadata 'heads'; convert it by: {CONVERSION}"
        )
    borders = tensors.pop(_BORDERS).double().numpy()
    state = {key: value for key, value in tensors.items() if not key.startswith("criterion.")}
    return _built(state, heads), borders


def _built(state: Mapping[str, torch.Tensor], heads: int) -> torch.nn.Module:
    """The network that `state` fits, of the package's classes."""
    transformer = importlib.import_module("ifbo.transformer")
    prior = importlib.import_module("ifbo.priors.ftpfn_prior")
    layers = {key.split(".")[2] for key in state if key.startswith("transformer_encoder.layers.")}
    width, bars = state["y_encoder.weight"].shape[0], state["decoder_dict.standard.2.bias"].shape[0]
    hidden = state["transformer_encoder.layers.0.linear1.weight"].shape[0]
    # The package announces every decoder on standard output.
    with contextlib.redirect_stdout(io.StringIO()):
        network = transformer.TransformerModel(
            encoder=prior.MultiCurvesEncoder(DIMENSIONS + 2, width),
            ninp=width,
            nhead=heads,
            nhid=hidden,
            nlayers=len(layers),
            y_encoder=torch.nn.Linear(1, width),
            decoder_dict={"standard": (None, bars)},
        )
    missing, unknown = network.load_state_dict(dict(state), strict=False)
    if missing or unknown:
        raise PluginError(
            f"the weights do not fit the installed ifbo: missing {missing or 'nothing'}, unknown "
            f"{unknown or 'nothing'}"
        )
    built: torch.nn.Module = network.eval()
    return built
