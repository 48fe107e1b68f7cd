"""From a run's checkpoint to published files, without devices: of the weights one tensor is held at a time.

Several processes share the files: process i writes files i, i + n, ... Process 0 writes what makes them a model, last.
What LoRA has learnt is added to its matrices, or written by itself as an adapter.
"""

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxscale import config as cfg
from jaxscale.blueprint.decoder import decoder
from jaxscale.checkpoint.stored import Stored
from jaxscale.config import PUBLISHED
from jaxscale.config.families import family_of
from jaxscale.config.published import as_theirs
from jaxscale.data.chat import CONFIG, GENERATION, IDS, OWN, PIECES, read_kept
from jaxscale.data.tokenizer import Tokenizer
from jaxscale.files.places import HALF_WRITTEN
from jaxscale.files.whole import write_whole
from jaxscale.interop import adapter, tensors
from jaxscale.interop.adapter import base_of
from jaxscale.interop.tables import Row, found_at
from jaxscale.interop.weights import Read, Tensors
from jaxscale.serving.serve import run_tokenizer

DTYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float32": np.dtype(np.float32), "float16": np.dtype(np.float16)}
ABOUT = "export.json"  # of a directory that is half-written: what is written there
PART = ".part"  # ends the name of a file that is half-written
POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Share:
    """Which part of the files a process writes. Raises ValueError for a number that is out of range.

    Attributes:
        wait: seconds without progress of the others after which process 0 gives up.
    """

    process: int = 0
    processes: int = 1
    wait: float = 600.0

    def __post_init__(self) -> None:
        if not 0 <= self.process < self.processes:
            raise ValueError(
                f"--process {self.process} --processes {self.processes}: processes are counted from 0 to "
                f"{self.processes - 1}"
            )


ALONE = Share()


@dataclass(frozen=True)
class Files:
    """The files of an export, from the model alone: what one process holds and writes.

    Attributes:
        groups: names of tensors by file. `largest`: a tensor's name, and its bytes as they are written.
        bytes: of each file, without its header.
    """

    names: list[str]
    groups: list[list[str]]
    bytes: list[int]
    largest: tuple[str, int]

    def of(self, share: Share) -> range:
        """Numbers of the files that a process writes."""
        return range(share.process, len(self.names), share.processes)

    def seconds(self, processes: int, bytes_per_second: float) -> float:
        """Of the process with most to write, at a rate of each."""
        shares = (sum(self.bytes[i::processes]) for i in range(processes))
        return max(shares) / bytes_per_second


def files_of(every: Tensors, dtype: str, most: int) -> Files:
    """How a model's tensors are laid out in files of at most `most` bytes."""
    kind = DTYPES[dtype]
    sizes = {name: int(np.prod(shape, dtype=np.int64)) * kind.itemsize for name, shape in every.shapes.items()}
    groups = tensors.shards(every.shapes, kind, most)
    largest = max(sizes.items(), key=lambda item: item[1])
    return Files(tensors.file_names(len(groups)), groups, [sum(sizes[n] for n in group) for group in groups], largest)


@dataclass(frozen=True)
class Exported:
    """What was written; `finished` is false of a process that leaves the end to process 0."""

    step: int
    family: str
    files: list[str]
    bytes: int
    dtype: str
    averaged: bool
    tokenizer: bool
    finished: bool = True


