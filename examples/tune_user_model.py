"""Tune your own model from Python: no YAML, no main guard, no class to inherit from."""

from __future__ import annotations

import torch
from sklearn.datasets import load_breast_cancer
from torch import nn
from torch.nn import functional

import autotune
from autotune.space import Float, Integer, Ordinal, Plugins, Space

features, labels = load_breast_cancer(return_X_y=True)
inputs = torch.tensor((features - features.mean(0)) / features.std(0), dtype=torch.float32)
targets = torch.tensor(labels)
train, validation, test = torch.randperm(
    len(targets), generator=torch.Generator().manual_seed(0)
).split([300, 130, 139])


def build(architecture: dict) -> nn.Module:
    width = architecture["width"]
    return nn.Sequential(
        nn.Linear(30, width), nn.ReLU(), nn.Dropout(architecture["dropout"]), nn.Linear(width, 2)
    )


task = autotune.TorchTask(
    model=build,
    data=autotune.Data(
        train=(inputs[train], targets[train]),
        validation=(inputs[validation], targets[validation]),
        test=(inputs[test], targets[test]),
    ),
    loss=functional.cross_entropy,
)

space = Space(
    {
        "architecture": {
            "width": Integer(4, 64, log=True, default=16),
            "dropout": Float(0.0, 0.5, default=0.1),
        },
        "batch_size": Ordinal((16, 32, 64), default=32),
        "optimizer": Plugins("optimizer"),
        "schedule": Plugins("schedule"),
        "adapter": Plugins("adapter"),
    }
)

result = autotune.tune(
    task,
    space,
    objectives=["validation_loss", "parameters"],
    budget={"epochs": 150},
    horizon=12,
    name="tune_user_model",
)

print("best configuration:", result.best.configuration)
print("validation loss:", result.best.metrics["validation_loss"])
print("test:", result.test)
print("front:", [(point.metrics["parameters"], point.trial) for point in result.pareto])

model = result.best.load_model()
with torch.inference_mode():
    accuracy = (model(inputs[validation]).argmax(1) == targets[validation]).float().mean().item()
print(f"validation accuracy of the loaded model: {accuracy:.4f}")
