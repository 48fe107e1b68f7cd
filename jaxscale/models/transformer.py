"""One decoder that is Llama, Mistral, Qwen3 or GPT-2 by config: flax.nnx modules that know logical axes only.

Dims: B batch, T sequence, D embed, N query heads, K kv heads, H head dim, F mlp, V vocab, L layers.
Parameters are kept in `param_dtype` and cast where they are used, before they are gathered.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.layout import Layout, with_layout_constraint

from jaxscale import config as cfg
from jaxscale.blueprint.decoder import decoder
from jaxscale.models.attention import NEGATIVE, Attention, attend, attention, visible
from jaxscale.models.embedding import lookup
from jaxscale.models.layers import Maker, Norm
from jaxscale.models.on_cpu import drops_barriers, looked_up
from jaxscale.models.sums import add_bias
from jaxscale.parallel.sharding import (
    align,
    axes_of,
    dims_of,
    einsum,
    gather,
    platform,
    shard,
    shard_count,
    spec,
    to_spec,
)

Cache = dict[str, jax.Array]  # k, v: [B, S, K, H]
Auxiliary = dict[str, jax.Array]  # what a layer tells its objective beside its output, as sums over its tokens
Rope = tuple[jax.Array, jax.Array]  # sine and cosine: [B, T, 1, H/2], float32


def named(x: jax.Array, name: str, step: cfg.Step) -> jax.Array:
    """A name for `step.remat`. What is offloaded keeps its dims' order in memory.

    Left to the compiler, the forward and the backward loop of a TPU program choose other layouts, and the offloaded
    arrays of all layers come back into HBM at one time to be turned: 27 GiB where 10 were needed.
    """
    if isinstance(step.remat, dict) and step.remat.get(name) == "offload":
        x = with_layout_constraint(x, Layout(tuple(range(x.ndim))))
    return checkpoint_name(x, name)


class SelfAttention(nnx.Module):
    """Attention with grouped kv heads, rotary or no positions, optional biases and qk-norm."""

    def __init__(self, model: cfg.Model, step: cfg.Step, rngs: nnx.Rngs):
        self.model, self.step, self.dtype = model, step, jnp.dtype(step.compute_dtype)
        self.how = Attention(model.sliding_window, model.attention_softcap, step.attention)
        make = Maker(model, step.param_dtype, rngs)
        self.q, self.k, self.v, self.out = make("q"), make("k"), make("v"), make("out")
        if model.attention_bias:
            self.q_bias, self.k_bias, self.v_bias = make("q_bias"), make("k_bias"), make("v_bias")
            self.out_bias = make("out_bias")
        if model.qk_norm:
            self.q_norm, self.k_norm = Norm("q_norm", make), Norm("k_norm", make)

    def __call__(self, x_BTD: jax.Array, rope: Rope | None, segments: jax.Array | None) -> jax.Array:
        q, k, v = self.queries_keys_values(x_BTD, rope)
        return self.output(attention(q, k, v, segments, self.how))

    def decode(
        self, x_BTD: jax.Array, rope: Rope | None, segments: jax.Array, cache: Cache, start: jax.Array
    ) -> tuple[jax.Array, Cache]:
        """The same for the next T tokens, which attend to the cache too; and the cache with them, from `start` on."""
        q, k, v = self.queries_keys_values(x_BTD, rope)
        cache, attended = self.attend_cached(q, k, v, cache, segments, start)
        return self.output(attended), cache

    def queries_keys_values(self, x_BTD: jax.Array, rope: Rope | None) -> tuple[jax.Array, jax.Array, jax.Array]:
        x_BTD = gather(x_BTD, "batch", "sequence", "embed", over="heads")
        q = checkpoint_name(self.project(x_BTD, "q", "heads"), "q")
        k = checkpoint_name(self.project(x_BTD, "k", "kv_heads"), "k")
        v = checkpoint_name(self.project(x_BTD, "v", "kv_heads"), "v")
        if self.model.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            q, k = rotate(q, *rope), rotate(k, *rope)
        return q, k, v

    def output(self, attended: jax.Array) -> jax.Array:
        # a[B, T, N_tensor, H] · w[N_tensor, H, D_fsdp] -> y[B, T_tensor, D]   gather w over fsdp; reduce-scatter y
        y = einsum(
            "btnh,nhd->btd", attended, self.weight("out"), out=("batch", "residual_sequence", "embed"), name="out"
        )
        if self.model.attention_bias:
            y = add_bias(y, self.weight("out_bias"))
        return named(y, "attention_out", self.step)

    def weight(self, name: str) -> jax.Array:
        return getattr(self, name)[...].astype(self.dtype)

    def project(self, x_BTD: jax.Array, name: str, axis: str) -> jax.Array:
        # x[B, T, D] · w[D_fsdp, N_tensor, H] -> q[B, T, N_tensor, H]   gather w over fsdp
        w_DKH = self.weight(name)
        formula = "btd,dnh->btnh"
        if axis == "kv_heads":
            w_DKH, formula = jax.named_scope(name)(repeat_heads)(w_DKH, 1), "btd,dkh->btkh"
        y = einsum(formula, x_BTD, w_DKH, out=("batch", "sequence", axis, "head_dim"), name=name)
        if self.model.attention_bias:
            bias = self.weight(f"{name}_bias")
            y = add_bias(y, repeat_heads(bias, 0) if axis == "kv_heads" else bias)
        return y

    def attend_cached(self, q, k, v, cache: Cache, segments, start):
        """Write k, v at `start` of the cache and attend to all of it; `segments` [B, S] is 0 where nothing is."""
        cache = {
            "k": jax.lax.dynamic_update_slice_in_dim(cache["k"], k, start, 1),
            "v": jax.lax.dynamic_update_slice_in_dim(cache["v"], v, start, 1),
        }
        heads, kv = spec("batch", None, "heads", None), spec("batch", None, "kv_heads", None)
        T, S = q.shape[1], segments.shape[1]

        def local(q, k, v, segments, start):
            mask_TS = visible(start + jnp.arange(T)[:, None], jnp.arange(S)[None, :], self.how.sliding_window)
            own = jax.lax.dynamic_slice_in_dim(segments, start, T, 1)
            mask = mask_TS & (own[:, :, None] == segments[:, None, :])
            return attend(q, k, v, mask, softcap=self.how.softcap)

        specs = (heads, kv, kv, spec("batch", None), spec())
        return cache, jax.shard_map(local, in_specs=specs, out_specs=heads, check_vma=False)(
            q, cache["k"], cache["v"], segments, start
        )


def repeat_heads(w: jax.Array, dim: int) -> jax.Array:
    """Repeat kv heads when there are fewer than shards, so that each shard holds the one that its queries read.

    The weights are repeated, not the activations: each device then computes its own head only.
    """
    shards, heads = shard_count("kv_heads"), w.shape[dim]
    if heads >= shards:
        return w
    dims = dims_of(w)
    shape = (*w.shape[:dim], heads, shards // heads, *w.shape[dim + 1 :])
    wide = to_spec([*dims[: dim + 1], (), *dims[dim + 1 :]])
    w = jax.lax.broadcast_in_dim(w, shape, [i for i in range(len(shape)) if i != dim + 1], out_sharding=wide)
    w = w.reshape((*w.shape[:dim], shards, *w.shape[dim + 2 :]))
    (split,) = [tuple(e if isinstance(e, tuple) else (e,)) for e in spec("kv_heads")]
    return jax.reshard(w, to_spec([*dims[:dim], split, *dims[dim + 1 :]]))


def rotations(positions_BT: jax.Array, model: cfg.Model) -> Rope | None:
    """Sine and cosine of each position's angles, once for all layers; None for a model without rotary positions.

    The barrier keeps XLA from computing them again in every fusion that reads them.
    """
    if model.position != "rope":
        return None
    angle = positions_BT.astype(jnp.float32)[..., None, None] * rope_frequencies(model)
    sin, cos = jax.lax.optimization_barrier((jnp.sin(angle), jnp.cos(angle)))
    return looked_up(sin, cos) if drops_barriers() else (sin, cos)


def rotate(x_BTNH: jax.Array, sin: jax.Array, cos: jax.Array) -> jax.Array:
    """Rotary positions (arXiv:2104.09864), halves paired as in Llama's published weights."""
    a, b = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_BTNH.dtype)


