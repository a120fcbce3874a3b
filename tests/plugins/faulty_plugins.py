"""Plugins that each break their contract in one way, and what the check must say of them."""

from __future__ import annotations

import random
import time

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from autotune.plugins import TTA, Adapter, Control, Optimizer, Schedule
from autotune.plugins.conformance.simulation import PlainForecast
from autotune.plugins.search import Forecaster, Policy, Proposer, Start, Stop, Thaw, Wait
from autotune.space import Float, Space

FAULTY: list[tuple[type, str, str]] = []
"""(plugin, title of the check that must fail, part of its message)."""


def faulty(title: str, message: str):
    def note(plugin):
        plugin.name = plugin.__name__.lower()
        plugin.summary = plugin.reference = "faulty on purpose"
        FAULTY.append((plugin, title, message))
        return plugin

    return note


FREEZE = "frozen and thawed at every batch it equals an uninterrupted run"
ELSEWHERE = "thawed in another process it goes on alike"


# --- optimizers -----------------------------------------------------------------------------


class Descent(torch.optim.Optimizer):
    """What the faulty ones are made of: sound by itself."""

    def __init__(self, parameters, rate=0.05):
        super().__init__(parameters, {"lr": rate})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.move(parameter, group)

    def move(self, parameter, group):
        parameter -= group["lr"] * parameter.grad


class DescentPlugin(Optimizer):
    made = Descent

    def build(self, named_parameters):
        return self.made([parameter for _, parameter in named_parameters])


@faulty(FREEZE, "something it remembers is not in its state_dict")
class CountsInAnAttribute(DescentPlugin):
    class made(Descent):
        def __init__(self, parameters):
            super().__init__(parameters)
            self.steps = 0

        def step(self, closure=None):
            self.steps += 1
            super().step()

        def move(self, parameter, group):
            parameter -= group["lr"] / self.steps * parameter.grad


@faulty(FREEZE, "the same seed gives another result at batch 2")
class RemembersInTheClass(DescentPlugin):
    class made(Descent):
        steps = 0

        def move(self, parameter, group):
            type(self).steps += 1
            parameter -= group["lr"] / self.steps**0.1 * parameter.grad


