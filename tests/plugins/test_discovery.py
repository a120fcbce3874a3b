"""Discovery with distributions made on the spot: healthy ones, broken ones, colliding ones."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from installed_plugins import HEALTHY, Install

from autotune.plugins import ModelInfo, PluginError, discovery


def failure(kind: str, name: str) -> discovery.Failure:
    loaded = discovery.load(discovery.find(kind, name))
    assert isinstance(loaded, discovery.Failure)
    return loaded


def test_every_bundled_plugin_is_listed_and_loads() -> None:
    ours = [r for r in discovery.records() if r.distribution == discovery.OURS]
    assert {record.kind for record in ours} == set(discovery.BASES)
    assert {r.qualified: discovery.load(r) for r in ours if r.kind == "optimizer"}.keys() >= {
        "autotune-torch:sgd",
        "autotune-torch:adamw",
    }
    for record in ours:
        loaded = discovery.load(record)
        assert not isinstance(loaded, discovery.Failure), f"{record.name}: {loaded}"
        assert loaded is discovery.get(record.kind, record.name)


def test_listing_imports_nothing(install: Install) -> None:
    install("autotune-quiet", {"quiet": "raise RuntimeError('imported')"})
    (record,) = [r for r in discovery.records("optimizer") if r.name == "quiet"]
    assert (record.distribution, record.version) == ("autotune-quiet", "1.0")
    assert record.value == "autotune_quiet_quiet:Healthy"
    assert "autotune_quiet_quiet" not in sys.modules


def test_a_strangers_plugin_is_used_like_ours(install: Install) -> None:
    install("autotune-good", {"good": HEALTHY.format(name="good")})
    plugin = discovery.get("optimizer", "good")
    assert plugin.summary == "Plain descent."
    assert discovery.get("optimizer", "autotune_good:good") is plugin
    catalogue = discovery.Catalogue()
    assert catalogue.options("optimizer")["good"].default() == {"learning_rate": 0.1}
    assert catalogue.why_not("optimizer", "good") is None
    assert discovery.versions([("optimizer", "good"), ("optimizer", "good")]) == [
        ("optimizer", "good", "autotune-good", "1.0")
    ]


BROKEN = {
    "raises": ("raise OSError('no such library')", "OSError: no such library"),
    "leaves": ("import sys; sys.exit(3)", "SystemExit: 3"),
    "misspelt": ("x = 1", "AttributeError"),
    "syntax": ("def f(:", "SyntaxError"),
    "missing": ("import a_module_nobody_has", "No module named 'a_module_nobody_has'"),
    "newer": (HEALTHY.format(name="newer") + "    api_version = 2\n", "api_version 2"),
    "stranger": ("class Healthy: name = 'stranger'", "not a subclass of autotune.plugins'"),
    "alias": (HEALTHY.format(name="other"), "registered as 'alias' but its name is 'other'"),
    "wordless": (HEALTHY.format(name="wordless") + "    summary = ''\n", "no summary"),
    "spaceless": (
        HEALTHY.format(name="spaceless") + "    @classmethod\n    def space(cls): 1 / 0\n",
        "ZeroDivisionError",
    ),
    "wrongkind": (
        HEALTHY.format(name="wrongkind").replace("Optimizer", "Schedule"),
        "base of every optimizer",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_plugin_hurts_only_who_names_it(install: Install, name: str) -> None:
    source, cause = BROKEN[name]
    install("autotune-bad", {name: source})
    install("autotune-good", {"good": HEALTHY.format(name="good")})
    assert cause in failure("optimizer", name).cause

    catalogue = discovery.Catalogue()
    options = catalogue.options("optimizer")
    assert name not in options
    assert {"good", "adamw"} <= options.keys()
    assert name in catalogue.names("optimizer")
    reason = catalogue.why_not("optimizer", name)
    assert reason is not None
    assert cause in reason

    with pytest.raises(PluginError) as caught:
        discovery.get("optimizer", name)
    assert cause in str(caught.value)
    assert "autotune-bad 1.0" in str(caught.value)
    assert "pip uninstall autotune-bad" in str(caught.value)


def test_the_traceback_of_a_plugin_that_raises_is_kept(install: Install) -> None:
    install("autotune-bad", {"raises": "def deep():\n    raise OSError('gone')\ndeep()\n"})
    kept = failure("optimizer", "raises").traceback
    assert "in deep" in kept
    assert kept.endswith("OSError: gone")


def test_ours_keep_the_bare_name(install: Install) -> None:
    install("autotune-rival", {"adamw": HEALTHY.format(name="adamw")})
    bare = discovery.find("optimizer", "adamw")
    assert bare.distribution == discovery.OURS
    assert bare.rivals == ("autotune-rival",)
    theirs = discovery.find("optimizer", "autotune-rival:adamw")
    assert theirs.name == "autotune-rival:adamw"
    assert theirs.rivals == (discovery.OURS,)
    assert discovery.get("optimizer", theirs.name) is not discovery.get("optimizer", "adamw")
    assert {"adamw", "autotune-rival:adamw"} <= discovery.Catalogue().options("optimizer").keys()


def test_two_strangers_must_both_be_qualified(install: Install) -> None:
    install("autotune-one", {"same": HEALTHY.format(name="same")})
    install("autotune-two", {"same": HEALTHY.format(name="same")})
    with pytest.raises(PluginError, match="write one of autotune-one:same, autotune-two:same"):
        discovery.get("optimizer", "same")
    one = discovery.get("optimizer", "autotune-one:same")
    assert one is not discovery.get("optimizer", "autotune-two:same")
    assert "same" not in discovery.Catalogue().options("optimizer")


def test_the_same_name_in_two_kinds_is_no_collision(install: Install) -> None:
    install("autotune-good", {"cosine": HEALTHY.format(name="cosine")})
    assert discovery.get("optimizer", "cosine") is not discovery.get("schedule", "cosine")
    assert discovery.find("schedule", "cosine").rivals == ()


def test_distributions_can_be_switched_off(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("autotune-rival", {"adamw": HEALTHY.format(name="adamw"), "x": "1 / 0"})
    monkeypatch.setenv(discovery.DISABLE, " Autotune_Rival ,")
    assert discovery.find("optimizer", "adamw").rivals == ()
    assert "switched off by AUTOTUNE_DISABLE_PLUGINS" in failure("optimizer", "x").cause
    with pytest.raises(PluginError, match="switched off"):
        discovery.get("optimizer", "x")
    assert "autotune_rival_x" not in sys.modules


def test_switching_ours_off_leaves_the_name_to_the_rival(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("autotune-rival", {"adamw": HEALTHY.format(name="adamw")})
    monkeypatch.setenv(discovery.DISABLE, discovery.OURS)
    assert discovery.find("optimizer", "adamw").distribution == "autotune-rival"


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(PluginError, match=r"'successive_halving' \(it is called 'asha' now\)"):
        discovery.get("policy", "successive_halving")
    with pytest.raises(PluginError, match=r"no optimizer 'adamv' \(did you mean 'adamw'\?\)"):
        discovery.get("optimizer", "adamv")
    with pytest.raises(PluginError, match="no plugin kind 'optimiser'; the kinds are optimizer"):
        discovery.records("optimiser")


def test_a_plugin_installed_later_is_seen(install: Install) -> None:
    with pytest.raises(PluginError):
        discovery.find("optimizer", "late")
    install("autotune-late", {"late": HEALTHY.format(name="late")})
    assert discovery.find("optimizer", "late").distribution == "autotune-late"


PICKY = """
    @classmethod
    def supports(cls, model_info):
        if not model_info.pretrained:
            return "needs pretrained weights"
        if model_info.has("Strange"):
            raise KeyError("Strange")
        return None