def rope_frequencies(model: cfg.Model) -> jax.Array:
    """Radians a position for each of the H/2 pairs, float32; long wavelengths stretched by Llama-3.1's scaling."""
    half = model.head_size // 2
    frequency = model.rope_theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    scaling = model.rope_scaling
    if scaling is None:
        return frequency
    turns = scaling.original_max_len * frequency / (2 * math.pi)  # within the context trained on first
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    keep = jnp.clip((turns - low) / (high - low), 0, 1)
    return frequency * (keep + (1 - keep) / scaling.factor)


class Mlp(nnx.Module):
    """SwiGLU (arXiv:2002.05202) or a gelu of two matmuls."""

    def __init__(self, model: cfg.Model, step: cfg.Step, rngs: nnx.Rngs):
        self.model, self.dtype = model, jnp.dtype(step.compute_dtype)
        make = Maker(model, step.param_dtype, rngs)
        if model.mlp == "swiglu":
            self.gate = make("gate")
        self.up, self.down = make("up"), make("down")
        if model.mlp_bias:
            self.up_bias, self.down_bias = make("up_bias"), make("down_bias")
            if model.mlp == "swiglu":
                self.gate_bias = make("gate_bias")

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        x_BTD = gather(x_BTD, "batch", "sequence", "embed", over="mlp")
        up = checkpoint_name(self.project(x_BTD, "up"), "mlp_up")
        if self.model.mlp == "swiglu":
            h_BTF = jax.nn.silu(checkpoint_name(self.project(x_BTD, "gate"), "mlp_gate")) * up
        else:
            h_BTF = jax.nn.gelu(up, approximate=True)
        # h[B, T, F_tensor] · w[F_tensor, D_fsdp] -> y[B, T_tensor, D]   gather w over fsdp; reduce-scatter y
        down = self.down[...].astype(self.dtype)
        y = einsum("btf,fd->btd", h_BTF, down, out=("batch", "residual_sequence", "embed"), name="down")
        if self.model.mlp_bias:
            y = add_bias(y, self.down_bias[...].astype(self.dtype))
        return checkpoint_name(y, "mlp_out")

    def project(self, x_BTD: jax.Array, name: str) -> jax.Array:
        # x[B, T, D] · w[D_fsdp, F_tensor] -> h[B, T, F_tensor]   gather w over fsdp
        w_DF = getattr(self, name)[...].astype(self.dtype)
        h_BTF = einsum("btd,df->btf", x_BTD, w_DF, out=("batch", "sequence", "mlp"), name=name)
        if self.model.mlp_bias:
            h_BTF = add_bias(h_BTF, getattr(self, f"{name}_bias")[...].astype(self.dtype))
        return h_BTF


