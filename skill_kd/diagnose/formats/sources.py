"""Read a file as blocks of lines. Handles compression and encodings.

A file is read once, forward, in chunks, so memory does not grow with its size. Only ``\\n`` ends a line: a JSON string
may contain the other line ends of Unicode.
"""

from __future__ import annotations

import codecs
import gzip
import io
import itertools
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from skill_kd.diagnose.formats.lines import BLOCK, Block, split
from skill_kd.errors import MissingRequirementError, UsageError, command
from skill_kd.files import open_input


class LogSource:
    """One file, or ``-`` for stdin. ``blocks`` reads it once."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.notes: list[str] = []
        """Problems that did not stop the reading."""
        self.read = 0
        """Bytes of the file read so far; 0 for a pipe."""

    def blocks(self) -> Iterator[Block]:
        """Yield the source's lines.

        Raises:
            UsageError: it cannot be opened, or is not text.
            MissingRequirementError: it is compressed with zstd and no package for it is installed.
        """
        try:
            with self._opened() as raw:
                yield from self._text_blocks(raw)
        except OSError as error:
            raise UsageError(f"cannot read log '{self.path}': {error.strerror or error}") from error

    def _opened(self) -> IO[bytes]:
        if self.path == "-":
            return io.BufferedReader(io.FileIO(sys.stdin.fileno(), closefd=False), BLOCK)
        if Path(self.path).is_dir():
            raise UsageError(f"log '{self.path}' is a folder; pass its files: {command(Path(self.path))}/*.jsonl")
        if self.path == "/dev/stdin" or self.path.startswith(("/dev/fd/", "/proc/self/fd/")):  # as of <(zcat log.gz)
            return open(self.path, "rb", buffering=BLOCK)
        return open_input(Path(self.path), BLOCK)

    def _text_blocks(self, raw: Any) -> Iterator[Block]:
        chunks = _in_utf8(self._survived(_unpacked(raw, self.path)), self.path)
        head = next(chunks, b"")
        while len(head) < 4096 and (more := next(chunks, b"")):
            head += more
        if head.strip():
            for block in split(head, itertools.chain([head], chunks), self.path):
                self.read = raw.tell() if raw.seekable() else 0
                yield block
        else:
            self.notes.append(f"'{self.path}' is empty")

    def _survived(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        """Yield the readable part of a damaged or truncated compressed file."""
        some: list[bytes] = []
        try:
            for chunk in chunks:  # decompressed chunks are small
                some.append(chunk)
                if len(chunk) >= BLOCK // 4 or len(some) >= 64:
                    yield b"".join(some)
                    some = []
        except (EOFError, gzip.BadGzipFile, zlib.error, _ZstdError) as error:
            self.notes.append(
                f"'{self.path}' is damaged or cut off ({error}); only the part before the damage was read"
            )
        yield b"".join(some)


# --- bytes ------------------------------------------------------------------------------------------------------------


class _ZstdError(Exception):
    """The errors of the zstd packages, under one name."""


def _unpacked(raw: Any, path: str) -> Iterator[bytes]:
    magic = raw.peek(4)[:4]
    if magic[:2] == b"\x1f\x8b":
        raw = gzip.GzipFile(fileobj=raw)
    elif magic == b"\x28\xb5\x2f\xfd":
        yield from _zstd(raw, path)
        return
    while chunk := raw.read1(BLOCK):
        yield chunk


def _zstd(raw: Any, path: str) -> Iterator[bytes]:
    try:
        from compression import zstd  # type: ignore[import-not-found,unused-ignore]

        error: type[Exception] = zstd.ZstdError
        stream = zstd.open(raw, "rb")
    except ImportError:
        try:
            import zstandard  # type: ignore[import-not-found,unused-ignore]
        except ImportError:
            raise MissingRequirementError(
                f"log '{path}' is compressed with zstd, which needs a package: pip install zstandard"
            ) from None
        error, stream = zstandard.ZstdError, zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True)
    try:
        while chunk := stream.read(BLOCK):
            yield chunk
    except error as damage:
        raise _ZstdError(str(damage)) from damage


def _in_utf8(chunks: Iterator[bytes], path: str) -> Iterator[bytes]:
    head = next(chunks, b"")
    while len(head) < 4 and (more := next(chunks, b"")):
        head += more
    encoding = _encoding(head)
    if encoding:
        decode = codecs.getincrementaldecoder(encoding)("replace").decode
        for chunk in itertools.chain([head], chunks):
            yield decode(chunk).removeprefix("\ufeff").encode("utf-8", "replace")
        return
    if b"\x00" in head[:4096]:
        raise UsageError(f"log '{path}' is a binary file; export the log as JSON lines")
    yield head.removeprefix(codecs.BOM_UTF8)
    yield from chunks


def _encoding(head: bytes) -> str | None:
    if head[:4] in (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE):
        return "utf-32"
    if head[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return "utf-16"
    # Without a byte order mark: JSON begins with ASCII, so every other byte is zero.
    start = head[:4]
    if len(start) == 4 and start[1] == start[3] == 0 and start[0] and start[2]:
        return "utf-16-le"
    if len(start) == 4 and start[0] == start[2] == 0 and start[1] and start[3]:
        return "utf-16-be"
    return None
