"""references/models.md: each family of the walk has one verdict, and what fails is refused."""

from __future__ import annotations

from types import ModuleType

import pytest
from script_modules import ROOT, load_script

from skill_kd.kd.model.cached import READ_SEVERAL
from skill_kd.kd.model.families import REFUSED


@pytest.fixture(scope="module")
def models() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "dev")
        return load_script("dev/make_models.py")


def test_a_family_is_refused_if_and_only_if_it_fails(models: ModuleType) -> None:
    walk = models.generated.result("model_families")
    kinds = {
        name: models.verdict(name, each["stages"], walk["stages"], refused={})[0]
        for name, each in walk["families"].items()
    }
    assert {name for name, kind in kinds.items() if kind == models.FAILS} == set(REFUSED)


def test_recurrent_models_that_read_several_tokens_at_once_were_found_to_do_so(models: ModuleType) -> None:
    walk = models.generated.result("model_families")["families"]
    assert READ_SEVERAL
    assert {name for name in READ_SEVERAL if walk[name]["stages"].get("several") != "ok"} == set()


@pytest.mark.parametrize(
    ("stages", "kind"),
    [
        ({"build": "ok", "grow": "ok", "update": "ok"}, "WORKS"),
        ({"build": "ok", "grow": "Error: no", "update": "ok"}, "NOTED"),
        ({"build": "ok", "grow": "ok", "update": "Error: no"}, "FAILS"),
        ({"build": "ok", "grow": "ok"}, "FAILS"),
        ({"build": "Error: no"}, "UNTESTED"),
    ],
)
def test_the_verdict_follows_from_the_stages(models: ModuleType, stages: dict[str, str], kind: str) -> None:
    found, reason = models.verdict("any", stages, ["grow", "update"])
    assert found == getattr(models, kind)
    assert bool(reason) == (kind != "WORKS")
    assert models.verdict("any", stages, ["grow"], refused={"any": "it is so"}) == (models.REFUSES, "it is so")