class Block(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)). x[B, T_tensor, D] between the matmuls."""

    def __init__(self, model: cfg.Model, step: cfg.Step, rngs: nnx.Rngs):
        make = Maker(model, step.param_dtype, rngs)
        self.attention_norm = Norm("attention_norm", make)
        self.attention = SelfAttention(model, step, rngs)
        self.mlp_norm = Norm("mlp_norm", make)
        self.mlp = Mlp(model, step, rngs)
        self.step = step

    def __call__(self, x_BTD: jax.Array, rope: Rope | None, segments: jax.Array | None) -> tuple[jax.Array, Auxiliary]:
        """The layer's output and its auxiliary sums; a dense layer has none."""
        x_BTD = named(x_BTD, "layer_in", self.step)
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), rope, segments)
        return x_BTD + self.mlp(self.mlp_norm(x_BTD)), {}

    def decode(
        self, x_BTD: jax.Array, rope: Rope | None, segments: jax.Array, cache: Cache, start: jax.Array
    ) -> tuple[jax.Array, Cache]:
        """The layer's output for the next T tokens, and its cache with them."""
        y, cache = self.attention.decode(self.attention_norm(x_BTD), rope, segments, cache, start)
        x_BTD = x_BTD + y
        return x_BTD + self.mlp(self.mlp_norm(x_BTD)), cache


def all_but_gathered_parameters(primitive: Any, *_: Any, **parameters: Any) -> bool:
    """What remat `none` keeps: all activations, but no gathered weights, or every device would end with whole layers.

    A weight's gather is the reshard whose result is marked reduced over the batch axes (see `sharding.move`).
    """
    if primitive.name != "reshard":
        return True
    return not set(parameters["dst_sharding"].spec.reduced) & set(axes_of("batch"))


