"""Discovery: plugins come in by their entry points, and a broken one stops nobody."""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

from skill_kd import __version__, plugins
from skill_kd.backends.transformers import TransformersBackend
from skill_kd.errors import ExitCode, MissingRequirementError, SkillKDError
from skill_kd.testing import FakeBackend

Install = Callable[..., None]

PLUGIN = """
from skill_kd.hookspecs import hookimpl
from skill_kd.testing import FakeBackend

class Other(FakeBackend):
    name = {name!r}

@hookimpl
def register_backends(register):
    register(Other)
"""


def test_the_built_in_backend_comes_first() -> None:
    plugins.forget()
    assert next(iter(plugins.backends())) == "transformers"
    assert isinstance(plugins.get_backend("transformers"), TransformersBackend)


def test_an_installed_plugin_is_found_by_its_entry_point(install: Install) -> None:
    install("skill-kd-fake", "fake", "skill_kd.testing")
    assert isinstance(plugins.get_backend("fake"), FakeBackend)
    assert plugins.broken() == {}


def test_one_plugin_may_bring_several_backends(install: Install) -> None:
    source = PLUGIN.format(name="one") + "    register(type('Two', (FakeBackend,), {'name': 'two'}))\n"
    install("pair", "one", "pair_plugin", source)
    assert {"transformers", "one", "two"} <= set(plugins.backends())


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import no_such_package", "no_such_package"),
        ("def broken(", "SyntaxError"),
        ("raise SystemExit(3)", "SystemExit"),
        (PLUGIN.format(name="bad") + "    raise RuntimeError('in the hook')\n", "in the hook"),
        (PLUGIN.format(name="bad") + "    register(object)\n", "not a subclass of Backend"),
        (PLUGIN.format(name="bad").replace("register)", "register, extra)"), "extra"),
        (PLUGIN.format(name="bad").replace("register_backends", "register_backend"), "register_backend"),
        (
            PLUGIN.format(name="bad")
            .replace("    name", "    render = Backend.render\n    name")
            .replace("import FakeBackend", "import Backend, FakeBackend"),
            "abstract",
        ),
    ],
    ids=["import", "syntax", "exit", "hook raises", "no backend", "hook's arguments", "unknown hook", "abstract"],
)
def test_a_broken_plugin_is_reported_and_the_others_work(install: Install, source: str, reason: str) -> None:
    install("broken-one", "bad", "broken_plugin", source)
    install("works", "good", "good_plugin", PLUGIN.format(name="good"))
    assert set(plugins.backends()) >= {"transformers", "good"}
    assert "bad" not in plugins.backends()
    assert list(plugins.broken()) == ["broken-one:bad"]
    assert reason in plugins.broken()["broken-one:bad"]
    with pytest.raises(MissingRequirementError, match="'broken-one:bad' is installed but broken"):
        plugins.get_backend("bad")


@pytest.mark.parametrize("needed", ["skill-kd<0.1", "skill_kd<0.1"])
def test_a_plugin_for_another_skill_kd_is_named_with_both_versions(install: Install, needed: str) -> None:
    install("older", "old", "old_plugin", PLUGIN.format(name="old"), requires=needed)
    assert "old" not in plugins.backends()
    assert f"requires {needed}, but this is skill-kd {__version__}" in plugins.broken()["older:old"]


def test_a_plugin_for_this_skill_kd_is_taken(install: Install) -> None:
    install("fitting", "fit", "fit_plugin", PLUGIN.format(name="fit"), requires=f"skill-kd=={__version__}")
    assert "fit" in plugins.backends()


def test_a_name_brought_twice_is_refused_naming_both_plugins(install: Install) -> None:
    install("copycat", "transformers", "copycat_plugin", PLUGIN.format(name="transformers"))
    assert isinstance(plugins.get_backend("transformers"), TransformersBackend)
    report = plugins.broken()["copycat:transformers"]
    assert "'copycat:transformers' is already registered by 'skill-kd'" in report


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("trl", "pip install ./plugins/skill-kd-trl"),
        ("unsloth", "pip install ./plugins/skill-kd-unsloth"),
        ("unslot", "did you mean 'unsloth'? (pip install ./plugins/skill-kd-unsloth, from this repository)"),
        ("transformer", "did you mean 'transformers'?"),
        ("megatron", "pip install skill-kd-megatron"),
    ],
)
def test_an_unknown_backend_is_refused_with_the_fix(name: str, fix: str) -> None:
    with pytest.raises(SkillKDError) as caught:
        plugins.get_backend(name)
    assert caught.value.exit_code is ExitCode.ENVIRONMENT
    assert fix in str(caught.value)


@pytest.mark.parametrize("name", ["x; rm -rf ~", "$(id)", "a\nb", "", "--index-url=evil", "tranformers"])
def test_no_install_line_is_made_of_a_doubtful_name(name: str) -> None:
    with pytest.raises(MissingRequirementError) as caught:
        plugins.get_backend(name)
    assert "pip install" not in str(caught.value)
    assert "\n" not in str(caught.value)


def needing(*requirements: str) -> FakeBackend:
    return type("Needing", (FakeBackend,), {"requirements": requirements})()


def test_missing_names_absent_packages_and_wrong_versions() -> None:
    wanted = ("pluggy>=1", "pluggy<1", "no-such-package==1.0", "no-such-package; python_version < '3'")
    assert plugins.missing(needing(*wanted)) == ["pluggy<1", "no-such-package==1.0"]


def test_a_local_version_fulfils_a_pin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "accelerated-2.13.0+cu130.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: accelerated\nVersion: 2.13.0+cu130\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert metadata.version("accelerated") == "2.13.0+cu130"
    assert plugins.missing(needing("accelerated==2.13.0")) == []
