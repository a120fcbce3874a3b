"""What the optimizers written here share: one list of tensors a kind of state, so that each
line of the rule is one call over all parameters instead of one call a parameter.

A rule written that way passes over the memory of the whole model once a line. On a CPU, where
memory is slow and a call is cheap, an elementwise rule is therefore applied to pieces that fit
the cache, all its lines to one piece before the next: twice as fast as torch's own list-wise
AdamW. On other devices, where a call is dear, it sees the whole lists.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

Kernel = tuple[torch.device, torch.dtype]
Tensors = list[Tensor] | tuple[Tensor, ...]
"""What the list-wise kernels take and return."""
PIECE = 1 << 18
"""Elements of a piece: with a rule's four or five tensors of float32 about four megabytes."""
LOW_PRECISION = frozenset({torch.float16, torch.bfloat16})


def parameters_with_gradients(group: dict[str, Any], optimizer_name: str) -> Iterator[list[Tensor]]:
    """The group's parameters that have a gradient, in lists of one device and one type, as
    the list-wise kernels want them.

    Raises:
        RuntimeError: for a sparse or complex gradient, which the rules are not defined for.
    """
    lists: dict[Kernel, list[Tensor]] = defaultdict(list)
    for parameter in group["params"]:
        if parameter.grad is None:
            continue
        if parameter.grad.is_sparse or parameter.grad.is_complex():
            kind = "sparse" if parameter.grad.is_sparse else "complex"
            raise RuntimeError(
                f"{optimizer_name} was given a {kind} gradient of shape "
                f"{tuple(parameter.shape)}; expected a dense real one"
            )
        lists[(parameter.device, parameter.dtype)].append(parameter)
    yield from lists.values()


def gradients(parameters: list[Tensor]) -> list[Tensor]:
    """The gradients of parameters that are known to have one."""
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


@dataclass(frozen=True)
class Lists:
    """Parameters of one group, device, type and step count, with what belongs to each.

    Args:
        group: the parameter group, with its hyperparameters.
        weights: the parameters, or pieces of them.
        grads: their gradients.
        state: for each name in `ListOptimizer.buffers` the tensors of that name.
        step: number of the step being taken, from 1.
        scalars: numbers that the rule needs and all share, if `take_step` adds any.
        parameters: the parameters themselves, where they are whole.
        owners: of pieces, the index of the whole tensor that each is of.
    """

    group: dict[str, Any]
    weights: list[Tensor]
    grads: Tensors
    state: dict[str, list[Tensor]]
    step: int
    scalars: Mapping[str, float] = field(default_factory=dict)
    parameters: Sequence[Tensor] = ()
    owners: Sequence[int] = ()


