"""From a run's checkpoint to published files, without devices: of the weights one tensor is held at a time."""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxscale import config as cfg
from jaxscale.checkpoint.stored import Stored
from jaxscale.config.families import family_of
from jaxscale.config.published import as_theirs
from jaxscale.data.chat import CONFIG, GENERATION, IDS, read_kept
from jaxscale.files.places import HALF_WRITTEN
from jaxscale.interop import tensors
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
    averaged: bool
    tokenizer: bool


def export(
    run: Path, out: Path, *, step: int | None = None, dtype: str = "bfloat16", most: int = 5 * 10**9
) -> Exported:
    """Write the newest checkpoint of a run (or `step`) as files that `transformers` reads.

    A directory that is half-written has another name, so nothing takes it for a whole one.

    Args:
        most: bytes of a file.

    Raises:
        ValueError: `out` is there, the model is of no known family, or a disk is full.
    """
    if dtype not in DTYPES:
        raise ValueError(f"--dtype {dtype}: it is one of {', '.join(DTYPES)}")
    if out.exists():
        raise ValueError(f"{out} is there already; give a directory that is not")
    stored = Stored(run, step)
    model = cfg.validate({**stored.config, "out": str(run)}, source=str(run)).model
    codec = run_tokenizer(run, None) if (run / "tokenizer-identity.json").is_file() else None
    separator = codec.separator_id if codec else None
    chat = read_kept(run, codec.fingerprint) if codec else None
    family = family_of(model)
    config = as_theirs(model, dtype=dtype, separator=separator)
    generation: dict[str, Any] = {"bos_token_id": separator, "eos_token_id": separator}
    if chat:
        generation |= chat.generation
        config |= {name: chat.generation[name] for name in IDS if name in chat.generation}
    half = out.with_name(f"{out.name}{HALF_WRITTEN}")
    shutil.rmtree(half, ignore_errors=True)
    try:
        half.mkdir(parents=True)
        files, size = write_weights(half, family, model, stored, DTYPES[dtype], most)
        write_json(half / "config.json", config)
        write_json(half / GENERATION, generation)
        saved = codec.save(half) if codec else None
        if codec and saved:
            about = {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": codec.separator,
                "eos_token": codec.separator,
            }
            write_json(half / CONFIG, chat.config if chat else about)
        os.replace(half, out)
    except OSError as error:
        shutil.rmtree(half, ignore_errors=True)
        raise ValueError(f"cannot write {out}: {error.strerror or error}; nothing of it is left") from error
    return Exported(stored.step, family, files, size, bool(stored.decay), saved is not None)


def write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_weights(
    directory: Path, family: str, model: cfg.Model, stored: Stored, dtype: np.dtype, most: int
) -> tuple[list[str], int]:
    """The weights in files of at most `most` bytes, and the index of several. Returns their names and bytes."""
    every, total = Tensors(family, model), 0

    def read(row: Row, place: tuple[int, ...]) -> np.ndarray:
        block = stored.block(row.path, tuple(slice(i, i + 1) for i in place))
        return block.reshape(block.shape[len(place) :])

    groups = tensors.shards(every.shapes, dtype, most)
    names = tensors.file_names(len(groups))
    for name, wanted in zip(names, groups, strict=True):
        own = {tensor: every.shapes[tensor] for tensor in wanted}
        total += tensors.write(directory / name, own, dtype, every.written(wanted, read, dtype))
    if len(names) > 1:
        (directory / tensors.INDEX).write_text(tensors.index_of(zip(names, groups, strict=True), total))
    return names, total
