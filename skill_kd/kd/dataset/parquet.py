"""Rows of a Parquet file, with a limit on their size: a small file may hold one long text a billion times."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from ..errors import BadInput
from ..files import open_input
from ..limits import limited_memory, size_of

BYTES = 1 << 27
"""Bytes that all rows together may take, plus ``PER_BYTE`` for each byte of the file."""
PER_BYTE = 100
"""Text rarely compresses to less than a twentieth of its size."""
BATCH = 100
"""Rows that are read at once."""
BATCH_BYTES = 1 << 29
"""Memory that reading them may add."""
ROW = 200
"""Bytes that a row takes at least."""


def parquet_rows(path: Path) -> Iterator[dict[str, object]]:
    """Yield the rows of a Parquet file.

    Raises:
        BadInput: the rows take much more memory than the file. The message has the limit.
        OSError, pyarrow.ArrowException: the file cannot be read.
    """
    from pyarrow import parquet, set_memory_pool, system_memory_pool

    # Arrow's own allocator reserves 1 GiB at once. A limit on memory would not count what is allocated there.
    set_memory_pool(system_memory_pool())
    with open_input(path) as file:
        left = most = BYTES + PER_BYTE * os.fstat(file.fileno()).st_size
        try:
            with limited_memory(BATCH_BYTES):
                table = parquet.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20)
            stated = table.metadata
            sizes = (stated.row_group(index).total_byte_size for index in range(stated.num_row_groups))
            if max(ROW * stated.num_rows, sum(sizes)) > most:
                raise _too_large(path, most)
            batches = table.iter_batches(BATCH, use_threads=False)
            while True:
                with limited_memory(BATCH_BYTES):
                    batch = next(batches, None)
                    rows = [] if batch is None else batch.to_pylist()
                if not rows:
                    return
                left -= sum(ROW + size_of(row) for row in rows)
                if left < 0:
                    raise _too_large(path, most)
                yield from rows
        except MemoryError as error:
            raise _too_large(path, BATCH_BYTES) from error


def _too_large(path: Path, most: int) -> BadInput:
    return BadInput(
        f"data '{path}' has {path.stat().st_size:,} bytes, and its rows take more than {most:,}, the limit for Parquet "
        "of this size; write the rows as JSONL"
    )
