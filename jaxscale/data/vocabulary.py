"""How many tokens the data of a run has, for a model that leaves its vocabulary to the data. Reads headers only."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field

from jaxscale.data.index import read_index
from jaxscale.data.llmc import matching, read_header

# A model's vocabulary in a config; null and 0 leave it to the data.
Size = Annotated[int, Field(ge=0, lt=2**31)]
VocabSize = Annotated[
    Size, BeforeValidator(lambda value: 0 if value is None else value, json_schema_input_type=Size | None)
]


def data_vocab_size(kind: str, paths: Sequence[str], stated: int | None = None) -> int:
    """The vocabulary of the data at ``paths``: `stated`, or what their indexes or headers say, the largest.

    Raises:
        ValueError: synthetic data, which has none, and data that cannot be read.
    """
    if kind == "synthetic":
        raise ValueError("model.vocab_size is missing; data.kind=synthetic has no vocabulary, so add it")
    try:
        if kind == "llmc":
            return stated or max(read_header(file).form.vocab_size for path in paths for file in matching(path))
        return max(read_index(Path(path)).tokenizer.vocab_size for path in paths)
    except ValueError as error:
        raise ValueError(f"model.vocab_size is left to the data: {error}; or give model.vocab_size") from None
