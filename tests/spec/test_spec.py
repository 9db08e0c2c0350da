"""The spec: what it refuses and how it says so, its defaults, its hash, its schema."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from skill_kd import spec
from skill_kd.errors import SpecError
from skill_kd.kd.kinds import reads_teacher
from skill_kd.spec import (
    JSD,
    Distill,
    Divergence,
    ForwardKL,
    MiniLLM,
    Objective,
    Section,
    SelfTrain,
    SequenceKD,
    Sft,
    Spec,
    WarmStart,
    on_policy,
)
from skill_kd.spec.file import parse_spec

Values = dict[str, Any]

OBJECTIVES: tuple[type[Section], ...] = get_args(get_args(Objective)[0])
SERVED = {"url": "http://localhost/v1", "model": "m"}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def values(**changes: Any) -> Values:
    """The shortest valid spec, with whole sections put in its place."""
    return {
        "name": "tiny",
        "teacher": {"model": "org/teacher"},
        "student": {"model": "org/student"},
        "data": {"train": "prompts.jsonl"},
        **changes,
    }


def distilling(objective: Values, *others: Values, **changes: Any) -> Values:
    return values(stages=[*others, {"kind": "distill", "objective": objective}], **changes)


def refusal(candidate: object) -> str:
    with pytest.raises(SpecError) as caught:
        parse_spec(candidate)
    return str(caught.value)


# --- what is refused, and what the message says -----------------------------------------------------------------------

EXACT = {"kind": "minillm", "estimator": "exact"}
ON_TIME = {"rollout": {"prompts": 16}}  # one step for each batch of rollouts, as exact needs

REFUSED: dict[str, tuple[Values, list[str]]] = {
    # teacher
    "no teacher": (values(teacher={}), ["teacher", "'model'", "'served'"]),
    "two teachers of two kinds": (values(teacher={"model": "a", "served": SERVED}), ["exactly one of"]),
    "empty list of teachers": (values(teacher={"model": []}), ["'model' is an empty list", "at least one"]),
    "empty model name": (values(teacher={"model": ""}), ["teacher.model", "at least 1 character"]),
    "revision of a list": (
        values(teacher={"model": [{"model": "a"}], "revision": "v1"}),
        ["revision: 'v1'", "set it in each entry"],
    ),
    "weight of 0": (values(teacher={"model": [{"model": "a", "weight": 0}]}), ["teacher.model.0.weight", "not 0"]),
    "quantization of a served teacher": (
        values(teacher={"served": SERVED, "quantization": "4bit"}),
        ["'quantization'", "do not apply to 'served'", "drop"],
    ),
    "remote code without a revision": (
        values(teacher={"model": "a", "trust_remote_code": True}),
        ["trust_remote_code: true needs 'revision'", "40 hexadecimal digits", "not None"],
    ),
    "remote code at a branch": (
        values(teacher={"model": "a", "trust_remote_code": True, "revision": "main"}),
        ["trust_remote_code: true needs 'revision'", "not 'main'"],
    ),
    "remote code of one listed teacher": (
        values(teacher={"model": [{"model": "a", "revision": COMMIT}, {"model": "b"}], "trust_remote_code": True}),
        ["trust_remote_code: true needs 'revision'", "not None"],
    ),
    "not http": (
        values(teacher={"served": {**SERVED, "url": "ftp://host"}}),
        ["served.url: should start with http://", "'ftp://host'"],
    ),
    "negative top_logprobs": (
        values(teacher={"served": {**SERVED, "top_logprobs": -1}}),
        ["teacher.served.top_logprobs", "not -1"],
    ),
    # student
    "text for a number": (
        values(training={"learning_rate": "fast"}),
        ["training.learning_rate: should be a number, not 'fast'"],
    ),
    "no student": (values(student={}), ["student: set 'model' or 'from_teacher'"]),
    "layers together with a model": (
        values(student={"model": "org/student", "from_teacher": {"layers": 4}}),
        ["student", "'from_teacher'", "'org/student'", "keep 'model'"],
    ),
    "no layers": (values(student={"from_teacher": {"layers": 0}}), ["student.from_teacher.layers", "not 0"]),
    "layers twice": (values(student={"from_teacher": {"layers": [1, 1]}}), ["layers [1, 1]", "ascending order"]),
    "layers falling": (values(student={"from_teacher": {"layers": [2, 1]}}), ["layers [2, 1]", "ascending order"]),
    "an empty list of layers": (values(student={"from_teacher": []}), ["layers []", "each kept layer once"]),
    "quantization without lora": (
        values(student={"model": "a", "quantization": "4bit"}),
        ["quantization: 4bit", "add 'lora'"],
    ),
    "remote code of the student": (
        values(student={"model": "a", "trust_remote_code": True, "revision": "v1.0"}),
        ["student: trust_remote_code: true needs 'revision'", "not 'v1.0'"],
    ),
    "revision of a grown student": (
        values(student={"from_teacher": 4, "revision": "v1"}),
        ["'revision'", "do not apply to from_teacher", "drop"],
    ),
    "grown from several": (
        values(teacher={"model": [{"model": "a"}, {"model": "b"}]}, student={"from_teacher": 4}),
        ["student.from_teacher grows from one teacher", "lists 2", "set student.model"],
    ),
    "grown from a server": (
        distilling({"kind": "sequence_kd"}, teacher={"served": SERVED}, student={"from_teacher": 4}),
        ["student.from_teacher", "teacher.served provides none", "set student.model"],
    ),
    # data
    "all held out": (values(data={"train": "a", "held_out": 1}), ["data.held_out", "less than 1", "not 1"]),
    "a share as text": (
        values(data={"train": "a", "held_out": "5%"}),
        ["held_out: '5%' is text", "names a file", "0.05"],
    ),
    "pretraining that nothing reads": (
        values(data={"train": "a", "pretraining": "web.jsonl"}),
        ["data.pretraining 'web.jsonl'", "set pt_weight", "drop it"],
    ),
    "pt_weight without a corpus": (
        distilling({"kind": "minillm", "pt_weight": 1}),
        ["pt_weight: 1.0 needs a corpus", "set data.pretraining", "pt_weight: 0"],
    ),
    # objectives
    "beta near 0": (distilling({"kind": "jsd", "beta": 0.001}), ["beta 0.001", "0.05 … 0.95", "kind: forward_kl"]),
    "beta at 1": (distilling({"kind": "jsd", "beta": 1}), ["beta 1.0", "0.05 … 0.95", "kind: reverse_kl"]),
    "hard labels nobody wrote": (
        distilling({"kind": "forward_kl", "hard_label_weight": 0.5}),
        ["hard_label_weight: 0.5", "set responses: data"],
    ),
    "hard labels for samples": (
        distilling({"kind": "reverse_kl", "hard_label_weight": 0.5, "responses": "data"}),
        ["hard_label_weight: 0.5", "on_policy below 1"],
    ),
    "skew of 1": (distilling({"kind": "skew_kl", "skew": 1}), ["objective.skew", "less than 1"]),
    "a key of another kind": (distilling({"kind": "forward_kl", "beta": 0.5}), ["unknown key 'beta'"]),
    "unknown kind": (distilling({"kind": "minilm"}), ["unknown kind 'minilm'", "did you mean 'minillm'?"]),
    "no kind": (distilling({"beta": 0.5}), ["stages.0.objective: needs a 'kind'"]),
    "exact, normalized": (
        distilling({**EXACT, "length_normalization": True}),
        ["length_normalization: True", "estimator: exact biased", "estimator: paper"],
    ),
    "exact, clipped": (distilling({**EXACT, "clip": 0.2}), ["clip: 0.2", "estimator: exact biased", "drop it"]),
    "exact, stale": (
        distilling(EXACT, rollout={"prompts": 16, "inner_epochs": 4}),
        ["rollout.inner_epochs: 4", "estimator: exact biased", "set it to 1"],
    ),
    "exact, cooled": (
        distilling(EXACT, rollout={"prompts": 16, "temperature": 0.7}),
        ["rollout.temperature: 0.7", "estimator: exact biased", "set it to 1"],
    ),
    "exact, truncated": (
        distilling(EXACT, rollout={"prompts": 16, "top_p": 0.9}),
        ["rollout.top_p: 0.9", "estimator: exact biased", "set it to 1"],
    ),
    "exact, several steps": (
        distilling(EXACT, rollout={"prompts": 64}),
        ["rollout.prompts: 64", "estimator: exact biased", "set it to training.batch_size, 16"],
    ),
    "exact, with dropout": (
        distilling(EXACT, **ON_TIME, student={"model": "a", "lora": {"dropout": 0.1}}),
        ["student.lora.dropout: 0.1", "estimator: exact biased", "set it to 0"],
    ),
    "exact, from a server": (
        distilling(EXACT, **ON_TIME, teacher={"served": {**SERVED, "top_logprobs": 64}}),
        ["top_logprobs: 64", "estimator: exact biased", "load the teacher with teacher.model"],
    ),
    # stages
    "no stages": (values(stages=[]), ["stages []", "one distill"]),
    "no distill": (values(stages=[{"kind": "warm_start"}]), ["stages ['warm_start']", "one distill"]),
    "two distills": (values(stages=[{"kind": "distill"}] * 2), ["stages ['distill', 'distill']", "one distill"]),
    "order": (values(stages=[{"kind": "distill"}, {"kind": "warm_start"}]), ["in that order"]),
    "two warm starts": (
        distilling({"kind": "sft"}, {"kind": "warm_start"}, {"kind": "warm_start"}),
        ["'warm_start', 'warm_start'", "name a kind twice"],
    ),
    "warm start on-policy": (
        distilling({"kind": "sft"}, {"kind": "warm_start", "objective": {"kind": "reverse_kl"}}),
        ["stages.0", "trains off-policy", "set objective.on_policy: 0 (it is 1.0)"],
    ),
    "warm start by minillm": (
        distilling({"kind": "sft"}, {"kind": "warm_start", "objective": {"kind": "minillm"}}),
        ["stages.0.objective: unknown kind 'minillm' here", "known: sft"],
    ),
    # a served teacher
    "probabilities of text": (
        distilling({"kind": "forward_kl"}, teacher={"served": SERVED}),
        ["'forward_kl' reads the teacher's probabilities", "set served.top_logprobs", "kind: sequence_kd"],
    ),
    "self-training on text": (
        values(
            teacher={"served": SERVED},
            stages=[{"kind": "distill", "objective": {"kind": "sequence_kd"}}, {"kind": "self_train"}],
        ),
        ["'self_train' reads the teacher's probabilities", "set served.top_logprobs", "drop that stage"],
    ),
    "a server mixed in": (
        distilling({"kind": "minillm"}, teacher={"served": {**SERVED, "top_logprobs": 5}}),
        ["teacher_mix: 0.2", "one token at a time", "set teacher_mix: 0"],
    ),
    # batches
    "batch that does not divide": (
        values(training={"batch_size": 16, "accumulate": 3}),
        ["training.batch_size 16", "accumulate 3", "a multiple of 3"],
    ),
    "batch over processes": (
        values(launch={"processes": 32, "strategy": "ddp"}),
        ["training.batch_size 16", "launch.processes 32", "a multiple of 32"],
    ),
    "rollouts that do not divide": (
        values(rollout={"prompts": 20}),
        ["rollout.prompts 20", "training.batch_size 16"],
    ),
    "temperature 0 on-policy": (
        values(rollout={"temperature": 0}),
        ["rollout.temperature: 0", "set a value above 0"],
    ),
    # the rest
    "a teacher in shards of one process": (values(launch={"shard_teacher": True}), ["shard_teacher: true", "ddp"]),
    "a quantized teacher in shards": (
        values(teacher={"model": "a/b", "quantization": "4bit"}, launch={"strategy": "ddp", "shard_teacher": True}),
        ["launch.shard_teacher", "sets teacher.quantization: 4bit"],
    ),
    "processes without a strategy": (
        values(launch={"processes": 2}),
        ["processes: 2 needs a strategy", "ddp", "fsdp2"],
    ),
    "nodes that do not divide": (
        values(launch={"processes": 3, "nodes": 2, "strategy": "ddp"}, training={"batch_size": 3}),
        ["processes: 3", "nodes: 2"],
    ),
    "a rate of 5": (values(training={"learning_rate": 5}), ["training.learning_rate", "less than 1", "not 5"]),
    "beta of 1": (values(training={"betas": [0.9, 1]}), ["training.betas.1", "less than 1"]),
    "three betas": (values(training={"betas": [0.9, 0.9, 0.9]}), ["training.betas", "at most 2 items"]),
    "a name with a slash": (values(name="a/b"), ["name", "'a/b'"]),
    "a name that climbs": (values(name="../a"), ["name", "'../a'"]),
    "a large seed": (values(seed=2**31), ["seed", "less than 2147483648"]),
    "unknown precision": (values(training={"precision": "fp16"}), ["training.precision", "'bf16' or 'fp32'", "'fp16'"]),
    "unknown tracker": (values(trackers=["mlflow"]), ["trackers.0", "'tensorboard', 'wandb' or 'trackio'"]),
    "unknown export": (values(handoff={"export": ["onnx"]}), ["handoff.export.0", "'onnx'"]),
    "an adapter of full training": (
        values(handoff={"method": "full", "export": ["lora"]}),
        ["export: lora", "method: full", "use method: lora"],
    ),
    "nan": (values(training={"learning_rate": float("nan")}), ["training.learning_rate", "finite", "nan"]),
    "infinity": (values(rollout={"temperature": float("inf")}), ["rollout.temperature", "finite", "inf"]),
    "text for a section": (values(training="fast"), ["training: should be a mapping", "'fast'"]),
    "a mapping for a list": (values(stages={"kind": "distill"}), ["stages: should be a list"]),
    "a number for text": (values(teacher={"model": 7}), ["teacher.model", "valid string, not 7", "quotes"]),
    "true for a number": (values(seed=True), ["seed: true", "does not accept"]),
    "yes for layers": (values(student={"from_teacher": True}), ["from_teacher: true", "does not accept"]),
}


@pytest.mark.parametrize(("candidate", "fragments"), REFUSED.values(), ids=REFUSED)
def test_the_message_names_the_field_its_value_and_the_fix(candidate: Values, fragments: list[str]) -> None:
    message = refusal(candidate)
    for fragment in fragments:
        assert fragment in message
    assert "\n" not in message, "one mistake, one line"


@pytest.mark.parametrize(
    "sections",
    [
        {"teacher": {"model": "them/model"}},
        {
            "teacher": {
                "model": [{"model": "org/other", "revision": COMMIT}, {"model": "them/model", "revision": COMMIT}]
            }
        },
        {"student": {"model": "them/model"}},
    ],
    ids=["teacher", "one of several", "student"],
)
def test_code_of_a_folder_is_refused_also_if_it_has_a_hub_id(
    sections: Values, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [(name, section)] = sections.items()
    pinned = {} if isinstance(section["model"], list) else {"revision": COMMIT}
    candidate = values(**{name: {**section, **pinned, "trust_remote_code": True}})
    monkeypatch.chdir(tmp_path)
    parse_spec(candidate)
    (tmp_path / "them" / "model").mkdir(parents=True)
    assert f"{name}: trust_remote_code: true runs code of the hub only, and 'them/model' is on this" in refusal(
        candidate
    )


def test_all_missing_sections_are_named_at_once() -> None:
    assert refusal({}) == "spec: name: is missing\n  teacher: is missing\n  student: is missing\n  data: is missing"


@pytest.mark.parametrize("top", [None, 5, "name: x", [], [{}]])
def test_values_that_are_not_a_mapping_are_refused(top: object) -> None:
    assert "should be a mapping" in refusal(top)


@pytest.mark.parametrize(
    "served",
    [
        {**SERVED, "url": "https://user:hunter2@host/v1"},
        {**SERVED, "api_key_env": "sk-hunter2"},
    ],
    ids=["in the address", "in place of the variable's name"],
)
def test_a_secret_in_a_spec_is_refused_and_not_repeated(served: Values) -> None:
    message = refusal(distilling({"kind": "sequence_kd"}, teacher={"served": served}))
    assert "api_key_env" in message
    assert "hunter2" not in message


@pytest.mark.parametrize(
    "url", ["https://me:hunter2@host", "me:hunter2@host", "http://me:hunter2/5@host", "ftp://hunter2@h"]
)
@pytest.mark.parametrize("place", ["teacher.served.url", "rollout.vllm_url"])
def test_a_password_in_any_address_is_refused_and_not_repeated(url: str, place: str) -> None:
    sections = {
        "teacher.served.url": {"teacher": {"served": {**SERVED, "url": url}}},
        "rollout.vllm_url": {"rollout": {"engine": "vllm", "vllm_url": url}},
    }
    message = refusal(distilling({"kind": "sequence_kd"}, **sections[place]))
    assert f"{place}: holds a user name or password" in message
    assert "hunter2" not in message


def test_an_address_may_hold_an_at_sign_in_its_path() -> None:
    served = {**SERVED, "url": "https://host/@team/v1"}
    assert parse_spec(distilling({"kind": "sequence_kd"}, teacher={"served": served})).teacher.served is not None


ACCEPTED: dict[str, Values] = {
    "remote code at a commit": values(teacher={"model": "a", "trust_remote_code": True, "revision": COMMIT}),
    "several teachers": values(teacher={"model": [{"model": "a", "weight": 2}, {"model": "b"}]}),
    "exact": distilling(EXACT, **ON_TIME),
    "exact with teacher_mix, whose weights undo it": distilling({**EXACT, "teacher_mix": 0.1}, **ON_TIME),
    "exact with an adapter": distilling(EXACT, **ON_TIME, student={"model": "a", "lora": {}}),
    "beta at its lower bound": distilling({"kind": "jsd", "beta": 0.05}),
    "a served teacher with log-probabilities": distilling(
        {"kind": "minillm", "teacher_mix": 0}, teacher={"served": {**SERVED, "top_logprobs": 5}}
    ),
    "a teacher that gives text": distilling({"kind": "sequence_kd"}, teacher={"served": SERVED}),
    "temperature 0 off-policy": distilling({"kind": "sequence_kd"}, rollout={"temperature": 0}),
    "prompts that do not divide off-policy": distilling({"kind": "sft"}, rollout={"prompts": 20}),
    "warm start by a divergence off-policy": distilling(
        {"kind": "minillm"}, {"kind": "warm_start", "objective": {"kind": "reverse_kl", "on_policy": 0}}
    ),
    "pretraining with its weight": distilling(
        {"kind": "minillm", "pt_weight": 1}, data={"train": "a", "pretraining": "b"}
    ),
    "every stage": distilling({"kind": "minillm"}, {"kind": "warm_start"}),
    "a held-out file": values(data={"train": "a", "held_out": "held_out_5.jsonl"}),
    "hard labels": distilling({"kind": "forward_kl", "responses": "data", "hard_label_weight": 0.5}),
}


@pytest.mark.parametrize("candidate", ACCEPTED.values(), ids=ACCEPTED)
def test_what_makes_sense_is_accepted(candidate: Values) -> None:
    assert parse_spec(candidate).name == "tiny"


# --- a typo answers with the key that was meant -----------------------------------------------------------------------


def places() -> Iterator[tuple[Values, tuple[str | int, ...]]]:
    """A valid spec and the way to one of its sections, for every section there is."""
    served = distilling({"kind": "sequence_kd"}, teacher={"served": dict(SERVED)})
    grown = values(student={"from_teacher": {"layers": 4}})
    listed = values(teacher={"model": [{"model": "a"}]})
    whole = values(
        student={"model": "a", "lora": {}},
        stages=[{"kind": "warm_start"}, {"kind": "distill"}, {"kind": "self_train"}],
        handoff={},
        **{key: {} for key in ("rollout", "training", "checkpoint", "launch", "evaluation")},
    )
    yield whole, ()
    for key in ("teacher", "student", "data", "rollout", "training", "checkpoint", "launch", "evaluation", "handoff"):
        yield whole, (key,)
    yield whole, ("student", "lora")
    yield served, ("teacher", "served")
    yield listed, ("teacher", "model", 0)
    yield grown, ("student", "from_teacher")
    for index in range(3):
        yield whole, ("stages", index)
    for model in OBJECTIVES:
        yield distilling({"kind": model.model_fields["kind"].default}), ("stages", 0, "objective")


def section_at(candidate: Values, path: tuple[str | int, ...]) -> tuple[Values, type[Section]]:
    """The values at ``path``, and the model that reads them."""
    found: Any = candidate
    model: Any = Spec.model_validate(candidate)
    for step in path:
        found = found[step]
        model = model[step] if isinstance(step, int) else getattr(model, step)
    return found, type(model)


def typos(key: str) -> set[str]:
    """Yield typos: two letters swapped, one left out, one doubled, a dash for an underscore."""
    swapped = {key[:i] + key[i + 1] + key[i] + key[i + 2 :] for i in range(len(key) - 1)}
    short = {key[:i] + key[i + 1 :] for i in range(len(key))}
    doubled = {key[:i] + key[i] + key[i:] for i in range(len(key))}
    return (swapped | short | doubled | {key.replace("_", "-")}) - {"", key}


def not_corrected(candidate: Values, path: tuple[str | int, ...]) -> Iterator[str]:
    """Each typo in a section that is accepted, or not answered with the key that was meant."""
    _, model = section_at(candidate, path)
    for key in model.model_fields:
        for typo in sorted(typos(key) - model.model_fields.keys()):
            wrong = deepcopy(candidate)
            section_at(wrong, path)[0][typo] = None
            answer = f"unknown key '{typo}'; did you mean '{key}'?"
            try:
                parse_spec(wrong)
            except SpecError as error:
                if answer not in str(error):
                    yield f"{model.__name__}: {typo} is answered with: {error}"
            else:
                yield f"{model.__name__}: {typo} is accepted"


def test_a_typo_of_any_key_answers_with_that_key() -> None:
    assert list(places())
    failures = [failure for candidate, path in places() for failure in not_corrected(candidate, path)]
    assert not failures, "\n".join(failures)


def test_the_places_are_all_the_sections_there_are() -> None:
    reached = {section_at(candidate, path)[1] for candidate, path in places()}
    assert reached == set(all_sections(Section)) - {Divergence}


def all_sections(base: type[Section]) -> Iterator[type[Section]]:
    for model in base.__subclasses__():
        if model.__module__.startswith(Spec.__module__):
            yield model
            yield from all_sections(model)


def test_a_key_that_resembles_nothing_answers_with_those_there_are() -> None:
    assert "known: nodes, processes, strategy, shard_teacher" in refusal(values(launch={"qqqq": 1}))


# --- the package ------------------------------------------------------------------------------------------------------

FILES = ("section", "models", "data", "objectives", "stages", "running", "checks", "__init__", "mistakes", "file")
"""A file imports only from those before it."""


@pytest.mark.parametrize("path", sorted(Path(spec.__file__).parent.glob("*.py")), ids=lambda path: path.stem)
def test_imports_inside_the_package_go_one_way(path: Path) -> None:
    below = FILES[: FILES.index(path.stem)]
    for module in re.findall(
        r"^from skill_kd\.spec(?:\.(\w+))? import", path.read_text(encoding="utf-8"), re.MULTILINE
    ):
        assert (module or "__init__") in below


# --- nothing but SpecError --------------------------------------------------------------------------------------------

TEXT = st.text(max_size=8) | st.sampled_from(["\ud800", "{x}", "%s", "\x00", "distill", "minillm", "kind", "model"])
KEYS = TEXT | st.sampled_from(sorted({key for model in all_sections(Section) for key in model.model_fields}))
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT | st.sampled_from([10**400, 2**63]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


def read_or_refused(candidate: object) -> None:
    """Either a spec, or one message that can be printed."""
    try:
        message = parse_spec(candidate).hash
    except SpecError as error:
        message = str(error)
    assert len(message.encode()) < 20_000


@given(ANYTHING)
def test_anything_at_all_is_read_or_refused(candidate: object) -> None:
    read_or_refused(candidate)


@settings(suppress_health_check=[HealthCheck.too_slow])
@example((values(), ()), "", {"\ud800": 2**64})  # the message on the number names the key, which UTF-8 cannot encode
@given(st.sampled_from(list(places())), KEYS, ANYTHING)
def test_anything_at_any_place_is_read_or_refused(
    place: tuple[Values, tuple[str | int, ...]], key: str, anything: object
) -> None:
    candidate, path = deepcopy(place[0]), place[1]
    section_at(candidate, path)[0][key] = anything
    read_or_refused(candidate)


# --- defaults ---------------------------------------------------------------------------------------------------------


def objective_of(spec: Spec) -> MiniLLM:
    objective = spec.stages[-1].objective  # type: ignore[union-attr]
    assert isinstance(objective, MiniLLM)
    return objective


def test_the_default_is_minillm_with_the_papers_estimator() -> None:
    objective = objective_of(parse_spec(values()))
    assert (objective.estimator, objective.teacher_mix) == ("paper", 0.2)
    assert (objective.length_normalization, objective.clip) == (True, 0.2)


def test_exact_defaults_to_what_keeps_it_exact() -> None:
    objective = objective_of(parse_spec(distilling(EXACT, **ON_TIME)))
    assert (objective.teacher_mix, objective.length_normalization, objective.clip) == (0, False, None)


def test_a_value_that_is_given_overrides_the_estimators_default() -> None:
    objective = objective_of(parse_spec(distilling({"kind": "minillm", "clip": None, "teacher_mix": 0})))
    assert (objective.clip, objective.teacher_mix, objective.length_normalization) == (None, 0, True)


@pytest.mark.parametrize("field", ["teacher_mix", "length_normalization", "clip"])
def test_the_documented_default_is_the_papers(field: str) -> None:
    assert getattr(MiniLLM(), field) == MiniLLM.model_fields[field].default


# --- frozen, hashed, round trips --------------------------------------------------------------------------------------


def test_a_spec_cannot_be_changed() -> None:
    spec = parse_spec(values())
    with pytest.raises(ValidationError, match="frozen"):
        spec.name = "other"
    with pytest.raises(ValidationError, match="frozen"):
        spec.training.learning_rate = 1.0
    assert isinstance(spec.stages, tuple)


def reread(document: Values) -> Spec | str:
    """The spec that a written document gives, or why it is refused."""
    try:
        return parse_spec(document)
    except SpecError as error:
        return str(error)


def test_every_objective_survives_being_written_and_read() -> None:
    assert OBJECTIVES
    failures = []
    for model in OBJECTIVES:
        kind = model.model_fields["kind"].default
        spec = parse_spec(distilling({"kind": kind}))
        assert isinstance(spec.stages[0], Distill), kind
        if type(spec.stages[0].objective) is not model:
            failures.append(f"{kind}: is read as {type(spec.stages[0].objective).__name__}")
        again = reread(json.loads(json.dumps(spec.model_dump(mode="json"))))
        if again != spec:
            failures.append(f"{kind}: is read again as {again}")
        elif again.hash != spec.hash:
            failures.append(f"{kind}: has another hash when it is read again")
    assert not failures, "\n".join(failures)


def test_every_spec_survives_being_written_and_read() -> None:
    specs = {name: parse_spec(candidate) for name, candidate in ACCEPTED.items()}
    assert specs
    failures = [
        f"{name}: is read again as {again}"
        for name, spec in specs.items()
        if (again := reread(spec.model_dump(mode="json"))) != spec
    ]
    assert not failures, "\n".join(failures)


def backwards(part: object) -> object:
    """The same with every mapping's keys in the opposite order."""
    if isinstance(part, Mapping):
        return {key: backwards(part[key]) for key in reversed(part)}
    return [backwards(each) for each in part] if isinstance(part, list) else part


