"""The global random generators of Python, NumPy and torch, kept apart for each run.

A worker switches between trials; each must find its generators as it left them. A run
therefore owns their states and lends them to the process only while it works.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed that depends on every part, the same in every process."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


class Generators:
    """The states of all global generators as one run sees them.

    Args:
        seed: fixes the initial states.
        device: the run's device; a CUDA device's generator is kept too.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self._seed = seed
        self._device = device
        self._states: dict[str, Any] | None = None

    @contextmanager
    def active(self) -> Iterator[None]:
        """Lends the states to the process; takes them back on leaving, when the process gets
        back those it had before."""
        outside = _capture(self._device)
        if self._states is None:
            seed_all(self._seed, self._device)
        else:
            _apply(self._states, self._device)
        try:
            yield
        finally:
            self._states = _capture(self._device)
            _apply(outside, self._device)

    def state_dict(self) -> dict[str, Any]:
        """The states while not lent: tensors, NumPy arrays and plain values."""
        states = self._begun()
        version, internal, gauss_next = states["python"]
        python = {
            "version": version,
            "internal": torch.tensor(internal, dtype=torch.int64),
            "gauss_next": gauss_next,
        }
        return {**states, "python": python}

    def _begun(self) -> dict[str, Any]:
        """The states, though they were not lent yet."""
        if self._states is None:
            with self.active():
                pass
        assert self._states is not None
        return self._states

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`. A state frozen on the CPU continues on CUDA with the
        seed's own CUDA generator."""
        python = state["python"]
        internal = tuple(python["internal"].tolist())
        states = {**state, "python": (python["version"], internal, python["gauss_next"])}
        if self._device.type == "cuda":
            states.setdefault("cuda", self._begun()["cuda"])
        else:
            states.pop("cuda", None)
        self._states = states


@contextmanager
def isolated(seed: int, device: torch.device) -> Iterator[None]:
    """Freshly seeded global generators; on leaving, the process gets back those it had."""
    outside = _capture(device)
    seed_all(seed, device)
    try:
        yield
    finally:
        _apply(outside, device)


def seed_all(seed: int, device: torch.device) -> None:
    """Seeds the global generators of Python, NumPy and torch on the CPU and on `device`."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  users' code draws from the global generator
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.init()
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


def _capture(device: torch.device) -> dict[str, Any]:
    states = {
        "python": random.getstate(),
        "numpy": np.random.get_state(legacy=False),  # noqa: NPY002
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def _apply(states: Mapping[str, Any], device: torch.device) -> None:
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)
