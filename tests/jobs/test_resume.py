"""The allowed differences between a run and the spec that resumes it: processes, and more updates in the last stage."""

from __future__ import annotations

import importlib.util
import py_compile
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from skill_kd import plugins
from skill_kd.cli import main
from skill_kd.errors import ExitCode, SpecError, UsageError
from skill_kd.jobs import run as runner
from skill_kd.jobs.job import generate, prepare
from skill_kd.jobs.manifest import Manifest
from skill_kd.jobs.resume import earlier
from skill_kd.jobs.run import run, run_script
from skill_kd.render import is_edited, read_config, read_stamp
from skill_kd.spec import Spec
from skill_kd.spec.file import parse_spec
from skill_kd.testing import FakeBackend

WARM = {"kind": "warm_start", "objective": {"kind": "sft"}, "epochs": 1}


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(plugins, "backends", lambda: {"fake": FakeBackend()})
    monkeypatch.chdir(tmp_path)


def spec_of(updates: int, *more: dict[str, Any], **changes: Any) -> Spec:
    stage = {"kind": "distill", "updates": updates, "objective": {"kind": "reverse_kl"}}
    values = {"name": "demo", "backend": "fake", "teacher": {"model": "t"}, "student": {"model": "s"}}
    data = {"train": "prompts.jsonl"}
    return parse_spec({**values, "data": data, "stages": [*more, stage], **changes})


def done(spec: Spec) -> Path:
    """A finished run of ``spec``, with a checkpoint."""
    folder = run(spec).folder
    (folder / "checkpoints" / "0-00000004").mkdir(parents=True)
    return folder


def starts(folder: Path) -> int:
    return (folder / "metrics.jsonl").read_text().count('"done"')


@pytest.mark.parametrize("warm", [(), (WARM,)])
def test_a_finished_run_continues_to_more_updates(warm: tuple[dict[str, Any], ...]) -> None:
    folder, more = done(spec_of(4, *warm)), spec_of(6, *warm)
    before = (folder / "train.py").read_text()
    run(more, resume=True)
    after = (folder / "train.py").read_text()
    assert starts(folder) == 2
    assert parse_spec({**read_config(after), "backend": "fake"}) == more
    assert yaml.safe_load((folder / "spec.yaml").read_text()) == more.model_dump(mode="json")
    assert read_stamp(after).spec == Manifest.read(folder).spec_hash == more.hash
    assert not is_edited(after)
    changed = [pair for pair in zip(before.split("\n"), after.split("\n"), strict=True) if len({*pair}) == 2]
    assert len(changed) == 3  # two hashes of the stamp, and the number
    run(more, resume=True)
    assert starts(folder) == 2


def test_a_stopped_run_continues_to_more_updates_too() -> None:
    folder = done(spec_of(4))
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text.replace('"done"', '"interrupted"'))
    run(spec_of(6), resume=True)
    assert Manifest.read(folder).spec_hash == spec_of(6).hash