def test_the_hash_does_not_depend_on_the_order_of_keys() -> None:
    spec = parse_spec(distilling(EXACT, {"kind": "warm_start", "epochs": 2}, **ON_TIME, seed=7))
    assert parse_spec(backwards(spec.model_dump(mode="json"))).hash == spec.hash


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (values(), values(seed=42, training={"learning_rate": 5e-6}, stages=[{"kind": "distill"}])),
        (values(training={"learning_rate": "5e-6"}), values(training={"learning_rate": 0.000005})),
        (values(rollout={"temperature": 1}), values(rollout={"temperature": 1.0})),
        (values(student={"from_teacher": 24}), values(student={"from_teacher": {"layers": 24}})),
        (values(student={"from_teacher": [0, 1, 29]}), values(student={"from_teacher": {"layers": [0, 1, 29]}})),
        (distilling({"kind": "minillm"}), distilling({"kind": "minillm", "estimator": "paper", "clip": 0.2})),
        (distilling(EXACT, **ON_TIME), distilling({**EXACT, "clip": None, "teacher_mix": 0}, **ON_TIME)),
        (values(handoff=None), values()),
    ],
    ids=["defaults written out", "5e-6", "1 and 1.0", "layers", "kept layers", "paper", "exact", "null"],
)
def test_two_ways_to_say_one_thing_have_one_hash(one: Values, other: Values) -> None:
    assert parse_spec(one).hash == parse_spec(other).hash


