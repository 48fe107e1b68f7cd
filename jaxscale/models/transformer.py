"""One decoder that is Llama, Qwen, Gemma, GPT-2 and others by config: flax.nnx modules that know logical axes only.

Dims: B batch, T sequence, D embed, N query heads, K kv heads, H head dim, F mlp, V vocab, L layers.
Parameters are kept in `param_dtype` and cast where they are used, before they are gathered.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxscale import config as cfg
from jaxscale.blueprint.decoder import DENSE_LAYERS, LAYERS, decoder
from jaxscale.kernels.plain import NEGATIVE
from jaxscale.models import latent, pattern
from jaxscale.models.block import Auxiliary, Block
from jaxscale.models.cache import Cache, apart
from jaxscale.models.embedding import lookup
from jaxscale.models.experts import sums_of
from jaxscale.models.layers import Maker, Norm, scaled
from jaxscale.models.rotary import Rope, rotations
from jaxscale.parallel.sharding import (
    align,
    axes_of,
    dims_of,
    einsum,
    gather,
    platform,
    reading_order,
    shard,
    shard_count,
    spec,
    stage_axes,
    to_spec,
    with_vectors,
)

NOT_ROTARY = {"layers": 1, "sliding_window": None, "experts": False}  # what rotary positions do not depend on
MOST_APART = 16  # layers of which decoding on a CPU makes a program each: as fast as it can be, but slow to compile


def all_but_gathered_parameters(primitive: Any, *_: Any, **parameters: Any) -> bool:
    """What remat `none` keeps: all activations, but no gathered weights, or every device would end with whole layers.

    A weight's gather is the reshard whose result is marked reduced over the tokens' axes (see `sharding.move`). Inside
    a shard_map the same array is cast to other types, which would keep it under another name.
    """
    if primitive.name.removesuffix("_p") in ("pvary", "reduced_vary_cast"):
        return False
    if primitive.name != "reshard":
        return True
    return not set(parameters["dst_sharding"].spec.reduced) & set(axes_of_tokens())


def all_but_gathered_parameters_on_cpu(primitive: Any, *types: Any, **parameters: Any) -> bool:
    """The same where matmuls widen their operands (`parallel.on_cpu`): a gathered weight is kept in neither dtype."""
    widened = primitive.name == "convert_element_type" and parameters["new_dtype"] == jnp.float32
    return not widened and all_but_gathered_parameters(primitive, *types, **parameters)


def axes_of_tokens() -> tuple[str, ...]:
    """The mesh axes that split rows or their tokens: over these a weight may be gathered."""
    return (*axes_of("batch"), *axes_of("sequence"))


def in_stages(layers: Block) -> Block:
    """Stacked layers split as the rules say: nnx.vmap knows no rule for the dim that it adds."""
    if not stage_axes():
        return layers
    graph, state = nnx.split(layers)
    state = jax.tree.map(lambda x: jax.reshard(x, to_spec([stage_axes(), *dims_of(x)[1:]])), state)
    split: Block = nnx.merge(graph, state)
    return split


def in_layout(positions: jax.Array | None, shape: tuple[int, ...]) -> jax.Array:
    """Positions [B, T] where the tokens lie; None: one document a row."""
    if positions is None:
        positions = jnp.broadcast_to(reading_order(shape[1]), shape)
    return shard(positions, "batch", "sequence")


class Transformer(nnx.Module):
    """Tokens [B, T] to logits [B, T, V]. Its layers are one block whose parameters have a leading `layers` dim."""

    def __init__(self, model: cfg.Model, step: cfg.Step | None = None, *, rngs: nnx.Rngs):
        step = step or cfg.Step()
        self.model, self.step, self.dtype = model, step, jnp.dtype(step.compute_dtype)
        make = Maker(model, step.param_dtype, rngs)
        self.embedding = make("embedding")
        if model.position == "learned":
            self.position_embedding = make("position")

        def stack(number: int, experts: bool) -> Block:
            block = partial(Block, model, step, experts=experts)
            return in_stages(nnx.vmap(block, transform_metadata={nnx.PARTITION_NAME: LAYERS})(rngs.split(number)))

        if model.dense_layers:
            self.dense_layers = stack(model.dense_layers, experts=False)
        self.layers = stack(model.num_layers - model.dense_layers, experts=model.moe is not None)
        self.final_norm = Norm("final_norm", make)
        if model.score:
            self.score = make("score")
        elif not model.tie_embeddings:
            self.unembedding = make("unembedding")

    def __call__(
        self, tokens_BT: jax.Array, *, positions: jax.Array | None = None, segments: jax.Array | None = None
    ) -> jax.Array:
        """Logits [B, T, padded V] in float32, vocab split over the mesh; padding columns are never the largest."""
        x_BTD = gather(
            self.hidden(tokens_BT, positions=positions, segments=segments), "batch", "sequence", "embed", over="vocab"
        )
        return self.unembed(x_BTD, self.head(x_BTD))

    def hidden(
        self, tokens_BT: jax.Array, *, positions: jax.Array | None = None, segments: jax.Array | None = None
    ) -> jax.Array:
        """The last layer's output after the final norm: [B, T_tensor, D]."""
        return self.hidden_and_sums(tokens_BT, positions=positions, segments=segments)[0]

    def hidden_and_sums(
        self,
        tokens_BT: jax.Array,
        *,
        positions: jax.Array | None = None,
        segments: jax.Array | None = None,
        counted: jax.Array | None = None,
    ) -> tuple[jax.Array, Auxiliary]:
        """`hidden`, and the auxiliary sums of all layers: each array of a block with a leading dim of layers [L, ...].

        What they mean is between the block that makes them and the objective that reads them.

        Args:
            counted: [B, T] what each token counts in these sums; None: 1.
        """
        if stages := stage_axes():
            raise ValueError(
                f"{' * '.join(stages)} splits the layers into stages, which only a training step and its evaluation "
                f"run; set mesh.{stages[0]}=1 to call the model"
            )
        x_BTD = self.embed(tokens_BT, positions)
        layer = self.remat(self.layer(tokens_BT.shape, positions, segments, counted))
        x_BTD, sums = pattern.scan_runs(layer, x_BTD, self.states, self.runs, unroll=self.unroll)
        return self.final_norm(x_BTD), sums[LAYERS]

    @property
    def stacks(self) -> dict[str, Block]:
        """All layers, stacked with those whose parameters have the same shapes. Only `layers` have sums."""
        dense = {DENSE_LAYERS: self.dense_layers} if self.model.dense_layers else {}
        return dense | {LAYERS: self.layers}

    @property
    def states(self) -> dict[str, Any]:
        """The arrays of each stack, [L, ...]."""
        return {name: nnx.split(layers)[1] for name, layers in self.stacks.items()}

    def stack_of(self, kind: cfg.LayerKind) -> str:
        """The stack that holds layers of this kind."""
        return LAYERS if kind.experts or not self.model.moe else DENSE_LAYERS

    @property
    def runs(self) -> list[tuple[list[tuple[str, cfg.LayerKind]], int]]:
        """`Model.runs`, with the stack of each kind."""
        return [([(self.stack_of(kind), kind) for kind in period], n) for period, n in self.model.runs]

    @property
    def sums_of_layers(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes [L, ...] of the auxiliary sums."""
        shapes = sums_of(self.model.moe) if self.model.moe else {}
        return {name: (self.model.expert_layers, *shape) for name, shape in shapes.items()}

    def embed(self, tokens_BT: jax.Array, positions: jax.Array | None) -> jax.Array:
        """What the first layer reads: [B, T_tensor, D]."""
        x_BTD = lookup(self.embedding[...], tokens_BT, dtype=self.dtype)
        if self.model.position == "learned":
            positions = in_layout(positions, tokens_BT.shape)
            x_BTD = x_BTD + lookup(self.position_embedding[...], positions, dtype=self.dtype)
        return scaled(x_BTD, self.model.embedding_multiplier)

    def ropes(self, positions: jax.Array) -> dict[cfg.LayerKind, Rope | None]:
        """Rotary positions of each kind of layers, made once for kinds that turn alike."""
        turns = {kind: kind.model_copy(update=NOT_ROTARY) for kind in dict.fromkeys(self.model.layer_kinds)}
        made = {turn: rotations(positions, turn, self.model.rotary_size) for turn in dict.fromkeys(turns.values())}
        return {kind: made[turn] for kind, turn in turns.items()}

    def layer(
        self,
        shape: tuple[int, ...],
        positions: jax.Array | None,
        segments: jax.Array | None,
        counted: jax.Array | None = None,
    ) -> Callable[[jax.Array, Any, cfg.LayerKind], tuple[jax.Array, Auxiliary]]:
        """One layer, for tokens of this shape [B, T]: x, its own parameters and its kind to its output and its sums."""
        graphs = {name: nnx.split(layers)[0] for name, layers in self.stacks.items()}
        ropes = self.ropes(in_layout(positions, shape))
        segments = None if segments is None else shard(segments, "batch", "sequence")

        def run(x_BTD: jax.Array, block: Any, kind: cfg.LayerKind) -> tuple[jax.Array, Auxiliary]:
            merged = nnx.merge(graphs[self.stack_of(kind)], block)
            both: tuple[jax.Array, Auxiliary] = merged(x_BTD, ropes[kind], kind.sliding_window, segments, counted)
            return both

        return run

    @property
    def unroll(self) -> bool:
        chosen = self.step.unroll_layers
        return platform() == "cpu" if chosen is None else chosen

    def remat(self, layer: Callable[..., Any]) -> Callable[..., Any]:
        """`layer` with the activations that the backward pass recomputes, keeps, or takes from host memory."""
        remat, policies = self.step.remat, jax.checkpoint_policies
        if remat == "none":
            split = {axis for axes in dims_of(self.layers.attention.out[...]) for axis in axes}
            if not split & set(axes_of_tokens()):
                return layer
            cpu = platform() == "cpu"
            policy = all_but_gathered_parameters_on_cpu if cpu else all_but_gathered_parameters
        elif remat == "full":
            policy = None
        elif remat == "dots":
            policy = policies.save_only_these_names(*decoder(self.model).saved_by_dots)
        else:
            actions = {action: [n for n, a in remat.items() if a == action] for action in ("save", "offload")}
            policy = policies.save_and_offload_only_these_names(
                names_which_can_be_saved=actions["save"],
                names_which_can_be_offloaded=actions["offload"],
                offload_src="device",
                offload_dst="pinned_host",
            )
        # of several layers in one body, none is recomputed before its gradient arrives: with Gemma-3-1B's six, 35 GiB
        several = self.unroll or max(len(period) for period, _ in self.runs) > 1
        return jax.checkpoint(layer, policy=policy, prevent_cse=several, static_argnums=(2,))

    def head(self, x_BTD: jax.Array) -> jax.Array:
        """The matrix of the last matmul, gathered once for all the calls of `unembed` that will use it."""
        return self.gathered(x_BTD, self.last_matrix)

    @property
    def trains_head(self) -> bool:
        """Has the last matrix a gradient? With LoRA it stays as it is."""
        return decoder(self.model).trains_head

    @property
    def last_matrix(self) -> jax.Array:
        """The head's matrix as it is kept. Raises ValueError for a reward model, which has none."""
        if self.model.score:
            raise ValueError("model.score: a reward model scores texts and predicts no tokens; use another model")
        return (self.embedding if self.model.tie_embeddings else self.unembedding)[...]

    def gathered(self, x_BTD: jax.Array, matrix: jax.Array) -> jax.Array:
        """The head's matrix as `unembed` takes it, for these hidden states."""
        with jax.named_scope("unembedding"):
            return align(self.head_formula, x_BTD, matrix.astype(self.dtype), out=("batch", "sequence", "vocab"))[1]

    @property
    def head_formula(self) -> str:
        return "btd,vd->btv" if self.model.tie_embeddings else "btd,dv->btv"

    def unembed(self, x_BTD: jax.Array, head: jax.Array) -> jax.Array:
        """Logits in float32 from hidden states [B, T, D]: [B, T, padded V], vocab split."""
        return self.finish(self.multiply(x_BTD, head))

    def multiply(self, x_BTD: jax.Array, head: jax.Array) -> jax.Array:
        """The last matmul, linear in both: logits in float32, not yet capped."""
        # x[B, T, D] · w[D_fsdp, V_tensor] -> logits[B, T, V_tensor]   gather w over fsdp (in `head`)
        out = ("batch", "sequence", "vocab")
        return einsum(self.head_formula, x_BTD, head, out=out, dtype=jnp.float32, name="unembedding")

    def finish(self, logits: jax.Array) -> jax.Array:
        """What `multiply` made, capped where the config says so, columns of padding never the largest."""
        logits = scaled(logits, 1 / self.model.logits_scaling)
        if self.model.logits_softcap is not None:
            logits = self.model.logits_softcap * jnp.tanh(logits / self.model.logits_softcap)
        if self.model.padded_vocab_size > self.model.vocab_size:
            column = jax.lax.broadcasted_iota(
                jnp.int32, logits.shape, 2, out_sharding=spec("batch", "sequence", "vocab")
            )
            logits = jnp.where(column < self.model.vocab_size, logits, NEGATIVE)
        return logits

    def scores(self, hidden_BTD: jax.Array) -> jax.Array:
        """Of a reward model, the score of the text up to each token, float32 [B, T]."""
        product = with_vectors(jnp.multiply, hidden_BTD.astype(jnp.float32), self.score[...])
        return shard(product.sum(-1), "batch", "sequence")

    # --- decoding ---

    def empty_cache(self, batch_size: int, length: int) -> Cache:
        """Keys and values of every layer, in the order that attention multiplies: [L, B, K, S, H]; or latents."""
        if self.model.latent:
            return latent.empty_cache(self.model, batch_size, length, self.dtype)
        heads = max(self.model.kv_heads, shard_count("kv_heads"))
        shape = (self.model.num_layers, batch_size, heads, length, self.model.head_size)
        layout = spec(None, "batch", "kv_heads", None, None)
        return {name: jnp.zeros(shape, self.dtype, out_sharding=layout) for name in ("k", "v")}

    def apart(self, cache: Cache) -> tuple[Cache, list[Any] | None]:
        """The cache, and each layer's parameters, as a loop over tokens takes them: cut out once, before it.

        Of many layers, and elsewhere than on a CPU, both stay stacked, and there is no list.
        """
        if not self.unroll or self.model.num_layers > MOST_APART:
            return cache, None
        parts = {name: iter(pattern.single(s, len(jax.tree.leaves(s)[0]))) for name, s in self.states.items()}
        return apart(cache), [next(parts[self.stack_of(kind)]) for kind in self.model.layer_kinds]

    def decode(
        self,
        tokens_BT: jax.Array,
        cache: Cache,
        *,
        positions: jax.Array,
        segments: jax.Array,
        start: jax.Array,
        each: list[Any] | None = None,
    ) -> tuple[jax.Array, Cache]:
        """Logits of the last token and the cache with these tokens written at `start`.

        Args:
            tokens_BT: the next T tokens (a prompt, or one).
            positions: [B, T], their positions.
            segments: [B, S] over the whole cache: 0 where there is padding or nothing yet, else 1.
            each: of `apart`, as the cache is.
        """
        ropes, kinds = self.ropes(positions), self.model.layer_kinds
        graphs = {name: nnx.split(layers)[0] for name, layers in self.stacks.items()}
        numbers = {name: [i for i, kind in enumerate(kinds) if self.stack_of(kind) == name] for name in graphs}
        states = {name: (state, jnp.array(numbers[name])) for name, state in self.states.items()}

        def layer(carry: Any, inputs: tuple[Any, Any], kind: cfg.LayerKind) -> tuple[Any, None]:
            block_state, place = inputs
            block = nnx.merge(graphs[self.stack_of(kind)], block_state)
            return block.decode(carry[0], ropes[kind], kind.sliding_window, segments, carry[1], (place, start)), None

        # the cache is carried, not mapped over: so a token is written into it and nothing else of it is copied
        carry = self.embed(tokens_BT, positions), cache
        if each is None:
            carry, _ = pattern.scan_runs(layer, carry, states, self.runs)
        else:
            for i, kind in enumerate(kinds):
                carry, _ = layer(carry, (each[i], i), kind)
        x_BTD, cache = carry
        x_BTD = self.final_norm(x_BTD)[:, -1:]
        x_BTD = shard(x_BTD, "batch", "sequence", "embed")
        return self.unembed(x_BTD, self.head(x_BTD))[:, 0], cache