@faulty(ELSEWHERE, "ends differently from the uninterrupted run")
class DependsOnTheProcess(DescentPlugin):
    token = object()

    class made(Descent):
        def move(self, parameter, group):
            # Addresses differ from process to process, and not within one.
            factor = 1 + (id(DependsOnTheProcess.token) // 16 % 1009) / 1009
            parameter -= factor * group["lr"] * parameter.grad


@faulty(FREEZE, "optimizer")
class KeepsAnObject(DescentPlugin):
    class made(Descent):
        def move(self, parameter, group):
            self.state[parameter]["history"] = {1, 2, 3}
            super().move(parameter, group)


@faulty("rate", "with lr set to 0 in every group a step still moves")
class IgnoresTheRate(DescentPlugin):
    class made(Descent):
        def move(self, parameter, group):
            parameter -= 0.05 * parameter.grad


@faulty("descent", "it must fall")
class Climbs(DescentPlugin):
    class made(Descent):
        def move(self, parameter, group):
            parameter += group["lr"] * parameter.grad


@faulty("remit", "a step changes a parameter that has no gradient")
class DecaysTheIdle(DescentPlugin):
    class made(Descent):
        @torch.no_grad()
        def step(self, closure=None):
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter *= 1 - 0.1 * group["lr"]
            super().step()


@faulty("build", "is in 0 groups, not one")
class LeavesSomeOut(Optimizer):
    def build(self, named_parameters):
        return Descent([parameter for _, parameter in named_parameters[::2]])


@faulty("build", "changes torch's default type")
class ChangesTheDefaultType(DescentPlugin):
    def build(self, named_parameters):
        torch.set_default_dtype(torch.float64)
        return super().build(named_parameters)


@faulty("build", "changes the model's weights")
class StartsFromZero(DescentPlugin):
    def build(self, named_parameters):
        with torch.no_grad():
            named_parameters[0][1].zero_()
        return super().build(named_parameters)


@faulty("build", "has lr=0")
class HasNoRate(Optimizer):
    def build(self, named_parameters):
        return Descent([parameter for _, parameter in named_parameters], rate=0.0)


# --- spaces ---------------------------------------------------------------------------------


@faulty("space", "default")
class DefaultOutside(DescentPlugin):
    @classmethod
    def space(cls):
        return Space({"momentum": Float(0.0, 0.9, default=1.5)})


@faulty("space", "another space at the second call")
class RestlessSpace(DescentPlugin):
    @classmethod
    def space(cls):
        return Space({"momentum": Float(0.0, 0.5 + time.perf_counter() % 0.5, default=0.1)})


@faulty("construction", "it raised ZeroDivisionError")
class CannotBeMade(DescentPlugin):
    @classmethod
    def space(cls):
        return Space({"momentum": Float(0.0, 1.0, default=0.0)})

    def __init__(self, configuration=None):
        super().__init__(configuration)
        self.inverse = 1 / self.configuration["momentum"]


@faulty("supports", "expected None or a reason in words")
class AnswersYes(DescentPlugin):
    @classmethod
    def supports(cls, model_info):
        return True


@faulty("words", "speaks plugin api_version 2")
class SpeaksAnotherVersion(DescentPlugin):
    api_version = 2


# --- schedules ------------------------------------------------------------------------------


@faulty("reproducible", "it looks at the clock")
class LooksAtTheClock(Schedule):
    def control(self, progress, signals):
        return Control(factor=0.5 + 0.4 * np.sin(time.time()).item())


@faulty("controls", "changes Python's global random generator")
class Jitters(Schedule):
    def control(self, progress, signals):
        return Control(factor=random.uniform(0.5, 1.0))


@faulty("controls", "changes NumPy's global random generator")
class JittersWithNumPy(Schedule):
    def control(self, progress, signals):
        return Control(factor=float(np.random.rand()))  # noqa: NPY002


@faulty("state", "something it remembers is not in its state_dict")
class ForgetsItsPlateau(Schedule):
    def __init__(self, configuration=None):
        super().__init__(configuration)
        self.factor = 1.0

    def control(self, progress, signals):
        self.factor *= 0.9
        return Control(factor=self.factor)


@faulty("horizon", "another horizon gives another command")
class HidesItsHorizon(Schedule):
    def control(self, progress, signals):
        return Control(factor=1 - 0.5 * progress.fraction)


@faulty("controls", "expected a finite number")
class GoesBelowZero(Schedule):
    def bound_from(self):
        return 0.0

    def control(self, progress, signals):
        return Control(factor=0.9 - progress.fraction)


# --- adapters -------------------------------------------------------------------------------


class Shifted(nn.Module):
    """A linear layer with a trained shift of its outputs."""

    def __init__(self, base):
        super().__init__()
        self.base = base
        self.shift = nn.Parameter(torch.zeros(base.out_features))

    def forward(self, inputs):
        return self.base(inputs) + self.shift


class ShiftPlugin(Adapter):
    """Sound by itself, but for `merge`, which returns the model as it is."""

    shift = Shifted

    def apply(self, model, context):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(context.in_head(name))
        model.hidden = self.shift(model.hidden)
        return model


@faulty("trainable", "weights of the model itself still train: scale, convolution.weight")
class LeavesTheBaseTrainable(ShiftPlugin):
    def apply(self, model, context):
        model.hidden = Shifted(model.hidden)
        return model


@faulty("trainable", "the head's classifier.weight does not require a gradient")
class FreezesTheHead(ShiftPlugin):
    def apply(self, model, context):
        model.requires_grad_(False)
        model.hidden = Shifted(model.hidden)
        return model


@faulty("trainable", "the head 'classifier' was wrapped")
class WrapsTheHead(ShiftPlugin):
    def apply(self, model, context):
        super().apply(model, context)
        model.classifier = Shifted(model.classifier)
        return model


@faulty("trainable", "nothing outside the head trains")
class TrainsNothing(ShiftPlugin):
    def apply(self, model, context):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(context.in_head(name))
        return model


@faulty("apply", "gets no gradient")
class HasADeadParameter(ShiftPlugin):
    def apply(self, model, context):
        model = super().apply(model, context)
        model.hidden.unused = nn.Parameter(torch.zeros(3))
        return model


@faulty("trainable", "changes Python's global random generator")
class DrawsElsewhere(ShiftPlugin):
    def apply(self, model, context):
        model = super().apply(model, context)
        nn.init.constant_(model.hidden.shift, random.random())
        return model


@faulty("merge", "merging must keep the function")
class ForgetsToFold(ShiftPlugin):
    def merge(self, model):
        model.hidden = model.hidden.base
        return model


@faulty("merge", "merging a copy of the model changes the model itself")
class MergesTheWrongModel(ShiftPlugin):
    def apply(self, model, context):
        self.model = super().apply(model, context)
        return model

    def merge(self, model):
        with torch.no_grad():
            self.model.hidden.base.bias += self.model.hidden.shift
            self.model.hidden.shift.zero_()
        return model


@faulty(FREEZE, "differs from the uninterrupted run")
class RemembersBesideItsState(ShiftPlugin):
    """Its hook pulls the shift towards a running mean that it does not put into its state."""

    def apply(self, model, context):
        self.model = super().apply(model, context)
        self.mean = torch.zeros_like(model.hidden.shift)
        return model

    def after_step(self, progress):
        with torch.no_grad():
            self.mean = 0.5 * self.mean + self.model.hidden.shift
            self.model.hidden.shift.sub_(0.1 * self.mean)


# --- test-time adaptation -------------------------------------------------------------------


class CentrePlugin(TTA):
    """Subtracts a running mean of its logits. Sound by itself."""

    def prepare(self, model, source):
        self.model = model.eval()
        self.reset()

    @torch.no_grad()
    def predict(self, inputs):
        logits = self.model(inputs)
        self.mean = 0.9 * self.mean + 0.1 * logits.mean(0)
        return logits - self.mean

    def reset(self):
        self.mean = torch.zeros(3)

    def state_dict(self):
        return {"mean": self.mean}

    def load_state_dict(self, state):
        self.mean = state["mean"]


@faulty("reset", "reset must restore the state after prepare")
class DoesNotReset(CentrePlugin):
    def prepare(self, model, source):
        super().prepare(model, source)
        self.mean = torch.zeros(3)

    def reset(self):
        self.mean = getattr(self, "mean", torch.zeros(3))


@faulty(FREEZE, "something it remembers is not in its state_dict")
class SavesHalf(CentrePlugin):
    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


@faulty(ELSEWHERE, "ends differently from the uninterrupted run")
class AdaptsByAddress(CentrePlugin):
    token = object()

    def predict(self, inputs):
        return super().predict(inputs) * (1 + (id(AdaptsByAddress.token) // 16 % 1009) / 1009)


@faulty("logits", "changes the batch that it is given")
class ScribblesOnInputs(CentrePlugin):
    def predict(self, inputs):
        logits = super().predict(inputs)
        inputs[0] = 0
        return logits


@faulty("logits", "carry gradients")
class ForgetsNoGrad(CentrePlugin):
    def predict(self, inputs):
        return super().predict(inputs) + 0 * self.model(inputs)


@faulty("logits", "it raised ValueError: one sample is not enough")
class NeedsManySamples(CentrePlugin):
    def predict(self, inputs):
        if len(inputs) == 1:
            raise ValueError("one sample is not enough")
        return super().predict(inputs)


def in_train_mode(self, inputs):
    return functional.batch_norm(
        inputs, self.running_mean, self.running_var, self.weight, self.bias, training=True
    )


HONEST_FORWARD = nn.BatchNorm2d.forward


@faulty("remit", "changes torch's own classes and functions")
class PatchesTheLibrary(CentrePlugin):
    def prepare(self, model, source):
        super().prepare(model, source)
        nn.BatchNorm2d.forward = in_train_mode


# --- the deciding parts ---------------------------------------------------------------------


@faulty("proposals", "which the space does not allow")
class ProposesTheForbidden(Proposer):
    def propose(self, context, state, trials, key, count):
        allowed = context.space.default()
        return [{**allowed, "method": {"name": "plain"}, "shape": "square"}] * count


@faulty("proposals", "gives 1")
class ProposesTooFew(Proposer):
    def propose(self, context, state, trials, key, count):
        return [context.space.sample(key.generator())]


@faulty("proposals", "another answer at the second time of asking")
class HoldsAGenerator(Proposer):
    def __init__(self, configuration=None):
        super().__init__(configuration)
        self.generator = np.random.default_rng(0)

    def propose(self, context, state, trials, key, count):
        return [context.space.sample(self.generator) for _ in range(count)]


@faulty("proposer is a fold", "than folded from scratch")
class RemembersBeingAsked(Proposer):
    def initial(self, context):
        return {"asked at": set()}

    def propose(self, context, state, trials, key, count):
        state["asked at"].add(key.number)
        rng = np.random.default_rng(len(state["asked at"]))
        return [context.space.sample(rng) for _ in range(count)]


@faulty("orientation", "(less is better), the next value is forecast at")
class ForgetsTheSign(Forecaster):
    def forecast(self, context, state, trials, queries):
        forecast = PlainForecast(trials, queries)
        forecast._normals = [normal * context.objective.sign for normal in forecast._normals]
        return forecast


@faulty("forecasts", "must describe one distribution")
class ContradictsItself(Forecaster):
    def forecast(self, context, state, trials, queries):
        forecast = PlainForecast(trials, queries)
        forecast.probability_below = lambda threshold: np.where(
            PlainForecast.probability_below(forecast, threshold) < 0.5, 0.3, 0.8
        )
        return forecast


class OneByOne(Policy):
    """Every proposal to its horizon, one after the other. Sound by itself."""

    def decide(self, context, state, propose, forecast, trials, key):
        for trial in trials.all.values():
            if trial.status in ("frozen", "new"):
                return Thaw(trial.number, trial.horizon)
        if len(trials) >= context.budget.trials:
            return Wait() if trials.in_flight else Stop("all are trained")
        return Start(len(trials), propose(1)[0], context.horizon, 2)


@faulty("decisions", "expected a whole number of units")
class TrainsHalfUnits(OneByOne):
    def decide(self, context, state, propose, forecast, trials, key):
        decision = super().decide(context, state, propose, forecast, trials, key)
        if isinstance(decision, Thaw):
            return Thaw(decision.trial, trials[decision.trial].frozen + 0.5)
        return decision


@faulty("decisions", "it waits although nothing is in flight")
class WaitsForEver(OneByOne):
    def decide(self, context, state, propose, forecast, trials, key):
        decision = super().decide(context, state, propose, forecast, trials, key)
        return Wait() if isinstance(decision, Stop) else decision


@faulty("decisions", "it starts another trial after all 8")
class ForgetsTheBudget(OneByOne):
    def decide(self, context, state, propose, forecast, trials, key):
        decision = super().decide(context, state, propose, forecast, trials, key)
        if isinstance(decision, Stop):
            return Start(len(trials), propose(1)[0], context.horizon, 2)
        return decision


@faulty("decisions", "it thaws trial 0, which is running")
class ThawsTheRunning(OneByOne):
    def decide(self, context, state, propose, forecast, trials, key):
        if trials.in_flight:
            return Thaw(0, 9)
        return super().decide(context, state, propose, forecast, trials, key)


@faulty("decisions", "it must follow from the events alone")
class DecidesByHeart(OneByOne):
    """Counts its decisions in itself, in `observe` of an event that it alone keeps."""

    asked = 0

    def observe(self, context, state, event, trials):
        type(self).asked += 1
        return state

    def decide(self, context, state, propose, forecast, trials, key):
        decision = super().decide(context, state, propose, forecast, trials, key)
        if isinstance(decision, Start):
            return Start(decision.trial, decision.configuration, 9, 1 + self.asked % 7)
        return decision