@pytest.mark.parametrize(
    ("schedule", "words"), [("cosine", "follows the cosine over all 6, so it rises"), ("constant", "stays as it is")]
)
def test_resume_with_more_updates_describes_the_learning_rate(
    schedule: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    done(spec_of(4, training={"schedule": schedule}))
    values = spec_of(6, training={"schedule": schedule}).model_dump(mode="json")
    Path("more.yaml").write_text(yaml.safe_dump(values))
    assert main(["run", "more.yaml", "--resume"]) == ExitCode.OK
    said = capsys.readouterr().err
    assert "'demo': the last stage has 6 updates now, not 4; the learning rate" in said
    assert words in said


@pytest.mark.parametrize(
    "asked",
    [spec_of(3), spec_of(6, seed=7), spec_of(6, WARM), spec_of(6, training={"learning_rate": 0.5})],
    ids=["fewer updates", "another seed", "another stage", "another rate"],
)
def test_a_finished_run_of_another_spec_is_refused_with_the_way_to_train_further(asked: Spec) -> None:
    folder = done(spec_of(4))
    before = (folder / "train.py").read_text()
    with pytest.raises(
        SpecError, match=r"the difference is in .*; to train its student .* student\.model: runs/demo/student"
    ):
        run(asked, resume=True)
    assert (folder / "train.py").read_text() == before


def test_without_a_checkpoint_the_refusal_says_how_to_start_from_the_student() -> None:
    folder = done(spec_of(4))
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(UsageError, match=r"has no checkpoint to continue from; .* student\.model: runs/demo/student"):
        run(spec_of(6), resume=True)


def test_a_generated_script_with_more_updates_continues_its_run() -> None:
    script, _ = generate(spec_of(4), Path("out"))
    folder = run_script(script).folder
    (folder / "checkpoints" / "0-00000004").mkdir(parents=True)
    generate(spec_of(6), Path("out"))
    assert run_script(script, resume=True).folder == folder
    assert (folder / "train.py").read_bytes() == script.read_bytes()


def test_a_kill_while_the_files_are_written_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = done(spec_of(4))

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(runner, "lengthen", killed)
        with pytest.raises(KeyboardInterrupt):
            run(spec_of(6), resume=True)
    assert run(spec_of(6), resume=True).folder == folder
    assert read_stamp((folder / "train.py").read_text()).spec == spec_of(6).hash


# --- an edited kd/ ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("edit", ["changed", "added", "removed"])
def test_an_edited_kd_is_not_resumed(edit: str) -> None:
    folder = done(spec_of(4))
    file = folder / "kd" / ("new.py" if edit == "added" else "seeds.py")
    file.unlink() if edit == "removed" else file.write_text("# mine\n")
    for spec in (spec_of(4), spec_of(6)):
        with pytest.raises(UsageError, match=r"'runs/demo/kd/' was edited since .* to run the edited script: .*NEW"):
            earlier(prepare(spec), resume=True)


def test_caches_of_python_are_not_edits() -> None:
    folder = done(spec_of(4))
    (folder / "kd" / "__pycache__").mkdir(exist_ok=True)
    (folder / "kd" / "__pycache__" / "seeds.pyc").touch()
    assert earlier(prepare(spec_of(4)), resume=True) is not None


def test_run_of_an_edited_kd_resumes_only_with_that_kd() -> None:
    script, kd = generate(spec_of(4), Path("out"))
    (kd / "seeds.py").write_text("# mine\n")
    folder = run_script(script).folder
    assert Manifest.read(folder).edited
    assert run_script(script, resume=True).folder == folder
    (kd / "seeds.py").write_text("# mine again\n")
    with pytest.raises(UsageError, match=r"'runs/demo/kd' differs from 'out/kd'"):
        run_script(script, resume=True)


# --- code that no hash covers -----------------------------------------------------------------------------------------


def test_modules_next_to_the_script_do_not_run(tmp_path: Path) -> None:
    folder = done(spec_of(4))
    shutil.rmtree(folder / "student")
    (folder / "signal.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'a').close()")
    with pytest.raises(UsageError, match=r"would import 'runs/demo/signal\.py' instead of an installed package"):
        run(spec_of(4), resume=True)
    assert starts(folder) == 1
    assert not (tmp_path / "ran").exists()


def test_compiled_modules_of_other_sources_do_not_run(tmp_path: Path) -> None:
    folder = done(spec_of(4))
    shutil.rmtree(folder / "student")
    source = tmp_path / "other.py"
    source.write_text(f"open({str(tmp_path / 'ran')!r}, 'a').close()")
    cache = importlib.util.cache_from_source(str(folder / "kd" / "config.py"))
    # Python runs such a file without a look at the source.
    py_compile.compile(str(source), cache, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    run(spec_of(4), resume=True)
    assert starts(folder) == 2
    assert not (tmp_path / "ran").exists()