class TypedStateOptimizer(torch.optim.Optimizer):
    """A torch optimizer whose state keeps its types through ``load_state_dict``: torch casts
    it to the parameter's, which destroys integers, and float32 beside half precision."""

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from ``state_dict``, bit for bit."""
        super().load_state_dict(state_dict)
        parameters = [p for group in self.param_groups for p in group["params"]]
        keys = [key for group in state_dict["param_groups"] for key in group["params"]]
        for key, parameter in zip(keys, parameters, strict=True):
            state = self.state[parameter] if key in state_dict["state"] else {}
            for name, saved in state_dict["state"].get(key, {}).items():
                if isinstance(saved, Tensor) and saved.dtype != state[name].dtype:
                    state[name] = saved.to(state[name].device, copy=True)


class ListOptimizer(TypedStateOptimizer):
    """An optimizer whose rule is written over lists of tensors.

    State of a parameter: a count of its steps, and the tensors named in `buffers`, of its shape
    and zero at first. They are float32 for a parameter of half precision, whose rule is then
    computed in float32 too and rounded once, at the end.
    """

    title: ClassVar[str]
    buffers: ClassVar[tuple[str, ...]] = ()
    apart: ClassVar[tuple[str, ...]] = ("step",)
    """Names of state that is not of the parameter's shape and stays out of `Lists.state`."""
    elementwise: ClassVar[bool] = True
    """Whether `update` may be given pieces of tensors: each number depends on those at its own
    place only. Otherwise it is given whole tensors, but not all of them at once."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; returns what `closure`, if there is one, returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.take_step([lists for group in self.param_groups for lists in self._lists(group)])
        return loss

    def take_step(self, everything: list[Lists]) -> None:
        """One step over all parameters that have a gradient."""
        for lists in everything:
            if self.elementwise:
                for part in pieces(lists):
                    self.update(part)
                continue
            for chunk in chunks(lists):
                for part in in_full_precision(chunk):
                    self.update(part)

    def update(self, lists: Lists) -> None:
        """Change ``lists.weights`` and ``lists.state`` in place; leave ``lists.grads``. To be
        overridden, or else `take_step`."""
        raise NotImplementedError

    def new_state(self, parameter: Tensor) -> dict[str, Tensor]:
        """The state of a parameter before its first step, beside the count."""
        return {name: zeros_like(parameter) for name in self.buffers}

    def _lists(self, group: dict[str, Any]) -> Iterator[Lists]:
        for parameters in parameters_with_gradients(group, self.title):
            steps = []
            for parameter in parameters:
                state = self.state[parameter]
                if not state:
                    # On the CPU: read back each step, and that must not wait for the device.
                    state["step"] = torch.zeros((), dtype=torch.float64)
                    state.update(self.new_state(parameter))
                steps.append(state["step"])
            torch._foreach_add_(steps, 1)
            by_count: dict[int, list[Tensor]] = defaultdict(list)
            for parameter, step in zip(parameters, steps, strict=True):
                by_count[int(step.item())].append(parameter)
            for count, members in by_count.items():
                first = self.state[members[0]]
                names = [name for name in first if name not in self.apart]
                state = {name: [self.state[p][name] for p in members] for name in names}
                grads = gradients(members)
                yield Lists(group, members, grads, state, count, parameters=members)


def zeros_like(parameter: Tensor) -> Tensor:
    """A buffer for a parameter: zeros of its shape and layout, in float32 or better."""
    dtype = torch.float32 if parameter.dtype in LOW_PRECISION else parameter.dtype
    return torch.zeros_like(parameter, dtype=dtype, memory_format=torch.preserve_format)


def in_full_precision(lists: Lists) -> Iterator[Lists]:
    """The lists, once; those of half precision as float32 copies that are written back."""
    if lists.weights[0].dtype not in LOW_PRECISION:
        yield lists
        return
    weights = [weight.float() for weight in lists.weights]
    yield replace(lists, weights=weights, grads=[grad.float() for grad in lists.grads])
    torch._foreach_copy_(lists.weights, weights)


def chunks(lists: Lists) -> Iterator[Lists]:
    """On a CPU the lists in parts of whole tensors, one large tensor or several small ones: a
    rule that goes over its tensors more than once finds so few of them still in the cache. On
    other devices the lists as they are."""
    last = len(lists.weights) - 1
    first = size = 0
    whole = lists.weights[0].device.type != "cpu"
    for place, weight in enumerate(lists.weights):
        size += weight.numel()
        if place < last and (whole or size < PIECE):
            continue
        taken = slice(first, place + 1)
        state = {name: tensors[taken] for name, tensors in lists.state.items()}
        yield replace(
            lists,
            weights=lists.weights[taken],
            grads=lists.grads[taken],
            state=state,
            parameters=lists.parameters[taken],
        )
        first, size = place + 1, 0


def pieces(lists: Lists) -> Iterator[Lists]:
    """The lists cut along the first dimension into parts that fit a CPU's cache; on other
    devices as they are. Rules that need whole tensors go over the pieces once to measure, and
    again to step: on a CPU a tensor of the model's size costs more to allocate than to compute
    twice."""
    if lists.weights[0].device.type != "cpu":
        whole = replace(lists, owners=range(len(lists.weights)))
        yield from in_full_precision(whole)
        return
    names = list(lists.state)
    columns: list[Tensors] = [lists.weights, lists.grads, *(lists.state[name] for name in names)]
    for owners, rows in _rows(columns):
        weights, grads, *state = ([row[i] for row in rows] for i in range(len(columns)))
        of_pieces = dict(zip(names, state, strict=True))
        group, step, scalars = lists.group, lists.step, lists.scalars
        part = Lists(group, weights, grads, of_pieces, step, scalars, owners=owners)
        yield from in_full_precision(part)


def _rows(columns: list[Tensors]) -> Iterator[tuple[list[int], list[tuple[Tensor, ...]]]]:
    """Tensors that belong together, side by side, in batches of at most `PIECE` elements, or of
    one larger row, with the index of the whole tensor that each is of."""
    owners: list[int] = []
    batch: list[tuple[Tensor, ...]] = []
    size = 0
    for owner, tensors in enumerate(zip(*columns, strict=True)):
        for row in cut(tensors):
            count = row[0].numel()
            if batch and size + count > PIECE:
                yield owners, batch
                owners, batch, size = [], [], 0
            owners.append(owner)
            batch.append(row)
            size += count
    if batch:
        yield owners, batch


def cut(tensors: tuple[Tensor, ...]) -> Iterable[tuple[Tensor, ...]]:
    """On a CPU slices of at most `PIECE` elements along the first dimension, or single ones; on
    other devices the tensors as they are."""
    first = tensors[0]
    if first.device.type != "cpu" or first.numel() <= PIECE or first.ndim == 0:
        return [tensors]
    length = max(1, PIECE * len(first) // first.numel())
    return zip(*(tensor.split(length) for tensor in tensors), strict=True)


def totals(found: Iterable[tuple[int, Tensor]], count: int) -> Tensor:
    """Sums by owner, a vector of `count`; of an owner without any zero."""
    by_owner: dict[int, list[Tensor]] = defaultdict(list)
    for owner, value in found:
        by_owner[owner].append(value)
    return torch.stack([torch.stack(by_owner[owner]).sum() for owner in range(count)])


def overall(numbers: Tensors) -> float:
    """The sum, in float64, of tensors of one number each; 0 of none. Waits for a device once, not
    once a number."""
    return _vector(numbers).sum().item() if numbers else 0.0


def joint_norm(tensors: Tensors) -> float:
    """The length of all tensors together; 0 of none. Those of half precision are measured in
    float32, or a long one were infinite."""
    if not tensors:
        return 0.0
    wide = [tensor.float() if tensor.dtype in LOW_PRECISION else tensor for tensor in tensors]
    return _vector(torch._foreach_norm(wide)).norm().item()


def _vector(numbers: Tensors) -> Tensor:
    device = numbers[0].device
    return torch.stack([number.to(device, torch.float64) for number in numbers])


def can_fuse(lists: Lists) -> bool:
    """Whether torch's fused kernels serve these lists: they go through the memory in order, so
    the tensors must be laid out in order. On a CPU only; elsewhere the list-wise kernels are
    not slower, and are the tested way."""
    tensors = [*lists.weights, *lists.grads, *(t for state in lists.state.values() for t in state)]
    return all(tensor.device.type == "cpu" and tensor.is_contiguous() for tensor in tensors)


def dots(first: Tensors, second: Tensors) -> list[Tensor]:
    """Inner product of each pair, over all dimensions."""
    return [
        torch.dot(one.reshape(-1), other.reshape(-1))
        for one, other in zip(first, second, strict=True)
    ]


def of_owners(values: Tensor | Sequence[Tensor], lists: Lists) -> list[Tensor]:
    """For each piece the value of the tensor that it is of."""
    return [values[owner] for owner in lists.owners]
