"""A sampler: a model's programs of sampling, each traced and compiled once and held by its shapes.

It takes the parameters as they lie, a trainer's own arrays too, and keeps none of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxscale import config as cfg
from jaxscale.blueprint.decoding import (
    Need,
    bucket,
    decode_rules,
    gathered_rules,
    logits_bytes,
    multiplied,
    whole_rows,
)
from jaxscale.blueprint.rules import Rules
from jaxscale.parallel.sharding import on_devices, on_mesh
from jaxscale.rollouts.choose import Dials, Way
from jaxscale.rollouts.layouts import bytes_of, device_memory
from jaxscale.rollouts.loop import Outputs, decode_loop
from jaxscale.training.step import abstract_model, decoder

PyTree = Any


class Sampled(NamedTuple):
    """Samples, a row for each prompt, as host arrays that are the same on every process.

    Attributes:
        tokens: [B, max_new] int32, zeros behind a row's end.
        log_probs: [B, max_new] float32: of each token under the distribution that it was sampled from, in nats.
        lengths: [B] int32: tokens of a row, the stop token among them.
        stopped: [B] bool: it ends with a stop token. Otherwise it was cut off.
    """

    tokens: np.ndarray
    log_probs: np.ndarray
    lengths: np.ndarray
    stopped: np.ndarray

    def rows(self, *, stop: bool = True) -> list[list[int]]:
        """Each row's tokens; without `stop`, those before its stop token."""
        ends = self.lengths if stop else self.lengths - self.stopped
        return [row[:n].tolist() for row, n in zip(self.tokens, ends, strict=True)]


@dataclass(frozen=True)
class Shape:
    """What a program is compiled for."""

    rows: int
    prompt: int
    max_new: int
    way: Way
    stops: int


class Sampler:
    """Samples of a model on its mesh.

    A call of the same shapes as one before traces and compiles nothing. Prompts are rounded up to a few lengths, and
    rows to what the mesh's batch axes divide. Temperature, top_p, stop ids and keys may change at no cost.

    Attributes:
        rules: those for decoding.
    """

    def __init__(
        self,
        config: cfg.Config,
        mesh: Mesh,
        rules: Rules,
        *,
        vocab_size: int | None = None,
        held_bytes: int | None = None,
        gather: bool | None = None,
    ):
        """Nothing is compiled yet.

        Args:
            rules: of training, or already those for decoding.
            vocab_size: tokens beyond it are not sampled; None: the model's.
            held_bytes: of a device's memory that other arrays take (a trainer's state); None: the parameters' own.
            gather: gather the weights once, before the first token; None: where they fit beside the cache.
        """
        self.config, self.mesh, self.rules = config, mesh, decode_rules(rules)
        self.vocab_size = min(vocab_size or config.model.vocab_size, config.model.vocab_size)
        self.gather, self.programs = gather, dict[Shape, Any]()
        with on_mesh(mesh, self.rules):
            kept, _, self.merge = abstract_model(decoder(config))
            self.kept = on_devices(kept)
        with on_mesh(mesh, gathered_rules(self.rules)):
            names = multiplied(config.model)
            self.gathered = on_devices(cast(abstract_model(decoder(config))[0], names, config.step.compute_dtype))
        self.held_bytes = bytes_of(self.kept) if held_bytes is None else held_bytes

    def __call__(
        self,
        params: PyTree,
        prompts: Sequence[Sequence[int]],
        *,
        keys: np.ndarray,
        max_new: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        stop_ids: Sequence[int] = (),
        rows: int | None = None,
    ) -> Sampled:
        """One sample of each prompt. On several processes all call it alike.

        Args:
            params: all parameters, trained and frozen, in any layout on this mesh.
            keys: of `row_keys`, a row for each prompt.
            temperature: 0 is greedy, whose log-probabilities are the model's own.
            top_k, top_p: sample only from the k likeliest tokens, or from the fewest that hold probability p.
            stop_ids: a sample ends with the first of these tokens.
            rows: compile for at least so many; those without a prompt cost time, and no result.

        Raises:
            ValueError: settings that cannot be.
        """
        check_sampling(prompts, max_new, temperature, top_k, top_p, self.vocab_size)
        check_positions(self.config.model, max(map(len, prompts)), max_new)
        if len(keys) != len(prompts):
            raise ValueError(f"{len(keys)} keys for {len(prompts)} prompts; give row_keys with a number for each")
        number, length = len(prompts), bucket(max(map(len, prompts)))
        full = whole_rows(self.rules, self.mesh.shape, max(number, rows or 0))
        tokens, mask = pad_prompts([*prompts, *[[0]] * (full - number)], length)
        numbers = np.concatenate([keys, np.zeros((full - number, keys.shape[1]), np.uint32)]).astype(np.uint32)
        greedy = temperature == 0
        way = Way(self.vocab_size, greedy, None if greedy else top_k, top_p is not None and not greedy)
        shape = Shape(full, length, max_new, way, len(stop_ids))
        dials = Dials(np.float32(temperature), np.float32(1 if top_p is None else top_p))
        alive = np.arange(full) < number
        arguments = (tokens, mask, alive, numbers, dials, np.asarray(stop_ids, np.int32))
        with on_mesh(self.mesh, self.rules):
            out = jax.device_get(self.program(shape)(params, *arguments))
        return Sampled(*(x[:number] for x in out))

    def program(self, shape: Shape) -> Any:
        """The jitted program of a shape: (params, tokens, mask, alive, numbers, dials, stop ids) -> `Sampled`'s arrays.

        To be called inside `on_mesh(self.mesh, self.rules)`.
        """
        if shape not in self.programs:
            target = self.gathered if self.gathers_first(shape) else self.kept
            self.programs[shape] = jax.jit(partial(self.run, shape, target))
        return self.programs[shape]

    def run(self, shape: Shape, target: PyTree, params: PyTree, *arguments: Any) -> Outputs:
        moved = jax.tree.map(lambda x, to: jax.reshard(x.astype(to.dtype), to.sharding.spec), params, target)
        out = decode_loop(self.merge(moved), shape.way, shape.max_new, *arguments)
        whole: Outputs = jax.tree.map(lambda x: jax.reshard(x, jax.P()), out)  # small, and every process reads it
        return whole

    def gathers_first(self, shape: Shape) -> bool:
        """Are the weights gathered once, before the first token? As asked for, or where they fit."""
        if self.gather is not None:
            return self.gather
        return self.need(shape).fits(device_memory(self.mesh.devices.flat[0]))

    def need(self, shape: Shape) -> Need:
        """Bytes of a device with gathered weights."""
        with on_mesh(self.mesh, self.rules):
            length = shape.prompt + shape.max_new
            model: Any = self.merge(self.kept)
            cache = jax.eval_shape(lambda: model.empty_cache(shape.rows, length))
            cache_bytes = bytes_of(on_devices(cache))
        rows = shape.rows // (whole_rows(self.rules, self.mesh.shape, 1))
        logits = logits_bytes(rows, self.config.model.padded_vocab_size)
        return Need(self.held_bytes, bytes_of(self.gathered), cache_bytes, logits)