"""


def test_what_a_plugin_does_not_support_is_no_option(install: Install) -> None:
    install("autotune-picky", {"picky": HEALTHY.format(name="picky") + PICKY})
    fresh = discovery.Catalogue(ModelInfo(False, {"Linear": 2}, {}))
    assert "picky" not in fresh.options("optimizer")
    assert fresh.why_not("optimizer", "picky") == "needs pretrained weights"
    strange = discovery.Catalogue(ModelInfo(True, {"Strange": 1}, {}))
    assert "picky" not in strange.options("optimizer")
    assert strange.why_not("optimizer", "picky") == "its supports() raised KeyError: 'Strange'"
    assert "picky" in discovery.Catalogue(ModelInfo(True, {}, {})).options("optimizer")


def test_workers_must_find_the_same_plugins(install: Install) -> None:
    install("autotune-good", {"good": HEALTHY.format(name="good")}, version="1.1")
    same = discovery.versions([("optimizer", "good"), ("optimizer", "adamw")])
    discovery.verify(same)
    discovery.verify([list(entry) for entry in same])
    with pytest.raises(PluginError) as caught:
        discovery.verify(
            [
                ("optimizer", "good", "autotune-good", "1.0"),
                ("optimizer", "absent", "autotune-absent", "2.0"),
            ]
        )
    assert "'good' comes from autotune-good 1.1 here, but from autotune-good 1.0" in str(
        caught.value
    )
    assert "there is no optimizer 'absent'" in str(caught.value)


def test_unreadable_metadata_of_a_stranger_are_reported(tmp_path: Path, install: Install) -> None:
    install("autotune-torn", {"x": "1"})
    (tmp_path / "autotune_torn-1.0.dist-info" / "entry_points.txt").write_text(
        "[autotune.optimizers]\nthis line has no equals sign\n"
    )
    with pytest.warns(UserWarning, match="its metadata cannot be read"):
        names = {record.name for record in discovery.records("optimizer")}
    assert "adamw" in names


def test_the_first_distribution_on_the_path_counts(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("autotune-good", {"good": HEALTHY.format(name="good")}, version="2.0")
    older = tmp_path / "behind" / "autotune_good-1.0.dist-info"
    older.mkdir(parents=True)
    (older / "METADATA").write_text("Metadata-Version: 2.1\nName: autotune-good\nVersion: 1.0\n")
    (older / "entry_points.txt").write_text("[autotune.optimizers]\nold = old:Old\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(older.parent)])
    good = [r for r in discovery.records() if r.distribution == "autotune-good"]
    assert [(record.name, record.version) for record in good] == [("good", "2.0")]
