"""`autotune plugins list`, `show` and `check`, through the command's entry."""

from __future__ import annotations

import json

import pytest
from installed_plugins import HEALTHY, Install

from autotune.cli import main
from autotune.plugins import discovery

KEYS = {
    *("kind", "name", "status", "summary", "reference", "distribution", "version", "class"),
    *("rivals", "cause", "traceback"),
}

Capture = pytest.CaptureFixture[str]


def test_list_names_every_kind_and_plugin(capsys: Capture) -> None:
    assert main(["plugins", "list"]) == 0
    out = capsys.readouterr().out
    headings = [line for line in out.splitlines() if line and not line.startswith(" ")]
    kinds = "optimizer schedule adapter tta proposer forecaster policy executor"
    assert headings == kinds.split()
    assert "  adamw " in out
    assert "Adam with decoupled weight decay." in out
    assert "BROKEN" not in out


def test_list_of_one_kind(capsys: Capture) -> None:
    assert main(["plugins", "list", "--kind", "tta"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("tta\n")
    assert "tent" in out
    assert "adamw" not in out


def test_a_kind_that_is_none(capsys: Capture) -> None:
    assert main(["plugins", "list", "--kind", "optimiser"]) == 2
    assert capsys.readouterr().err == (
        "autotune: there is no plugin kind 'optimiser'; the kinds are optimizer, schedule, "
        "adapter, tta, proposer, forecaster, policy, executor\n"
    )


def test_json_has_stable_keys(capsys: Capture, install: Install) -> None:
    install("autotune-bad", {"bad": "raise OSError('gone')"})
    install("autotune-rival", {"adamw": HEALTHY.format(name="adamw")})
    assert main(["plugins", "list", "--json", "--kind", "optimizer"]) == 0
    entries = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert all(entry.keys() == KEYS for entry in entries.values())
    assert entries["adamw"]["status"] == "ok"
    assert entries["adamw"]["rivals"] == ["autotune-rival"]
    assert entries["autotune-rival:adamw"]["distribution"] == "autotune-rival"
    assert entries["bad"]["status"] == "broken"
    assert entries["bad"]["summary"] is None
    assert "OSError: gone" in entries["bad"]["cause"]
    assert "Traceback" in entries["bad"]["traceback"]


def test_what_is_broken_or_switched_off_is_listed_with_the_cause(
    capsys: Capture, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("autotune-bad", {"bad": "raise OSError('gone')"})
    install("autotune-off", {"off": HEALTHY.format(name="off")})
    monkeypatch.setenv("AUTOTUNE_DISABLE_PLUGINS", "autotune-off")
    assert main(["plugins", "list", "--kind", "optimizer"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "BROKEN: importing autotune_bad_bad:Healthy raised OSError: gone" in out
    assert "autotune plugins show optimizer:bad" in out
    assert "DISABLED: switched off by AUTOTUNE_DISABLE_PLUGINS" in out
    assert "Adam with decoupled weight decay." in out


def test_show_tells_origin_and_ranges(capsys: Capture) -> None:
    assert main(["plugins", "show", "infinite"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("schedule infinite\n")
    assert "autotune-torch" in out
    assert "autotune_plugins.schedules.infinite:Infinite" in out
    assert "integer from 1 to 100,000, log scale; default 1" in out
    assert "if exponential:" in out
    assert "Ibrahim et al." in out


def test_show_gives_the_traceback_of_a_broken_one(capsys: Capture, install: Install) -> None:
    install("autotune-bad", {"bad": "def deep():\n    raise OSError('gone')\ndeep()\n"})
    assert main(["plugins", "show", "bad"]) == 0
    out = capsys.readouterr().out
    assert "BROKEN" in out
    assert "in deep" in out
    assert "From: autotune-bad 1.0" in out


def test_show_finds_a_name_in_every_kind(capsys: Capture, install: Install) -> None:
    install("autotune-good", {"cosine": HEALTHY.format(name="cosine")})
    assert main(["plugins", "show", "cosine"]) == 0
    out = capsys.readouterr().out
    assert "schedule cosine\n" in out
    assert "optimizer cosine\n" in out
    assert main(["plugins", "show", "optimizer:cosine"]) == 0
    assert "schedule" not in capsys.readouterr().out


def test_an_unknown_name_gets_the_nearest(capsys: Capture) -> None:
    for command in ("show", "check"):
        assert main(["plugins", command, "tend"]) == 2
        captured = capsys.readouterr()
        assert captured.err == (
            "autotune: there is no plugin 'tend' (did you mean 'tent'?); "
            "see: autotune plugins list\n"
        )
        assert captured.out == ""


def test_check_says_what_is_wrong(capsys: Capture, install: Install) -> None:
    climbing = HEALTHY.format(name="climbing").replace("lr=0.1)", "lr=0.1, maximize=True)")
    install("autotune-bad", {"climbing": climbing, "gone": "raise OSError('gone')"})
    assert main(["plugins", "check", "climbing"]) == 1
    out = capsys.readouterr().out
    assert "FAILED  optimizer climbing" in out
    assert "descent: with its default configuration" in out
    assert main(["plugins", "check", "gone"]) == 1
    assert "BROKEN  optimizer gone" in capsys.readouterr().out


def test_everything_installed_passes(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every bundled plugin keeps its contract, the engine's own parts as well. Optimizers and
    schedules, which take minutes, are held to it by their own tests."""
    records = discovery.records
    checked = [r for r in records() if r.kind not in ("optimizer", "schedule")]
    monkeypatch.setattr(
        discovery, "records", lambda kind=None: checked if kind is None else records(kind)
    )
    assert main(["plugins", "check"]) == 0, capsys.readouterr().out
    out = capsys.readouterr().out
    assert "FAILED" not in out
    assert "BROKEN" not in out
    assert out.count("ok      ") == len(checked) >= 27
