"""YAML in and out: what is a number, what is refused, and where everything stands."""

from __future__ import annotations

import math
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autotune.space.yaml_text import YamlError, dump, parse

values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(allow_nan=False),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=10),
        st.sampled_from(
            ["1e-3", "1_0", "0o7", "0x1F", "1:30", "on", "No", "~", "<<", "2024-01-01"]
        ),
    ),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=15,
)


@settings(
    deadline=None, suppress_health_check=list(HealthCheck), max_examples=150, derandomize=True
)
@given(values)
def test_dump_and_parse_lose_nothing(value: Any) -> None:
    again = parse(dump(value)).value
    assert repr(again) == repr(value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1E5", 1e5),
        ("-2.5e+3", -2500.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("0o17", 15),
        ("0x1f", 31),
        ("007", 7),
        ("-.inf", -math.inf),
        ("off", "off"),
        ("yes", "yes"),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("2024-01-01", "2024-01-01"),
        ("'1e-3'", "1e-3"),
        ("'null'", "null"),
        ("null", None),
        ("~", None),
        ("", None),
        ("TRUE", True),
        ("{1: a, null: b}", {"1": "a", "null": "b"}),
        ("a: &x {b: 1}\nc: *x", {"a": {"b": 1}, "c": {"b": 1}}),
        ("a: &x {b: 1, c: 2}\nd: {<<: *x, c: 3}", {"a": {"b": 1, "c": 2}, "d": {"b": 1, "c": 3}}),
        ("a: &x {b: 1}\ne: &y {b: 2, f: 3}\nd: {<<: [*x, *y]}", None),
    ],
)
def test_what_is_read(text: str, value: Any) -> None:
    if "[*x, *y]" in text:
        assert parse(text).value["d"] == {"b": 1, "f": 3}
    else:
        assert parse(text).value == value
        assert type(parse(text).value) is type(value)


def test_lines_of_keys_and_items() -> None:
    document = parse("# comment\na:\n  b: 1\n  c:\n    - x\n    - {d: 2}\nz: &q {k: 1}\ny: *q\n")
    assert document.line(("a",)) == 2
    assert document.line(("a", "b")) == 3
    assert document.line(("a", "c", 0)) == 5
    assert document.line(("a", "c", 1, "d")) == 6
    assert document.line(("a", "b", "missing", "deeper")) == 3
    assert document.line(("y",)) == 8
    assert document.line(("y", "k")) == 7
    assert document.line(("nowhere",)) == 2


def laughs(levels: int) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    for level in range(1, levels):
        lines.append(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]")
    return "\n".join(lines)


def merging_laughs(levels: int) -> str:
    lines = ["a0: &a0 {x: 1}"]
    for level in range(1, levels):
        lines.append(f"a{level}: &a{level} {{<<: [{', '.join([f'*a{level - 1}'] * 9)}]}}")
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("a: 1\nb: [1, 2", 2, "is not valid YAML"),
        ("a: 1\n b: 2\n", 2, "is not valid YAML"),
        ("a: 1\n\tb: 2\n", 2, "is not valid YAML"),
        ("a: 'open\n", 2, "is not valid YAML"),
        ("a: 1\nb: 2\na: 3\n", 3, "key 'a' is here twice, first on line 1"),
        ("a: {b: 1, b: 2}", 1, "key 'b' is here twice"),
        ("{a: 1, 'a': 2}", 1, "key 'a' is here twice"),
        ("a: !!python/object/apply:os.system [echo]", 1, "tag 'tag:yaml.org,2002:python/object"),
        ("x: 1\na: !custom {}", 2, "tag '!custom' is not allowed"),
        ("a: !!str 1", 1, "tag 'tag:yaml.org,2002:str' is not allowed"),
        ("a: 1\n---\nb: 2\n", 2, "begins a second document"),
        ("a: *nothing", 1, "alias *nothing has no anchor"),
        ("a: &a\n  b: *a", 2, "alias *a contains itself"),
        ("? [a]\n: 1", 1, "a key is a collection"),
        ("? {a: 1}\n: 1", 1, "a key is a collection"),
        ("a: {<<: 1}", 1, "'<<' merges a value that is no mapping"),
        ("a: 1\nb: \x00", 2, "holds the character U+0000"),
        ('a: "\\ud800"', 1, "surrogate"),
        ('a: "\\UFFFFFFFF"', 1, "is not valid YAML"),
        ("[" * 100_000, 1, "is nested deeper than 40 levels"),
        ("a: " + "{a: " * 60 + "1" + "}" * 60, 1, "is nested deeper than 40 levels"),
        (laughs(12), 1, "aliases multiply to more than 50000 values"),
        (merging_laughs(12), 1, "aliases multiply to more than 50000 values"),
        ("a: " + "x" * 600_000, 1, "is 600003 characters long"),
        ("%YAML 9.9\n---\na: 1", 1, "is not valid YAML"),
    ],
)
def test_what_is_refused(text: str, line: int, message: str) -> None:
    with pytest.raises(YamlError) as caught:
        parse(text)
    assert message in caught.value.message
    assert "\n" not in caught.value.message
    if "laughs" not in message and "multiply" not in message:
        assert caught.value.line == line


def test_an_alias_chain_deeper_than_the_limit_is_refused() -> None:
    lines = ["a0: &a0 [x]"] + [f"a{i}: &a{i} [*a{i - 1}]" for i in range(1, 60)]
    with pytest.raises(YamlError, match="nested deeper than 40 levels"):
        parse("\n".join(lines))


def test_a_chain_of_merges_is_bounded_too() -> None:
    links = [f"&a{i} {{<<: *a{i - 1}}}" for i in range(1, 3000)]
    hidden = f"<<: {{k: [&a0 {{x: 1}}, {', '.join(links)}]}}\nk: *a2999"
    with pytest.raises(YamlError, match="nested deeper than 40 levels"):
        parse(hidden)


def test_what_is_dumped_means_the_same_to_other_readers() -> None:
    value = {"a": 1e-05, "b": "1e-3", "c": "off", "d": "1:30", "e": [1, 2.5, True, None, "null"]}
    assert yaml.safe_load(dump(value)) == value