@pytest.mark.parametrize(
    "other", [values(seed=1), values(name="b"), values(handoff={}), values(teacher={"model": "org/teacher2"})]
)
def test_another_meaning_has_another_hash(other: Values) -> None:
    assert parse_spec(other).hash != parse_spec(values()).hash


def test_the_hash_is_that_of_the_canonical_json() -> None:
    spec = parse_spec(values(data={"train": "données.jsonl"}))
    text = json.dumps(json.loads(spec.model_dump_json()), sort_keys=True, separators=(",", ":"))
    assert spec.hash == hashlib.sha256(text.encode("ascii")).hexdigest()


# --- what a stage needs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "samples", "reads"),
    [
        (WarmStart(), False, False),
        (WarmStart(objective=ForwardKL()), False, True),
        (Distill(), True, True),
        (Distill(objective=Sft()), False, False),
        (Distill(objective=SequenceKD()), False, False),
        (Distill(objective=ForwardKL()), False, True),
        (Distill(objective=JSD()), True, True),
        (SelfTrain(), True, True),
    ],
)
def test_a_stage_says_whether_it_samples_and_whether_it_reads_probabilities(
    stage: WarmStart | Distill | SelfTrain, samples: bool, reads: bool
) -> None:
    assert on_policy(stage) is samples
    assert reads_teacher(stage) is reads


