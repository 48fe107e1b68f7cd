"""Compressed files read as what they hold. Knows nothing of what that is."""

import bz2
import gzip
import io
import lzma
import zlib
from typing import IO, Any, cast

SUFFIXES = (".gz", ".zst", ".bz2", ".xz")
ARCHIVES = (".zip", ".tar", ".tgz", ".tbz2", ".txz", ".7z", ".rar", *(f".tar{suffix}" for suffix in SUFFIXES))
CHUNK_BYTES = 2**17
_ZSTD_FRAMES = (b"\x28\xb5\x2f\xfd", *(bytes([low, 0x2A, 0x4D, 0x18]) for low in range(0x50, 0x60)))  # and skippable


def without_compression(name: str) -> str:
    """``name`` in lower case, without the suffix of a compression."""
    name = name.lower()
    return next((name.removesuffix(suffix) for suffix in SUFFIXES if name.endswith(suffix)), name)


def decompressed(raw: io.BufferedReader, name: str) -> IO[bytes]:
    """The contents of ``raw`` by its first bytes, as a server or a program may have changed file or name.

    No UTF-8 text begins as gzip, zstd or xz do; bzip2 must have its suffix too.

    Raises:
        ValueError: zstd without the package that reads it. What is damaged raises ``failures`` while it is read.
    """
    start = raw.peek(8)[:8]
    if start.startswith(b"\x1f\x8b"):
        return cast(IO[bytes], gzip.GzipFile(fileobj=raw))
    if start.startswith(b"\xfd7zXZ\0"):
        return lzma.LZMAFile(raw)
    if start.startswith(b"BZh") and name.lower().endswith(".bz2"):
        return bz2.BZ2File(raw)
    if start.startswith(_ZSTD_FRAMES):
        return io.BufferedReader(ZstdFile(raw), CHUNK_BYTES)
    return raw


def failures() -> tuple[type[Exception], ...]:
    """What reading a damaged file raises."""
    known: tuple[type[Exception], ...] = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)
    try:
        import zstandard
    except ImportError:
        return known
    return (*known, zstandard.ZstdError)


class ZstdFile(io.RawIOBase):
    """All frames of a zstd file; EOFError where the last one is cut short, at which the package's reader just ends."""

    def __init__(self, raw: io.BufferedReader):
        try:
            import zstandard
        except ImportError:
            raise ValueError(
                ".zst files need the package zstandard, which is not installed; pip install zstandard"
            ) from None
        # Corpora are often made with --long=31: windows of 2 GiB.
        self._new_frame = zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj
        self._raw, self._frame = raw, cast(Any, None)
        self._compressed = self._plain = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._plain:
            compressed = self._compressed or self._raw.read(CHUNK_BYTES)
            if not compressed:
                if self._frame is not None:
                    raise EOFError("the file ends within a frame")
                return 0
            self._frame = self._frame or self._new_frame()
            self._plain, self._compressed = self._frame.decompress(compressed), b""
            if self._frame.eof:
                self._compressed, self._frame = self._frame.unused_data, None
        part = self._plain[: len(buffer)]
        buffer[: len(part)] = part
        self._plain = self._plain[len(part) :]
        return len(part)
