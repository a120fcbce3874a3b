"""scikit-learn's handwritten digits as tuning tasks: a real model on real data, no download.

`adapt` adapts a convolutional network, pretrained on the digits 0 to 4, to the digits 5 to 9,
of which it sees a hundred examples in all. `from_scratch` trains on all ten digits from nothing.
Both come with a shifted stream: held-out digits as a bad scanner would deliver them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

import autotune

Split = tuple[Tensor, Tensor]


class ConvNet(nn.Module):
    """Convolutions with batch norm, then one linear classifier.

    Args:
        width: channels of the first convolution; every further one doubles them.
        depth: number of convolutions.
        dropout: before the classifier.
        classes: number of outputs.
    """

    def __init__(self, width: int, depth: int, dropout: float, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 1
        for index in range(depth):
            out = width * 2**index
            layers += [nn.Conv2d(channels, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU()]
            if index == 0:
                layers.append(nn.MaxPool2d(2))
            channels = out
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(4 * channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.dropout(self.features(images)))


def digits(classes: range) -> Split:
    """Images (n, 1, 8, 8) in [0, 1] and labels counted from 0, in the data set's order."""
    pixels, labels = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    targets = torch.tensor(labels)
    wanted = (targets >= classes.start) & (targets < classes.stop)
    return images[wanted], targets[wanted] - classes.start


def split(data: Split, train: int, validation: int) -> tuple[Split, Split, Split]:
    """Shuffle once, the same way always, and cut into train, validation and test."""
    images, targets = data
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(0))
    parts = order.split([train, validation, len(order) - train - validation])
    first, second, third = ((images[part], targets[part]) for part in parts)
    return first, second, third


def bad_scanner(data: Split) -> Split:
    """The same digits four times over: faint, noisy, blurred, and badly placed."""
    images, targets = data
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    faint = 0.5 * images + 0.25
    noisy = (images + 0.25 * noise).clamp(0, 1)
    blurred = functional.avg_pool2d(functional.pad(images, (1, 1, 1, 1)), 3, stride=1)
    misplaced = torch.roll(images, shifts=(1, -1), dims=(2, 3))
    stream = torch.cat([faint, noisy, blurred, misplaced])
    order = torch.randperm(len(stream), generator=torch.Generator().manual_seed(2))
    return stream[order], targets.repeat(4)[order]


def jitter(images: Tensor, uniforms: Tensor, configuration: Mapping[str, Any]) -> Tensor:
    """Augmentation: shift each image by up to one pixel and change its brightness, as much as
    the configuration says. `uniforms` holds three numbers in [0, 1) for each image."""
    strength = configuration.get("augmentation", 0.0)
    shifts = ((uniforms[:, :2] * 2 - 1) * strength).round() / 4
    identity = torch.eye(2).expand(len(images), 2, 2)
    grid = functional.affine_grid(
        torch.cat([identity, shifts[:, :, None]], dim=2), list(images.shape), align_corners=False
    )
    moved = functional.grid_sample(images, grid, mode="nearest", align_corners=False)
    brightness = 1 + 0.5 * strength * (uniforms[:, 2] - 0.5)
    return moved * brightness[:, None, None, None]


def prepare(classes: range, train: int, validation: int) -> autotune.Data:
    """Splits, shifted streams and augmentation for the digits in `classes`."""
    training, held_out, test = split(digits(classes), train, validation)
    return autotune.Data(
        train=training,
        validation=held_out,
        test=test,
        shifted={"bad_scanner": bad_scanner(held_out)},
        shifted_test={"bad_scanner": bad_scanner(test)},
        augment=jitter,
        augment_draws=3,
    )


def pretrain(architecture: Mapping[str, Any]) -> dict[str, Tensor]:
    """Weights of a network trained on the digits 0 to 4; its classifier is left out, since the
    new digits need one of their own."""
    torch.manual_seed(0)
    model = ConvNet(**architecture, classes=5)
    images, targets = digits(range(5))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(12):
        for batch in torch.randperm(len(targets)).split(64):
            optimizer.zero_grad()
            functional.cross_entropy(model(images[batch]), targets[batch]).backward()
            optimizer.step()
    weights = model.state_dict()
    return {name: value for name, value in weights.items() if not name.startswith("classifier")}


@autotune.task
def adapt() -> autotune.TorchTask:
    """Adapt the pretrained network to the digits 5 to 9 from 100 examples."""
    return autotune.TorchTask(
        model=lambda architecture: ConvNet(**architecture, classes=5),
        data=prepare(range(5, 10), train=100, validation=348),
        loss=functional.cross_entropy,
        pretrained=pretrain,
        head=("classifier",),
    )


@autotune.task
def from_scratch() -> autotune.TorchTask:
    """Train on all ten digits from nothing."""
    return autotune.TorchTask(
        model=lambda architecture: ConvNet(**architecture, classes=10),
        data=prepare(range(10), train=900, validation=449),
        loss=functional.cross_entropy,
    )
