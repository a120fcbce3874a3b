"""What is kept to be folded again is what was appended."""

from __future__ import annotations

import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from autotune.decide.history import History
from autotune.plugins.search import Event, Lost, Observed, Restarted

NUMBERS = st.floats(allow_nan=False)
METRICS = st.dictionaries(st.sampled_from("abc"), NUMBERS)
EVENTS = st.one_of(
    st.builds(Observed, st.integers(0, 9), st.integers(1, 9), METRICS, NUMBERS, NUMBERS, METRICS),
    st.builds(Lost, st.integers(0, 9), st.text()),
    st.builds(Restarted, NUMBERS),
)


@given(st.lists(EVENTS))
def test_events_come_back_in_order(events: list[Event]) -> None:
    history = History()
    for event in events:
        history.append(event)
    assert list(history) == events
    assert list(history) == events


def test_an_observation_takes_tens_of_bytes() -> None:
    history = History()
    tracemalloc.start()
    for step in range(10_000):
        history.append(Observed(3, step, {"a": step / 3, "b": step / 7}, 1.0, float(step)))
    taken = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert taken / 10_000 < 110
