"""A model's weights in published files, block by block: what a device holds is read, and nothing else."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxscale import config as cfg
from jaxscale.blueprint.decoder import decoder
from jaxscale.blueprint.table import Blueprint
from jaxscale.config.families import FAMILIES
from jaxscale.interop.quantised import Packed, joined
from jaxscale.interop.tables import Row, closed, counted_experts, opened, paths, rows_of, shape
from jaxscale.interop.tensors import Place, tensors

Index = tuple[slice, ...]
# Of no use here: buffers that older versions of transformers saved
BUFFERS = (".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")


class Files:
    """The weights of a model in a directory of files. Checked when it is made: names, shapes, nothing left over."""

    def __init__(self, directory: Path, family: str, model: cfg.Model):
        self.table, self.rows = decoder(model), rows_of(family, decoder(model))
        try:
            self.tensors = joined(renamed(tensors(directory), family, model))
        except ValueError as error:
            raise ValueError(f"{directory}: {error}") from None
        self.paths = {
            path: (row, layers) for row in self.rows.values() for path, layers in paths(row, self.table).items()
        }
        wanted = {name: parts[0][0] for name, parts in holders(self.rows, self.table).items()}
        present = {n for n in self.tensors if not n.endswith(BUFFERS)}
        if missing := sorted(set(wanted) - present):
            raise ValueError(f"{directory} lacks {missing[0]} ({len(missing)} of {len(wanted)} tensors are missing)")
        extra = present - set(wanted) - ({"lm_head.weight"} if model.tie_embeddings else set())
        if extra:
            raise ValueError(f"{directory} has {min(extra)}, which {family} has not ({len(extra)} such tensors)")
        for name, row in wanted.items():
            if (there := self.tensors[name].shape) != (expected := shape(row, self.table)):
                raise ValueError(f"{directory}: {name} is {list(there)}, and config.json asks for {list(expected)}")

    def block(self, path: tuple[str, ...], index: Index, dtype: np.dtype) -> np.ndarray:
        """A block of a parameter, its layers' dim in front; zeros where a table is padded.

        Args:
            index: a slice for each dim of the parameter as the model has it.
        """
        row, layers = self.paths[path]
        about = self.table.weight(row.weight)
        size = (*([len(layers)] if about.stacked else []), *self.table.layer_shape(about))
        bounds = [s.indices(n) for s, n in zip(index, size, strict=True)]
        block = np.zeros([stop - start for start, stop, _ in bounds], dtype)
        outer = len(stacked_dims(row, self.table))
        inner = tuple(slice(start, stop) for start, stop, _ in bounds[outer:])
        for place in itertools.product(*(range(start, stop) for start, stop, _ in bounds[:outer])):
            of = (layers[place[0]], *place[1:]) if about.stacked else place
            at = tuple(i - b[0] for i, b in zip(place, bounds, strict=False))
            for begin, view in self.views(row, row.file.format(*of), inner):
                block[at][tuple(slice(i, i + n) for i, n in zip(begin, view.shape, strict=True))] = view
        return block

    def views(self, row: Row, name: str, inner: Index) -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
        """What a tensor has of a block, and where that begins in it: of a packed one expert after expert."""
        tensor = self.tensors[name]
        if not isinstance(tensor, Packed):
            yield (0,) * len(inner), opened(tensor.read(), row, self.table)[inner]
            return
        for i, expert in enumerate(range(inner[0].start, inner[0].stop)):
            numbers = opened(tensor.read(slice(expert, expert + 1)), row, self.table, experts=1)
            yield (i, *[0] * (len(inner) - 1)), numbers[(slice(None), *inner[1:])]


# In files of models that see too: what is no part of their decoder, and what stands before the decoder's names
OTHERS = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")
DECODER = ("model.language_model.", "language_model.model.")


def renamed(places: dict[str, Place], family: str, model: cfg.Model) -> dict[str, Place]:
    """By the names of the family's decoder alone. GPT-2's first files have no `transformer.` before their names.

    DeepSeek's have a layer more, which predicts a second token.
    """
    if family == "deepseek_v3":
        return {name: places[name] for name in places if not name.startswith(f"model.layers.{model.num_layers}.")}
    if family == "gpt2" and not any(name.startswith("transformer.") for name in places):
        return {name if name == "lm_head.weight" else f"transformer.{name}": place for name, place in places.items()}
    if not FAMILIES[family].inside:
        return places
    decoder_places = {name: place for name, place in places.items() if not name.startswith(OTHERS)}
    for before in DECODER:
        decoder_places = {
            f"model.{name.removeprefix(before)}" if name.startswith(before) else name: decoder_places[name]
            for name in decoder_places
        }
    return {name.removeprefix("language_model."): place for name, place in decoder_places.items()}


def stacked_dims(row: Row, table: Blueprint) -> tuple[Sequence[int], ...]:
    """The numbers that a tensor's name has: of its layer, and of its expert."""
    layers = sorted(i for each in paths(row, table).values() for i in each)
    of = (layers,) if table.weight(row.weight).stacked else ()
    return (*of, *(range(table.dims[c].size) for c in counted_experts(row, table)))


Held = tuple[Row, tuple[int, ...]]  # a weight of ours in a tensor, with its layer and expert


def holders(rows: Mapping[str, Row], table: Blueprint) -> dict[str, list[Held]]:
    """Name of each tensor, in the order of the step -> what it holds, by part."""
    by_tensor: dict[str, list[Held]] = {}
    for row in rows.values():
        for place in itertools.product(*stacked_dims(row, table)):
            by_tensor.setdefault(row.file.format(*place), []).append((row, place))
    return {name: sorted(parts, key=lambda p: p[0].part) for name, parts in by_tensor.items()}


# --- writing --------------------------------------------------------------------------------------------------

Read = Callable[[Row, tuple[int, ...]], np.ndarray]  # a row, and layer and expert -> our weight there


class Tensors:
    """All tensors of a family's files for a model; `shapes` by name, in the order of the step."""

    def __init__(self, family: str, model: cfg.Model):
        self.table = decoder(model)
        self.holders = holders(rows_of(family, self.table), self.table)
        self.shapes = {name: shape(parts[0][0], self.table) for name, parts in self.holders.items()}

    def written(self, wanted: Iterable[str], read: Read, dtype: np.dtype) -> Iterator[np.ndarray]:
        """Those of these names, one by one; of our weights at most those of one tensor are held."""
        for name in wanted:
            parts = self.holders[name]
            yield closed([(row, read(row, place)) for row, place in parts], self.table).astype(dtype)
