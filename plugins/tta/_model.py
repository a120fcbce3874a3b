"""What the bundled methods of test-time adaptation share."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from autotune.plugins import ModelInfo

BATCH_NORMS = ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm")


def why_not(model_info: ModelInfo) -> str | None:
    """The reason why no adaptation of class predictions is possible, or None."""
    if not model_info.shifted:
        return "the task has no shifted stream to adapt to"
    if not model_info.classification:
        return "it adapts class predictions, and the model returns no class logits"
    return None


def frozen(model: nn.Module) -> nn.Module:
    """The model in eval mode (dropout off), without gradients."""
    return model.eval().requires_grad_(False)


class TargetBatchNorm(_BatchNorm):
    """Batch normalisation by the statistics of the batch at hand, mixed with the source's.

    Layers become one by a change of their class, which keeps their names and statistics. The
    running statistics are read, never changed. With ``N = prior_samples`` and a batch of ``n``
    samples the mean is ``N/(N+n)`` of the source's plus ``n/(N+n)`` of the batch's, the
    variance likewise, the batch's being the biased one, so that ``N = 0`` is exactly
    normalisation by the batch. A batch with a single value per channel has no variance; it is
    normalised by the source statistics. A layer that keeps no running statistics has none to
    mix.
    """

    prior_samples: float

    def forward(self, input: Tensor) -> Tensor:
        """A tensor of `input`'s shape (batch, channels, ...)."""
        source_mean, source_var = self.running_mean, self.running_var
        alone = input.numel() == input.shape[1]
        if source_mean is None or source_var is None:
            return F.batch_norm(input, None, None, self.weight, self.bias, True, 0.0, self.eps)
        if self.prior_samples == 0 and not alone:
            # Through this form gradients reach the statistics too.
            return F.batch_norm(input, None, None, self.weight, self.bias, True, 0.0, self.eps)
        mean, var = source_mean, source_var
        if not alone:
            axes = [axis for axis in range(input.ndim) if axis != 1]
            share = self.prior_samples / (self.prior_samples + input.shape[0])
            values = input.to(source_mean.dtype)
            mean = share * source_mean + (1 - share) * values.mean(axes)
            var = share * source_var + (1 - share) * values.var(axes, correction=0)
        return F.batch_norm(input, mean, var, self.weight, self.bias, False, 0.0, self.eps)


def normalise_by_target(model: nn.Module, prior_samples: float) -> int:
    """Turn every batch normalisation into a `TargetBatchNorm`; returns how many there are."""
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    for layer in layers:
        layer.__class__ = TargetBatchNorm
        assert isinstance(layer, TargetBatchNorm)
        layer.prior_samples = prior_samples
    return len(layers)