def cast(abstract: PyTree, names: frozenset[str], dtype: str) -> PyTree:
    """Shapes of parameters with those of these names in another dtype."""

    def one(path: Any, x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        narrow = path[-1].key in names and jnp.dtype(dtype).itemsize < jnp.dtype(x.dtype).itemsize
        return jax.ShapeDtypeStruct(x.shape, jnp.dtype(dtype) if narrow else x.dtype, sharding=x.sharding)

    return jax.tree_util.tree_map_with_path(one, abstract)


def pad_prompts(prompts: Sequence[Sequence[int]], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Prompts as one [B, length] array padded on the left, and a [B, length] mask that is 0 at padding."""
    tokens, mask = np.zeros((2, len(prompts), length), np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, length - len(prompt) :] = prompt
        mask[row, length - len(prompt) :] = 1
    return tokens, mask


def check_sampling(
    prompts: Sequence[Sequence[int]],
    max_new: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    vocab_size: int,
) -> None:
    if not len(prompts) or min(map(len, prompts)) < 1:
        raise ValueError("a prompt is empty; give at least one token (the document separator will do)")
    highest = max(max(p) for p in prompts)
    if highest >= vocab_size:
        raise ValueError(
            f"prompt token {highest} is beyond the model's vocab_size {vocab_size}; use the run's tokenizer"
        )
    if max_new < 1:
        raise ValueError(f"max_new_tokens={max_new} must be at least 1")
    if not 0 <= temperature < float("inf"):
        raise ValueError(
            f"temperature={temperature} is no number from 0 up; 0 is greedy, 1 samples the model's distribution"
        )
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k={top_k} must be at least 1")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p={top_p} must be above 0 and at most 1")


def check_positions(model: cfg.Model, longest: int, max_new: int) -> None:
    """Raise ValueError where a text would go beyond the learned positions."""
    if model.position == "learned" and longest + max_new > model.max_seq_len:
        raise ValueError(
            f"prompt and new tokens make {longest + max_new}, beyond the {model.max_seq_len} learned positions; lower "
            "--max-new-tokens or shorten the prompt"
        )
