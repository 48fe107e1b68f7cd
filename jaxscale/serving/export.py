"""From a run's checkpoint to published files, without devices: of the weights one tensor is held at a time.

What LoRA has learnt is added to its matrices, or written by itself as an adapter.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxscale import config as cfg
from jaxscale.checkpoint.stored import Stored
from jaxscale.config import PUBLISHED
from jaxscale.config.families import family_of
from jaxscale.config.published import as_theirs
from jaxscale.files.places import HALF_WRITTEN
from jaxscale.interop import adapter, tensors
from jaxscale.interop.adapter import base_of
from jaxscale.interop.tables import Row
from jaxscale.interop.weights import Tensors
from jaxscale.serving.serve import run_tokenizer

DTYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float32": np.dtype(np.float32), "float16": np.dtype(np.float16)}


@dataclass(frozen=True)
class Exported:
    """What was written."""

    step: int
    family: str
    files: list[str]
    bytes: int
    dtype: str
    averaged: bool
    tokenizer: bool


def export(
    run: Path,
    out: Path,
    *,
    step: int | None = None,
    dtype: str | None = None,
    most: int = 5 * 10**9,
    only_adapter: bool = False,
) -> Exported:
    """Write the newest checkpoint of a run (or `step`) as files that `transformers` reads.

    A directory that is half-written has another name, so nothing takes it for a whole one.

    Args:
        most: bytes of a file.
        dtype: of what is written; None: bfloat16, and of an adapter float32.
        only_adapter: LoRA's matrices alone, as PEFT reads them.

    Raises:
        ValueError: `out` is there, the run has no LoRA to write by itself, the model is of no known family, or a disk
            is full.
    """
    dtype = dtype or ("float32" if only_adapter else "bfloat16")
    if dtype not in DTYPES:
        raise ValueError(f"--dtype {dtype}: it is one of {', '.join(DTYPES)}")
    if out.exists():
        raise ValueError(f"{out} is there already; give a directory that is not")
    stored = Stored(run, step)
    model = cfg.validate({**stored.config, "out": str(run)}, source=str(run)).model
    if only_adapter:
        return write_adapter(out, model, stored, dtype)
    codec = run_tokenizer(run, None) if (run / "tokenizer-identity.json").is_file() else None
    separator = codec.separator_id if codec else None
    family = family_of(base_of(model))
    config = as_theirs(base_of(model), dtype=dtype, separator=separator)
    with half_written(out) as half:
        files, size = write_weights(half, family, model, stored, DTYPES[dtype], most)
        write_json(half / "config.json", config)
        write_json(half / "generation_config.json", {"bos_token_id": separator, "eos_token_id": separator})
        saved = codec.save(half) if codec else None
        if codec and saved:
            about = {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": codec.separator,
                "eos_token": codec.separator,
            }
            write_json(half / "tokenizer_config.json", about)
    return Exported(stored.step, family, files, size, dtype, bool(stored.decay), saved is not None)


@contextlib.contextmanager
def half_written(out: Path) -> Iterator[Path]:
    """A directory to write in, which becomes `out` at the end; of one that could not be written nothing is left."""
    half = out.with_name(f"{out.name}{HALF_WRITTEN}")
    shutil.rmtree(half, ignore_errors=True)
    try:
        half.mkdir(parents=True)
        yield half
        os.replace(half, out)
    except OSError as error:
        shutil.rmtree(half, ignore_errors=True)
        raise ValueError(f"cannot write {out}: {error.strerror or error}; nothing of it is left") from error


def write_adapter(out: Path, model: cfg.Model, stored: Stored, dtype: str) -> Exported:
    """LoRA's matrices alone, as PEFT has them."""
    if model.lora is None:
        raise ValueError("--adapter: the run has no model.lora; leave --adapter out, which exports the whole model")
    family = family_of(base_of(model))
    rows = adapter.matrix_rows(family, model)
    base = (stored.config["init"].get("from") or "").removeprefix(PUBLISHED) or None

    def read(path: tuple[str, ...], layer: int) -> np.ndarray:
        return stored.block(path, (slice(layer, layer + 1),))[0]

    with half_written(out) as half:
        write_json(half / adapter.CONFIG, adapter.config_values(rows, model, base))
        shapes, arrays = adapter.tensor_shapes(rows, model), adapter.arrays(rows, model, read)
        each = (x.astype(DTYPES[dtype]) for x in arrays)
        size = tensors.write(half / adapter.TENSORS, shapes, DTYPES[dtype], each)
    return Exported(stored.step, family, [adapter.TENSORS], size, dtype, bool(stored.decay), False)


def write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n")


def write_weights(
    directory: Path, family: str, model: cfg.Model, stored: Stored, dtype: np.dtype, most: int
) -> tuple[list[str], int]:
    """The weights in files of at most `most` bytes, and the index of several. Returns their names and bytes."""
    every, total = Tensors(family, base_of(model)), 0
    adapted = model.lora.on if model.lora else ()

    def one(path: tuple[str, ...], place: tuple[int, ...]) -> np.ndarray:
        block = stored.block(path, tuple(slice(i, i + 1) for i in place))
        return block.reshape(block.shape[len(place) :])

    def read(row: Row, place: tuple[int, ...]) -> np.ndarray:
        if row.weight not in adapted:
            return one(row.path, place)
        a, b = (one(path, place) for path in adapter.pair_paths(row))
        return adapter.merged(row, one(row.path, place), a, b, model)

    groups = tensors.shards(every.shapes, dtype, most)
    names = tensors.file_names(len(groups))
    for name, wanted in zip(names, groups, strict=True):
        own = {tensor: every.shapes[tensor] for tensor in wanted}
        total += tensors.write(directory / name, own, dtype, every.written(wanted, read, dtype))
    if len(names) > 1:
        (directory / tensors.INDEX).write_text(tensors.index_of(zip(names, groups, strict=True), total))
    return names, total