class Transformer(nnx.Module):
    """Tokens [B, T] to logits [B, T, V]. Its layers are one block whose parameters have a leading `layers` dim."""

    def __init__(self, model: cfg.Model, step: cfg.Step | None = None, *, rngs: nnx.Rngs):
        step = step or cfg.Step()
        self.model, self.step, self.dtype = model, step, jnp.dtype(step.compute_dtype)
        make = Maker(model, step.param_dtype, rngs)
        self.embedding = make("embedding")
        if model.position == "learned":
            self.position_embedding = make("position")
        stack = nnx.vmap(lambda rngs: Block(model, step, rngs), transform_metadata={nnx.PARTITION_NAME: "layers"})
        self.layers = stack(rngs.split(model.num_layers))
        self.final_norm = Norm("final_norm", make)
        if not model.tie_embeddings:
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
        self, tokens_BT: jax.Array, *, positions: jax.Array | None = None, segments: jax.Array | None = None
    ) -> tuple[jax.Array, Auxiliary]:
        """`hidden`, and the auxiliary sums of all layers: each array of a block with a leading dim of layers [L, ...].

        What they mean is between the block that makes them and the objective that reads them.
        """
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
        positions = shard(positions, "batch", "sequence")
        segments = None if segments is None else shard(segments, "batch", "sequence")
        x_BTD = self.embed(tokens_BT, positions)
        graph, blocks = nnx.split(self.layers)
        rope = rotations(positions, self.model)
        layer = self.remat(lambda x, block: nnx.merge(graph, block)(x, rope, segments))
        x_BTD, sums = jax.lax.scan(layer, x_BTD, blocks, unroll=self.unroll)
        return self.final_norm(x_BTD), sums

    def embed(self, tokens_BT: jax.Array, positions: jax.Array) -> jax.Array:
        x_BTD = lookup(self.embedding[...], tokens_BT, dtype=self.dtype)
        if self.model.position == "learned":
            x_BTD = x_BTD + lookup(self.position_embedding[...], positions, dtype=self.dtype)
        return x_BTD

    @property
    def unroll(self) -> bool:
        chosen = self.step.unroll_layers
        return platform() == "cpu" if chosen is None else chosen

    def remat(self, layer: Callable) -> Callable:
        """`layer` with the activations that the backward pass recomputes, keeps, or takes from host memory."""
        remat, policies = self.step.remat, jax.checkpoint_policies
        if remat == "none":
            split = {axis for axes in dims_of(self.layers.attention.q[...]) for axis in axes}
            if not split & set(axes_of("batch")):
                return layer
            policy = all_but_gathered_parameters
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
        return jax.checkpoint(layer, policy=policy, prevent_cse=self.unroll)

    def head(self, x_BTD: jax.Array) -> jax.Array:
        """The matrix of the last matmul, gathered once for all the calls of `unembed` that will use it."""
        return self.gathered(x_BTD, self.last_matrix)

    @property
    def last_matrix(self) -> jax.Array:
        """The head's matrix as it is kept."""
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
        if self.model.logits_softcap is not None:
            logits = self.model.logits_softcap * jnp.tanh(logits / self.model.logits_softcap)
        if self.model.padded_vocab_size > self.model.vocab_size:
            column = jax.lax.broadcasted_iota(
                jnp.int32, logits.shape, 2, out_sharding=spec("batch", "sequence", "vocab")
            )
            logits = jnp.where(column < self.model.vocab_size, logits, NEGATIVE)
        return logits

    # --- decoding ---

    def empty_cache(self, batch_size: int, length: int) -> Cache:
        """Keys and values of every layer: [L, B, S, K, H], kv heads split over the mesh."""
        heads = max(self.model.kv_heads, shard_count("kv_heads"))
        shape = (self.model.num_layers, batch_size, length, heads, self.model.head_size)
        layout = spec(None, "batch", None, "kv_heads", None)
        return {name: jnp.zeros(shape, self.dtype, out_sharding=layout) for name in ("k", "v")}

    def decode(
        self, tokens_BT: jax.Array, cache: Cache, *, positions: jax.Array, segments: jax.Array, start: jax.Array
    ) -> tuple[jax.Array, Cache]:
        """Logits of the last token and the cache with these tokens written at `start`.

        Args:
            tokens_BT: the next T tokens (a prompt, or one).
            positions: [B, T], their positions.
            segments: [B, S] over the whole cache: 0 where there is padding or nothing yet, else 1.
        """
        graph, state = nnx.split(self.layers)
        rope = rotations(positions, self.model)

        def layer(x, inputs):
            block_state, layer_cache = inputs
            return nnx.merge(graph, block_state).decode(x, rope, segments, layer_cache, start)

        x_BTD, cache = jax.lax.scan(layer, self.embed(tokens_BT, positions), (state, cache))
        x_BTD = self.final_norm(x_BTD)[:, -1:]
        x_BTD = shard(x_BTD, "batch", "sequence", "embed")
        return self.unembed(x_BTD, self.head(x_BTD))[:, 0], cache
