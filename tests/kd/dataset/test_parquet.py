"""Parquet files: their rows may take far more memory than the file."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from skill_kd.kd.dataset import parquet
from skill_kd.kd.dataset.reading import read_examples
from skill_kd.kd.errors import BadInput

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

MESSAGE = r"^data '.*' has [\d,]+ bytes, and its rows take more than [\d,]+, the limit for Parquet .*; write .* JSONL$"


def written(path: Path, texts: list[str], **options: object) -> str:
    """Write a file in which each different text is stored once."""
    pq.write_table(pa.table({"prompt": texts}), path, compression="zstd", **options)
    return str(path)


def test_one_long_text_in_many_rows_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "BYTES", 1 << 20)
    source = written(tmp_path / "data.parquet", ["x" * 20_000] * 200)
    assert Path(source).stat().st_size < 2000
    with pytest.raises(BadInput, match=MESSAGE):
        read_examples(source, "train", 1.0)


def test_so_is_a_text_that_the_file_says_is_the_entry_of_a_dictionary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "BYTES", 1 << 20)
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 200), pa.array(["x" * 20_000]))
    pq.write_table(pa.table({"prompt": texts}), tmp_path / "data.parquet")
    with pytest.raises(BadInput, match=MESSAGE):
        read_examples(str(tmp_path / "data.parquet"), "train", 1.0)


def test_too_many_rows_are_refused_before_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "BYTES", 1 << 20)
    source = Path(written(tmp_path / "data.parquet", ["a"] * 20_000))
    content = source.read_bytes()
    source.write_bytes(content[:4] + b"\xff" * 20 + content[24:])  # its rows cannot be read
    with pytest.raises(BadInput, match=MESSAGE):
        read_examples(str(source), "train", 1.0)


@pytest.mark.skipif(sys.platform != "linux", reason="the limit on memory holds on Linux")
def test_one_page_that_takes_all_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "BATCH_BYTES", 1 << 24)
    monkeypatch.setattr(parquet, "BYTES", 1 << 40)
    # Larger than what earlier tests leave free in this process: the limit counts only what is added.
    source = written(tmp_path / "data.parquet", ["x" * (1 << 28)], use_dictionary=False, write_statistics=False)
    with pytest.raises(BadInput, match=MESSAGE):
        read_examples(source, "train", 1.0)


def test_texts_that_repeat_are_read(tmp_path: Path) -> None:
    texts = [f"{'Be brief. ' * 500}{number}" for number in range(1000)]
    source = written(tmp_path / "data.parquet", texts)
    assert [example.messages[0][1] for example in read_examples(source, "train", 0.0)] == texts
