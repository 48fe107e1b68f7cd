"""safetensors files (https://github.com/huggingface/safetensors): tensors as slices of mapped memory, and a writer.

A file is the length of its header, 8 bytes; the header, JSON; and the tensors' bytes one after the other. Reading maps
a file, so that what is not looked at is not read. The numpy part of the library of that name knows no bfloat16.
"""

import itertools
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxscale.files.reading import parse_json

FLOATS = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
DTYPES = FLOATS | {"U8": np.uint8, "F8_E4M3": ml_dtypes.float8_e4m3fn}  # the others are of quantised tensors
NAMES = {np.dtype(dtype): name for name, dtype in FLOATS.items()}
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
LONGEST_HEADER = 100_000_000  # bytes, as the library has it


@dataclass(frozen=True)
class Place:
    """Where a tensor is: its file, the byte there, dtype and shape."""

    path: Path
    start: int
    dtype: np.dtype
    shape: tuple[int, ...]

    def read(self) -> np.ndarray:
        """All of it, mapped."""
        if not math.prod(self.shape):
            return np.zeros(self.shape, self.dtype)
        return np.memmap(self.path, self.dtype, "r", self.start, self.shape)


def tensors(directory: Path) -> dict[str, Place]:
    """Every tensor of a model's files by its name. Raises ValueError for files that are not whole."""
    index = directory / INDEX
    if not index.is_file():
        if not (directory / SINGLE).is_file():
            raise ValueError(f"{directory} has no {SINGLE} and no {INDEX}; give a directory of safetensors files")
        return places(directory / SINGLE)
    try:
        wanted = parse_json(index.read_text(encoding="utf-8"))["weight_map"]
        files = sorted(set(wanted.values()))
        bad = [name for name in files if not isinstance(name, str) or Path(name).name != name]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is damaged ({type(error).__name__}: {error})") from None
    if bad:
        raise ValueError(f"{index}: {bad[0]} is no name of a file beside it")
    by_name: dict[str, Place] = {}
    for name in files:
        by_name |= places(directory / name)
    if missing := sorted(set(wanted) - set(by_name)):
        raise ValueError(f"{index} names {missing[0]}, which none of its files has")
    return by_name


def places(path: Path) -> dict[str, Place]:
    """Of one file."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or not 2 <= length <= min(size - 8, LONGEST_HEADER):
                raise ValueError(f"a header of {length:,} bytes in a file of {size:,}")
            header = parse_json(file.read(length).decode("utf-8"))
        if not isinstance(header, dict):
            raise ValueError("its header is no table")
        entries = {name: about for name, about in header.items() if name != "__metadata__"}
        by_name = {name: place(path, name, about, 8 + length, size) for name, about in entries.items()}
        require_apart(entries)
        return by_name
    except FileNotFoundError:
        raise ValueError(f"{path} is missing") from None
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None


def place(path: Path, name: str, about: Any, begin: int, size: int) -> Place:
    try:
        dtype, shape, (start, end) = about["dtype"], tuple(about["shape"]), about["data_offsets"]
        numbers = (*shape, start, end)
        if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in numbers):
            raise TypeError
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{name} has no dtype, shape and data_offsets") from None
    if dtype not in DTYPES:
        raise ValueError(f"{name} is {dtype}; weights are {', '.join(DTYPES)}, and other quantised files are not read")
    kind = np.dtype(DTYPES[dtype])
    if end - start != math.prod(shape) * kind.itemsize or begin + end > size:
        raise ValueError(f"{name}, {dtype}{list(shape)}, cannot be bytes {start:,} to {end:,} of {size - begin:,}")
    return Place(path, begin + start, kind, shape)


def require_apart(entries: Mapping[str, Any]) -> None:
    """No two tensors share bytes."""
    ranges = sorted((*about["data_offsets"], name) for name, about in entries.items())
    for (_, end, name), (start, _, other) in itertools.pairwise(ranges):
        if start < end:
            raise ValueError(f"{name} and {other} share bytes")


# --- writing --------------------------------------------------------------------------------------------------

Shape = tuple[int, ...]


def shards(shapes: Mapping[str, Shape], dtype: np.dtype, most: int) -> list[list[str]]:
    """Names of tensors by file, in their order; a file has at most so many bytes, or one tensor."""
    files: list[list[str]] = [[]]
    room = most
    for name, shape in shapes.items():
        size = math.prod(shape) * dtype.itemsize
        if files[-1] and size > room:
            files.append([])
            room = most
        files[-1].append(name)
        room -= size
    return files


def file_names(number: int) -> list[str]:
    return [SINGLE] if number == 1 else [f"model-{i + 1:05}-of-{number:05}.safetensors" for i in range(number)]


def write(path: Path, shapes: Mapping[str, Shape], dtype: np.dtype, arrays: Iterator[np.ndarray]) -> int:
    """One file: its header, then the tensors one by one. Returns their bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, shape in shapes.items():
        size = math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of 8
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for (name, shape), array in zip(shapes.items(), arrays, strict=True):
            assert (array.shape, array.dtype) == (shape, dtype), (name, array.shape, array.dtype)
            file.write(np.ascontiguousarray(array).view(np.uint8).data if array.size else b"")
        file.flush()
        os.fsync(file.fileno())
    return at


def index_of(files: Iterable[tuple[str, list[str]]], total: int) -> str:
    """The JSON that says which file has which tensor."""
    weights = {tensor: name for name, tensors in files for tensor in tensors}
    return json.dumps({"metadata": {"total_size": total}, "weight_map": weights}, indent=2, sort_keys=True) + "\n"