def export(
    run: Path,
    out: Path,
    *,
    step: int | None = None,
    dtype: str | None = None,
    most: int = 5 * 10**9,
    share: Share = ALONE,
    only_adapter: bool = False,
) -> Exported:
    """Write the newest checkpoint of a run (or `step`) as files that `transformers` reads.

    A directory that is half-written has another name, so nothing takes it for a whole one. Files that are whole in it
    are kept: an export that was killed goes on.

    Args:
        most: bytes of a file.
        dtype: of what is written; None: bfloat16, and of an adapter float32.
        only_adapter: LoRA's matrices alone, as PEFT reads them, by one process.

    Raises:
        ValueError: `out` is there, the run has no LoRA to write by itself, the model is of no known family, another
            export was begun, others do not come, or a disk is full.
    """
    dtype = dtype or ("float32" if only_adapter else "bfloat16")
    if dtype not in DTYPES:
        raise ValueError(f"--dtype {dtype}: it is one of {', '.join(DTYPES)}")
    if out.exists() and not share.process:
        raise ValueError(f"{out} already exists; give a new directory")
    stored = Stored(run, step)
    model = cfg.validate({**stored.config, "out": str(run)}, source=str(run)).model
    if model.score:
        raise ValueError(f"{run} is a reward model, and only models of tokens are exported; `jaxscale reward` uses it")
    if only_adapter:
        return write_adapter(out, model, stored, dtype, share)
    codec = run_tokenizer(run, None) if (run / "tokenizer-identity.json").is_file() else None
    base = base_of(model)
    family, beside = family_of(base), beside_weights(run, base, codec, dtype)
    every = Tensors(family, base)
    files = files_of(every, dtype, most)
    about = {"run": str(run.absolute()), "step": stored.step, "dtype": dtype, "files": files.names, "beside": beside}
    half = out.with_name(f"{out.name}{HALF_WRITTEN}")
    numbers = files.of(share)
    if out.exists() and numbers:
        raise ValueError(f"{out} already exists; give a new directory")
    with told(out, half, share):
        if numbers:
            begin(half, about, share)
        for i in numbers:
            write_file(half / files.names[i], every, files.groups[i], reader(stored, model), DTYPES[dtype])
        if share.process == 0:
            wait_for(half, files.names, share)
            finish(half, out, files, beside, codec, run / PIECES)
    saved = codec is not None and (out / "tokenizer.json").is_file()
    reported = numbers if share.process else range(len(files.names))
    written, size = [files.names[i] for i in reported], sum(files.bytes[i] for i in reported)
    return Exported(stored.step, family, written, size, dtype, bool(stored.decay), saved, share.process == 0)


def beside_weights(run: Path, model: cfg.Model, codec: Tokenizer | None, dtype: str) -> dict[str, dict[str, Any]]:
    """What the small files say, by name; that of a tokenizer is written where the tokenizer is.

    A run that began from a chat model keeps its template and special tokens. The separator ends a text too, as here.
    """
    separator = codec.separator_id if codec else None
    config = as_theirs(model, dtype=dtype, separator=separator)
    contents: dict[str, dict[str, Any]] = {GENERATION: {"bos_token_id": separator, "eos_token_id": separator}}
    if codec:
        tokens = {"bos_token": codec.separator, "eos_token": codec.separator}
        contents[CONFIG] = {"tokenizer_class": "PreTrainedTokenizerFast"} | tokens
    if codec and (chat := read_kept(run, codec.fingerprint)):
        ends = chat.generation.get("eos_token_id") or []
        ends = dict.fromkeys([*(ends if isinstance(ends, list) else [ends]), separator])
        contents[GENERATION] |= chat.generation | {"eos_token_id": list(ends)}
        contents[CONFIG] = chat.config if chat.name in (None, OWN) else contents[CONFIG] | chat.config
        config |= {name: contents[GENERATION][name] for name in IDS if name in chat.generation}
    return contents | {"config.json": config}


@contextmanager
def told(out: Path, half: Path, share: Share) -> Iterator[None]:
    """A line for what a disk refuses. One process alone leaves nothing then; of several, the others' files stay."""
    try:
        yield
    except OSError as error:
        why = error.strerror or error
        if share.processes == 1:
            shutil.rmtree(half, ignore_errors=True)
            raise ValueError(f"cannot write {out}: {why}; nothing of it is left") from error
        raise ValueError(f"cannot write {half}: {why}; once that is mended, run this process again") from error


def begin(half: Path, about: dict[str, Any], share: Share) -> None:
    """Make the directory, or go on in it where it is of this export.

    One process alone begins anew where it is of another one; several could not agree on that: ValueError.
    """
    path, text = half / ABOUT, json.dumps(about, indent=2, sort_keys=True) + "\n"
    if half.is_dir() and (not path.is_file() or path.read_text() != text):
        if share.processes == 1:
            shutil.rmtree(half)
        elif path.is_file() or any(half.glob("*.safetensors")):
            raise ValueError(f"{half} is of another export (step, dtype or sizes); remove it, or give its options")
    half.mkdir(parents=True, exist_ok=True)
    if not path.is_file():
        write_whole(path, text)


