"""The rows that the `data` section of a config names, of any kind. Knows nothing of steps or processes."""

from collections.abc import Callable
from pathlib import Path

from jaxscale import config as cfg
from jaxscale.data.examples.rows import ExampleRows, example_rows
from jaxscale.data.examples.store import open_example_store
from jaxscale.data.index import Examples, SplitName, read_index
from jaxscale.data.mixture import Mixture
from jaxscale.data.rows import RowSource, Synthetic, windows
from jaxscale.data.store import TokenStore, open_llmc, open_tokens

Say = Callable[[str], None]
NO_SPLIT = "no validation loss: there is no validation split"
PREPARE_ONE = "prepare the data with one, to have a loss of it"


def open_rows(
    data: cfg.Data, split: str, *, vocab_size: int, seed: int, say: Say = lambda line: None
) -> RowSource | None:
    """Rows of `train` or `validation` for a model of `vocab_size`.

    None where the data has no validation split, or one that is not one window; `say` is then told, in one line.

    Raises:
        ValueError: data that is missing or damaged, or that does not go with the model or with each other.
    """
    if data.kind == "synthetic":
        return Synthetic(vocab_size, data.seq_len, seed=seed + (split == "validation"))
    if data.mixture:
        return open_mixture(data, data.mixture, split, vocab_size=vocab_size, seed=seed, say=say)
    if data.kind == "tokens" and examples_at(data.path) is not None:
        return open_examples(data, split, vocab_size=vocab_size, say=say)
    store = open_store(data, split)
    if store is None:
        say(f"{NO_SPLIT}; {'set data.validation_path' if data.kind == 'llmc' else PREPARE_ONE}")
        return None
    if split == "validation" and store.num_tokens < data.seq_len + 1:
        say(
            f"no validation loss: the validation split has {store.num_tokens:,} tokens, and one window needs "
            f"data.seq_len + 1 = {data.seq_len + 1:,}; hold out more when preparing the data, or lower data.seq_len"
        )
        return None
    if data.kind == "llmc":
        check_llmc(data, store, vocab_size)
    return windows(store, data.seq_len, model_vocab_size=vocab_size, mask_documents=data.mask_documents)


def open_examples(data: cfg.Data, split: str, *, vocab_size: int, say: Say) -> ExampleRows | None:
    """Rows of conversations or pairs, packed; None of a validation split that is not there or fits no row."""
    assert data.path
    if not data.mask_documents:
        raise ValueError(
            f"data.mask_documents=false: {data.path} holds examples, several of them a row, of which none may see "
            "another; leave it true"
        )
    name: SplitName = "train" if split == "train" else "validation"
    if split == "validation" and not read_index(Path(data.path)).splits[name].shards:
        say(f"{NO_SPLIT}; {PREPARE_ONE}")
        return None
    store = open_example_store(data.path, name, verify=data.verify)
    if split == "validation" and store.shortest > data.seq_len:
        say(f"no validation loss: no example of {store.name} fits a row of data.seq_len={data.seq_len}; raise it")
        return None
    return example_rows(store, data.seq_len, model_vocab_size=vocab_size, say=say)


def examples_at(path: str | None) -> Examples | None:
    """What the index of a prepared dataset says of examples; None of one of text."""
    assert path
    return read_index(Path(path)).examples


def open_mixture(
    data: cfg.Data, weights: dict[str, float], split: str, *, vocab_size: int, seed: int, say: Say
) -> Mixture | None:
    """Rows of several datasets; for validation, of those that have such a split."""
    check_alike(list(weights))
    sources: dict[str, RowSource] = {}
    for path in weights:
        one, said = data.model_copy(update={"path": path, "mixture": None}), list[str]()
        rows = open_rows(one, split, vocab_size=vocab_size, seed=seed, say=said.append)
        if rows is None:
            say(f"{path} is not part of the validation loss: it has no validation split of one window")
        else:
            sources[path] = rows
            for line in said:
                say(line)
    if not sources:
        return None
    training = split == "train"
    return Mixture(sources, weights, seed=seed, shuffle=data.shuffle and training, forever=training)


def check_alike(paths: list[str]) -> None:
    """ValueError where a mixture holds several kinds of examples, or one of several templates."""
    first, *others = [(path, examples_at(path)) for path in paths]
    for path, examples in others:
        kinds = [one.kind if one else "text" for one in (first[1], examples)]
        if kinds[0] != kinds[1]:
            raise ValueError(f"{path} holds {kinds[1]} and {first[0]} {kinds[0]}; a data.mixture is of one kind")
        templates = [(one.template, one.chat.sha256) for one in (first[1], examples) if one]
        if len(set(templates)) > 1:
            raise ValueError(
                f"{path} and {first[0]} have other templates ({templates[1][0]} and {templates[0][0]}); prepare all of "
                "data.mixture with one"
            )


def open_store(data: cfg.Data, split: str) -> TokenStore | None:
    assert data.path
    if data.kind == "llmc":
        path = data.path if split == "train" else data.validation_path
        return open_llmc(path, vocab_size=data.vocab_size, separator_id=data.separator_id) if path else None
    if split == "validation" and not read_index(Path(data.path)).splits["validation"].shards:
        return None  # a corpus of one document has no part to hold out
    return open_tokens(data.path, split, verify=data.verify)


def check_llmc(data: cfg.Data, store: TokenStore, vocab_size: int) -> None:
    """ValueError where a vocabulary or a separator would only be assumed: llm.c's files name neither."""
    padded = -(-store.vocab_size // 128) * 128
    if data.vocab_size is None and not store.vocab_size <= vocab_size <= padded:
        raise ValueError(
            f"{store.name}: by their headers these tokens have a vocabulary of {store.vocab_size}, the model has "
            f"{vocab_size}; give data.vocab_size={store.vocab_size} if that is so, else what their tokenizer has (and "
            "data.separator_id)"
        )
    if store.separator_id is None and data.mask_documents:
        raise ValueError(
            f"{store.name}: which token begins a document is not known with data.vocab_size={data.vocab_size}; give "
            "data.separator_id, or data.mask_documents=false"
        )
