"""Tune your own training loop: four methods, and autotune freezes and thaws it for you."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

import autotune
from autotune.space import Float, Space

pixels, labels = load_digits(return_X_y=True)
pixels = pixels / 16


class SoftmaxRegression(autotune.Trainable):
    """Softmax regression in plain NumPy, one epoch of mini-batches a step."""

    def setup(self, configuration: Mapping[str, Any], context: autotune.RunContext) -> None:
        self.configuration = configuration
        self.random = np.random.default_rng(context.seed)
        self.weights = np.zeros((64, 10))

    def step(self) -> Mapping[str, float]:
        for batch in np.array_split(self.random.permutation(1200), 30):
            error = self.probabilities(batch) - np.eye(10)[labels[batch]]
            gradient = pixels[batch].T @ error / len(batch)
            decay = self.configuration["weight_decay"] * self.weights
            self.weights -= self.configuration["learning_rate"] * (gradient + decay)
        held_out = np.arange(1200, len(labels))
        likelihood = self.probabilities(held_out)[np.arange(len(held_out)), labels[held_out]]
        return {"validation_loss": float(-np.log(likelihood + 1e-12).mean())}

    def probabilities(self, index: np.ndarray) -> np.ndarray:
        scores = pixels[index] @ self.weights
        exponential = np.exp(scores - scores.max(axis=1, keepdims=True))
        return exponential / exponential.sum(axis=1, keepdims=True)

    def state(self) -> dict[str, Any]:
        return {"weights": self.weights, "random": self.random.bit_generator.state}

    def load(self, state: Mapping[str, Any]) -> None:
        self.weights = state["weights"]
        self.random.bit_generator.state = state["random"]


if __name__ == "__main__":
    result = autotune.tune(
        SoftmaxRegression,
        Space(
            {
                "learning_rate": Float(1e-3, 10.0, log=True, default=0.1),
                "weight_decay": Float(1e-6, 1e-1, log=True, default=1e-4),
            }
        ),
        objectives=["validation_loss"],
        budget={"epochs": 120},
        horizon=15,
        name="own_loop",
    )
    print("best configuration:", result.best.configuration)
    print("validation loss:", result.best.metrics["validation_loss"])
