"""The options of one choice as families of configurations, and new members for each of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from autotune.decide.configurations import TRIES, first_configurations, identity
from autotune.plugins.search import FloatArray, ProposeFunction, SearchContext
from autotune.plugins.trials import Trial
from autotune.space import Choice, Configuration, Space

KINDS = ("optimizer", "adapter", "schedule")
"""What may be shared out among plugins, in the order of preference unless one is preferred."""

PARENTS = 3
"""Half of a family's new members take its own parameters from one of its so many best trials."""

STEP = 0.2
"""Standard deviation of the step away from a parent, on the unit axis, as in SMAC."""


@dataclass(frozen=True)
class Families:
    """One choice's options.

    Args:
        slot: its place in the encoding.
        options: their names.
        own: which slots are each option's own, (options, slots): parameters that no other has.
    """

    slot: int
    options: tuple[str, ...]
    own: np.ndarray

    @classmethod
    def found(cls, space: Space, preferred: str) -> Families | None:
        """The choice among plugins of the preferred kind; where the space has none, of the first
        by `KINDS` that it has; else its first choice. None if it has no choice."""
        found = {
            index: slot.parameter
            for index, slot in enumerate(space.slots)
            if isinstance(slot.parameter, Choice) and not slot.conditions
        }
        for kind in (preferred, *KINDS):
            for index, choice in found.items():
                if choice.kind == kind:
                    return cls._of(space, index, choice)
        return cls._of(space, *next(iter(found.items()))) if found else None

    @classmethod
    def _of(cls, space: Space, index: int, choice: Choice) -> Families:
        path = space.slots[index].path
        own = [[(path, name) in slot.conditions for slot in space.slots] for name in choice.options]
        return cls(index, tuple(choice.options), np.array(own))

    def of(self, trial: Trial) -> int:
        """The family of a trial."""
        return self._at(float(trial.encoded[self.slot]))

    def _at(self, place: float) -> int:
        return min(int(place * len(self.options)), len(self.options) - 1)

    def proposed(
        self,
        arm: int,
        count: int,
        propose: ProposeFunction,
        context: SearchContext,
        parents: list[FloatArray],
        started: set[str],
        promising: Callable[[Configuration], bool],
        generator: np.random.Generator,
    ) -> list[Configuration]:
        """Up to `count` configurations of a family that are not among those `started`: what the
        study's proposers suggest if it is of the family, else the same with its choice exchanged
        and the family's own parameters drawn, half of the time near one of `parents`, the encoded
        best of the family, where that is `promising`. What is to be tried first comes first,
        whatever its family."""
        space = context.space
        first = first_configurations(context)
        taken = set[str]()
        found: list[Configuration] = []
        for suggestion in propose(count):
            encoded, _ = space.encode(suggestion)
            configuration: Configuration | None = suggestion
            if self._at(float(encoded[self.slot])) != arm and suggestion not in first:
                configuration = self._exchanged(
                    arm, encoded, space, parents, started, promising, generator
                )
            if configuration is not None and identity(configuration) not in taken:
                taken.add(identity(configuration))
                found.append(configuration)
        return found

    def _exchanged(
        self,
        arm: int,
        encoded: FloatArray,
        space: Space,
        parents: list[FloatArray],
        started: set[str],
        promising: Callable[[Configuration], bool],
        generator: np.random.Generator,
    ) -> Configuration | None:
        own = self.own[arm]
        for attempt in range(TRIES):
            places = encoded.copy()
            if attempt >= TRIES // 2:  # what is shared may be what is forbidden here
                places = generator.random(len(places))
            places[self.slot] = (arm + 0.5) / len(self.options)
            drawn = generator.random(len(places))
            if parents and generator.random() < 0.5:
                parent = parents[int(generator.integers(len(parents)))]
                drawn = np.clip(parent + STEP * generator.standard_normal(len(places)), 0.0, 1.0)
            places[own] = drawn[own]
            configuration = space.decode(places)
            new = space.forbids(configuration) is None and identity(configuration) not in started
            if new and promising(configuration):
                return configuration
        return None