def write_adapter(out: Path, model: cfg.Model, stored: Stored, dtype: str, share: Share) -> Exported:
    """LoRA's matrices alone, as PEFT has them."""
    if model.lora is None:
        raise ValueError("--adapter: the run has no model.lora; leave --adapter out, which exports the whole model")
    if share.processes > 1:
        raise ValueError(f"--adapter --processes {share.processes}: an adapter is one file; leave --processes out")
    family = family_of(base_of(model))
    rows = adapter.matrix_rows(family, model)
    base = (stored.config["init"].get("from") or "").removeprefix(PUBLISHED) or None

    def read(path: tuple[str, ...], layer: int) -> np.ndarray:
        return stored.block(path, (slice(layer, layer + 1),))[0]

    half = out.with_name(f"{out.name}{HALF_WRITTEN}")
    shutil.rmtree(half, ignore_errors=True)
    with told(out, half, share):
        half.mkdir(parents=True)
        write_json(half / adapter.CONFIG, adapter.config_values(rows, model, base))
        shapes, arrays = adapter.tensor_shapes(rows, model), adapter.arrays(rows, model, read)
        each = (x.astype(DTYPES[dtype]) for x in arrays)
        size = tensors.write(half / adapter.TENSORS, shapes, DTYPES[dtype], each)
        os.replace(half, out)
    return Exported(stored.step, family, [adapter.TENSORS], size, dtype, bool(stored.decay), False)


def reader(stored: Stored, model: cfg.Model) -> Read:
    """Reads a weight of one layer and expert, with what LoRA has learnt of it."""
    adapted, table = model.lora.on if model.lora else (), decoder(base_of(model))

    def one(path: tuple[str, ...], place: tuple[int, ...]) -> np.ndarray:
        block = stored.block(path, tuple(slice(i, i + 1) for i in place))
        return block.reshape(block.shape[len(place) :])

    def read(row: Row, place: tuple[int, ...]) -> np.ndarray:
        if row.weight not in adapted:
            return one(*found_at(row, place, table))
        a, b = (one(path, place) for path in adapter.pair_paths(row))
        return adapter.merged(row, one(row.path, place), a, b, model)

    return read


def write_file(path: Path, every: Tensors, wanted: list[str], read: Read, dtype: np.dtype) -> None:
    """One file of weights, unless it is there: it has its name once it is whole."""
    if path.is_file():
        return
    part = path.with_name(path.name + PART)
    shapes = {tensor: every.shapes[tensor] for tensor in wanted}
    tensors.write(part, shapes, dtype, every.written(wanted, read, dtype))
    os.replace(part, path)


def wait_for(half: Path, names: list[str], share: Share) -> None:
    """Until all files are there. ValueError where nothing in the directory has grown for `share.wait` seconds."""
    last, since = -1, time.monotonic()
    while missing := [i for i, name in enumerate(names) if not (half / name).is_file()]:
        size = sum(path.stat().st_size for name in names if (path := half / name).exists())
        size += sum(path.stat().st_size for name in names if (path := half / f"{name}{PART}").exists())
        if size != last:
            last, since = size, time.monotonic()
        if time.monotonic() - since > share.wait:
            late = sorted({i % share.processes for i in missing})
            raise ValueError(
                f"{names[missing[0]]} has not come within {share.wait:.0f} s ({len(missing)} of {len(names)} files are "
                f"missing, of process {', '.join(map(str, late))}); run these processes again, and process 0 last"
            )
        time.sleep(POLL_SECONDS)


def finish(
    half: Path, out: Path, files: Files, beside: dict[str, dict[str, Any]], codec: Tokenizer | None, pieces: Path
) -> None:
    """Index, config and tokenizer, and then the name: before it nothing takes the directory for a model.

    Args:
        pieces: SentencePiece's file of the run, if it has one.
    """
    if len(files.names) > 1:
        index = tensors.index_of(zip(files.names, files.groups, strict=True), sum(files.bytes))
        (half / tensors.INDEX).write_text(index)
    saved = codec is not None and codec.save(half)
    if saved and pieces.is_file():
        shutil.copyfile(pieces, half / PIECES)
    for name, values in beside.items():  # config.json is the last
        if name != CONFIG or saved:
            write_json(half / name, values)
    os.replace(half, out)
    (out / ABOUT).unlink()


def write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
