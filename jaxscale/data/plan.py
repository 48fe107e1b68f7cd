"""What a preparation is asked for, checked before any document is read."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jaxscale.data.chat import Chat, read_kept, read_published, read_table
from jaxscale.data.index import INDEX_NAME, Options
from jaxscale.data.progress import BadRecords, Progress
from jaxscale.data.sources import Source
from jaxscale.data.store import open_tokenizer
from jaxscale.data.tokenizer import Tokenizer, load_tokenizer

SHARD_TOKENS = 2**27
FILE, OF_RUN = "tokenizer.json", "tokenizer-identity.json"


@dataclass(frozen=True)
class Plan:
    """Sources, tokenizer and options; the tokenizer is None where it is yet to be trained."""

    source: Source
    validation: Source | None
    spec: str
    tokenizer: Tokenizer | None
    separator: str | None
    options: Options
    skip_bad: int

    @property
    def sources(self) -> tuple[Source, ...]:
        return (self.source,) if self.validation is None else (self.source, self.validation)

    def progress(self, phase: str) -> Progress:
        size_bytes = sum(source.size_bytes for source in self.sources)
        return Progress(phase, size_bytes, bad=BadRecords(self.skip_bad))


def make_options(fraction: float | None, tail: float | None, validation: Source | None, shard_tokens: int) -> Options:
    given = [
        name for name, value in (("fraction", fraction), ("tail", tail), ("files", validation)) if value is not None
    ]
    if len(given) > 1:
        raise ValueError(f"validation by {' and by '.join(given)}; give one of them")
    share = 0.0 if validation is not None else tail if tail is not None else 0.01 if fraction is None else fraction
    if not 0 <= share < 1:
        raise ValueError(f"validation_{given[0]} {share} is not in [0, 1); try 0.01")
    if shard_tokens < 1:
        raise ValueError(f"shard_tokens {shard_tokens} is not positive; try {SHARD_TOKENS}")
    how: Literal["source", "tail", "documents"] = (
        "source" if validation is not None else "tail" if tail is not None else "documents"
    )
    return Options(validation_fraction=share, shard_tokens=shard_tokens, validation=how)


def make_plan(
    source: Source,
    validation: Source | None,
    spec: str | Path,
    separator: str | None,
    options: Options,
    skip_bad: int,
) -> Plan:
    if skip_bad < 0:
        raise ValueError(f"skip_bad {skip_bad} is negative; give how many bad records may be skipped, or 0")
    if validation is not None:
        ours = {file.path if isinstance(file.path, str) else file.path.resolve() for file in source.files}
        for file in validation.files:
            if (file.path if isinstance(file.path, str) else file.path.resolve()) in ours:
                raise ValueError(f"{file.shown} is among the training files too; leave it out of one of them")
    name = str(spec)
    if name.startswith("bpe:") and (not name[4:].isdecimal() or int(name[4:]) < 257):
        raise ValueError(f"tokenizer {name!r}: bpe:N takes a whole number N >= 257 (256 bytes + 1); try bpe:4096")
    if name == "char" or name.startswith("bpe:"):
        return Plan(source, validation, name, None, separator, options, skip_bad)
    tokenizer = find_tokenizer(spec, separator)
    spec = "byte" if tokenizer.separator is None else "tokenizer.json" if Path(spec).is_dir() else Path(spec).name
    return Plan(source, validation, spec, tokenizer, separator, options, skip_bad)


def find_tokenizer(spec: str | Path, separator: str | None) -> Tokenizer:
    """As `load_tokenizer`; of a prepared dataset, a run or a published model's directory the tokenizer in it."""
    directory = Path(spec)
    if str(spec) == "byte" or not directory.is_dir():
        return load_tokenizer(spec, separator=separator)
    if (directory / INDEX_NAME).is_file():
        return open_tokenizer(directory) if separator is None else load_tokenizer(directory / FILE, separator=separator)
    if not (directory / FILE).is_file() and not (directory / OF_RUN).is_file():
        raise ValueError(f"tokenizer {str(spec)!r} is a directory without {FILE}; name a tokenizer.json")
    kept = read_table(directory / OF_RUN)
    if kept and kept.get("file") is None:
        return load_tokenizer("byte", separator=separator)
    known = kept.get("separator")
    return load_tokenizer(directory / FILE, separator=separator or (known if isinstance(known, str) else None))


def chat_beside(spec: str | Path, tokenizer: Tokenizer) -> Chat | None:
    """The chat template that stands beside a tokenizer, of a published model, a run or a dataset."""
    place = Path(spec)
    directory = place if place.is_dir() else place.parent
    if str(spec) == "byte" or not place.exists():
        return None
    return read_kept(directory, tokenizer.fingerprint) or read_published(directory)