# --- the schema and the docstrings ------------------------------------------------------------------------------------


def parts_of_the_schema() -> dict[str, Values]:
    schema = Spec.model_json_schema()
    return {"Spec": schema, **schema["$defs"]}


def test_the_schema_admits_no_other_keys_and_describes_those_it_has() -> None:
    parts = parts_of_the_schema()
    assert parts
    failures = []
    for name, part in parts.items():
        if part.get("additionalProperties") is not False:
            failures.append(f"{name} admits other keys")
        if not part.get("description"):
            failures.append(f"{name} needs a docstring")
        for key, value in part["properties"].items():
            described = parts[value["$ref"].rpartition("/")[2]] if "$ref" in value else value
            if not described.get("description"):
                failures.append(f"{name}.{key} needs a docstring")
    assert not failures, "\n".join(failures)


def test_the_schema_knows_the_short_ways_to_name_layers() -> None:
    choices = parts_of_the_schema()["Student"]["properties"]["from_teacher"]["anyOf"]
    assert {choice.get("type") for choice in choices} >= {"integer", "array", "null"}


def test_the_schema_explains_a_kind_where_an_editor_points_at_it() -> None:
    kind = parts_of_the_schema()["MiniLLM"]["properties"]["kind"]
    assert kind["const"] == "minillm"
    assert "arXiv 2306.08543" in kind["description"]


def test_every_objective_cites_its_source_or_its_equation() -> None:
    assert OBJECTIVES
    failures = []
    for model in OBJECTIVES:
        text = model.__doc__ or ""
        if not re.search(r"arXiv \d{4}\.\d{5}", text) and not (model is Sft and "−Σ_t log q(y_t" in text):
            failures.append(f"{model.__name__} cites neither")
    assert not failures, "\n".join(failures)


@pytest.mark.parametrize("name", ["tokenize", "chat_template", "not a name", "class"])
def test_chat_template_options_have_names_a_template_can_read(name: str) -> None:
    assert repr(name) in refusal(values(data={"train": "x.jsonl", "chat_template_options": {name: True}}))


def test_chat_template_options_are_plain_values() -> None:
    accepted = parse_spec(values(data={"train": "x.jsonl", "chat_template_options": {"enable_thinking": False}}))
    assert accepted.data.chat_template_options == {"enable_thinking": False}
    assert "chat_template_options" in refusal(values(data={"train": "x.jsonl", "chat_template_options": {"x": [1]}}))
