"""One layer of the decoder: attention and an MLP, each on the normed input and added to it.

Dims: B batch, T sequence, D embed, N query heads, K kv heads, H head dim, F mlp.
Parameters are kept in `param_dtype` and cast where they are used, before they are gathered.
"""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from jaxscale import config as cfg
from jaxscale.kernels.plain import visible
from jaxscale.models.attention import Attention, attend, attention
from jaxscale.models.cache import At, Cache, written
from jaxscale.models.experts import Experts
from jaxscale.models.latent import LatentAttention
from jaxscale.models.layers import Maker, Norm, scaled
from jaxscale.models.lora import adapted, give_adapters
from jaxscale.models.names import named
from jaxscale.models.rotary import Rope, rotate
from jaxscale.models.sums import add_bias
from jaxscale.parallel.local import on_each_device
from jaxscale.parallel.sharding import dims_of, einsum, gather, shard, shard_count, spec, to_spec

Auxiliary = dict[str, jax.Array]  # what a layer tells its objective beside its output, as sums over its tokens


class SelfAttention(nnx.Module):
    """Attention with grouped kv heads, rotary or no positions, optional biases and qk-norm."""

    def __init__(self, model: cfg.Model, step: cfg.Step, rngs: nnx.Rngs):
        self.model, self.step, self.dtype = model, step, jnp.dtype(step.compute_dtype)
        self.how = Attention(None, model.attention_softcap, step.attention, step.context_attention)
        asked, usual = model.attention_multiplier, model.head_size**-0.5  # the kernels' own
        self.of_queries = 1.0 if asked is None else asked / usual
        make = Maker(model, step.param_dtype, rngs)
        self.q, self.k, self.v, self.out = make("q"), make("k"), make("v"), make("out")
        if model.attention_bias:
            self.q_bias, self.k_bias, self.v_bias = make("q_bias"), make("k_bias"), make("v_bias")
        if model.attention_bias is True:
            self.out_bias = make("out_bias")
        if model.attention_sinks:
            self.sinks = make("sinks")
        if model.qk_norm:
            whole = model.qk_norm == "all_heads"
            self.q_norm = Norm("q_norm", make)
            self.k_norm = Norm("k_norm", make, partial(repeat_heads, dim=0) if whole else None)

    def __call__(
        self, x_BTD: jax.Array, rope: Rope | None, window: int | None, segments: jax.Array | None
    ) -> jax.Array:
        """Attention to the layer's window of tokens; None: to all."""
        q, k, v = self.queries_keys_values(x_BTD, rope)
        how = replace(self.how, sliding_window=window)
        return self.output(attention(q, k, v, segments, how, self.of_no_token))

    def decode(
        self,
        x_BTD: jax.Array,
        rope: Rope | None,
        window: int | None,
        segments: jax.Array,
        cache: Cache,
        at: At,
    ) -> tuple[jax.Array, Cache]:
        """The same for the next T tokens, which attend to the cache too; and the cache with them, written at `at`."""
        q, k, v = self.queries_keys_values(x_BTD, rope)
        cache, attended = self.attend_cached(q, k, v, cache, segments, at, window=window)
        return self.output(attended), cache

    @property
    def of_no_token(self) -> jax.Array | None:
        """The heads' sinks [N], split over the mesh as the queries' heads, in float32; None: there are none."""
        return shard(self.sinks[...].astype(jnp.float32), "heads") if self.model.attention_sinks else None

    def queries_keys_values(self, x_BTD: jax.Array, rope: Rope | None) -> tuple[jax.Array, jax.Array, jax.Array]:
        here, x_BTD = x_BTD, gather(x_BTD, "batch", "sequence", "embed", over="heads")
        q = checkpoint_name(adapted(self, "q", here, self.project(x_BTD, "q", "heads")), "q")
        k = checkpoint_name(adapted(self, "k", here, self.project(x_BTD, "k", "kv_heads"), repeat_heads), "k")
        v = checkpoint_name(adapted(self, "v", here, self.project(x_BTD, "v", "kv_heads"), repeat_heads), "v")
        if self.model.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        if rope is None:
            return scaled(q, self.of_queries), k, v
        sin, cos = rope
        # in float32 with the rotation: queries are not rounded once more
        return rotate(q, *(scaled(x, self.of_queries) for x in rope)), rotate(k, sin, cos), v

    def output(self, attended: jax.Array) -> jax.Array:
        # a[B, T, N_tensor, H] · w[N_tensor, H, D_fsdp] -> y[B, T_tensor, D]   gather w over fsdp; reduce-scatter y
        y = einsum(
            "btnh,nhd->btd", attended, self.weight("out"), out=("batch", "residual_sequence", "embed"), name="out"
        )
        if self.model.attention_bias is True:
            y = add_bias(y, self.weight("out_bias"))
        y = adapted(self, "out", attended, y)
        return named(y, "attention_out", self.step)

    def weight(self, name: str) -> jax.Array:
        weight: jax.Array = getattr(self, name)[...].astype(self.dtype)
        return weight

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

    def attend_cached(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        cache: Cache,
        segments: jax.Array,
        at: At,
        *,
        window: int | None,
    ) -> tuple[Cache, jax.Array]:
        """Write k, v into the cache and attend to all of this layer's; `segments` [B, S] is 0 where nothing is."""
        start = at[1]
        cache, layer_cache = written(cache, {"k": k.swapaxes(1, 2), "v": v.swapaxes(1, 2)}, at)
        heads, kv = spec("batch", None, "heads", None), spec("batch", "kv_heads", None, None)
        T, S = q.shape[1], segments.shape[1]

        sinks = self.of_no_token

        def local(
            q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array, start: jax.Array, *sinks: jax.Array
        ) -> jax.Array:
            mask_TS = visible(start + jnp.arange(T)[:, None], jnp.arange(S)[None, :], window)
            q_segments = jax.lax.dynamic_slice_in_dim(segments, start, T, 1)
            mask = mask_TS & (q_segments[:, :, None] == segments[:, None, :])
            k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
            return attend(q, k, v, mask, softcap=self.how.softcap, sinks_N=sinks[0] if sinks else None)

        more = () if sinks is None else (sinks,)
        specs = (heads, kv, kv, spec("batch", None), spec(), *[spec("heads")] * len(more))
        run = on_each_device(local, specs, heads, check_vma=False)
        return cache, run(q, layer_cache["k"], layer_cache["v"], segments, start, *more)


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
    repeated: jax.Array = jax.reshard(w, to_spec([*dims[:dim], split, *dims[dim + 1 :]]))
    return repeated


class Mlp(nnx.Module):
    """SwiGLU or GeGLU (arXiv:2002.05202), or a gelu of two matmuls.

    Args:
        prefix: of its names in the model's table: the MLP that all tokens go to beside experts is `shared_`.
    """

    def __init__(self, model: cfg.Model, step: cfg.Step, rngs: nnx.Rngs, prefix: str = ""):
        self.model, self.dtype, self.prefix = model, jnp.dtype(step.compute_dtype), prefix
        make = Maker(model, step.param_dtype, rngs)
        self.gated = model.mlp != "gelu"
        if self.gated:
            self.gate = make(f"{prefix}gate")
        self.up, self.down = make(f"{prefix}up"), make(f"{prefix}down")
        if model.mlp_bias:
            self.up_bias, self.down_bias = make("up_bias"), make("down_bias")
            if self.gated:
                self.gate_bias = make("gate_bias")

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        here, x_BTD = x_BTD, gather(x_BTD, "batch", "sequence", "embed", over="mlp")
        saved = self.prefix or "mlp_"
        up = checkpoint_name(adapted(self, "up", here, self.project(x_BTD, "up")), f"{saved}up")
        if self.gated:
            gate = checkpoint_name(adapted(self, "gate", here, self.project(x_BTD, "gate")), f"{saved}gate")
            h_BTF = (jax.nn.silu(gate) if self.model.mlp == "swiglu" else jax.nn.gelu(gate, approximate=True)) * up
        else:
            h_BTF = jax.nn.gelu(up, approximate=True)
        # h[B, T, F_tensor] · w[F_tensor, D_fsdp] -> y[B, T_tensor, D]   gather w over fsdp; reduce-scatter y
        down = self.down[...].astype(self.dtype)
        out = ("batch", "residual_sequence", "embed")
        y = einsum("btf,fd->btd", h_BTF, down, out=out, name=f"{self.prefix}down")
        if self.model.mlp_bias:
            y = add_bias(y, self.down_bias[...].astype(self.dtype))
        y = adapted(self, "down", h_BTF, y)
        tagged: jax.Array = checkpoint_name(y, f"{saved}out")
        return tagged

    def project(self, x_BTD: jax.Array, name: str) -> jax.Array:
        # x[B, T, D] · w[D_fsdp, F_tensor] -> h[B, T, F_tensor]   gather w over fsdp
        w_DF = getattr(self, name)[...].astype(self.dtype)
        h_BTF = einsum("btd,df->btf", x_BTD, w_DF, out=("batch", "sequence", "mlp"), name=f"{self.prefix}{name}")
        if self.model.mlp_bias:
            h_BTF = add_bias(h_BTF, getattr(self, f"{name}_bias")[...].astype(self.dtype))
        return h_BTF


class Block(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)). x[B, T_tensor, D] between the matmuls.

    The norms may be on what is added instead, or on both: `norm_at`.

    Args:
        experts: an MLP of experts, and beside it one that all tokens go to, where the model has one.
    """

    def __init__(self, model: cfg.Model, step: cfg.Step, rngs: nnx.Rngs, *, experts: bool = False):
        make = Maker(model, step.param_dtype, rngs)
        self.before, self.after = model.norm_at != "after", model.norm_at != "before"
        if self.before:
            self.attention_norm, self.mlp_norm = Norm("attention_norm", make), Norm("mlp_norm", make)
        if self.after:
            self.attention_out_norm = Norm("attention_out_norm", make)
            self.mlp_out_norm = Norm("mlp_out_norm", make)
        self.attention = (LatentAttention if model.latent else SelfAttention)(model, step, rngs)
        self.mlp = Experts(model, step, rngs) if experts else Mlp(model, step, rngs)
        if experts and model.moe and model.moe.shared_mlp_dim:
            self.shared = Mlp(model, step, rngs, "shared_")
        give_adapters(self, model, step, rngs)
        self.model, self.step = model, step

    def __call__(
        self,
        x_BTD: jax.Array,
        rope: Rope | None,
        window: int | None,
        segments: jax.Array | None,
        counted: jax.Array | None = None,
    ) -> tuple[jax.Array, Auxiliary]:
        """The layer's output and its auxiliary sums, where a token counts `counted` [B, T]; a dense layer has none."""
        x_BTD = named(x_BTD, "layer_in", self.step)
        y = self.attention(self.read(x_BTD, "attention"), rope, window, segments)
        x_BTD = self.added(x_BTD, y, "attention")
        y, sums = self.feed_forward(self.read(x_BTD, "mlp"), counted)
        return self.added(x_BTD, y, "mlp"), sums

    def read(self, x_BTD: jax.Array, part: str) -> jax.Array:
        """What attention or MLP reads of the stream."""
        normed: jax.Array = getattr(self, f"{part}_norm")(x_BTD) if self.before else x_BTD
        return normed

    def added(self, x_BTD: jax.Array, y: jax.Array, part: str) -> jax.Array:
        """The stream with what attention or MLP makes of it."""
        if self.after:
            y = getattr(self, f"{part}_out_norm")(y)
        return x_BTD + scaled(y, self.model.residual_multiplier)

    def feed_forward(self, x_BTD: jax.Array, counted: jax.Array | None) -> tuple[jax.Array, Auxiliary]:
        """The MLP, or the experts; and their sums."""
        if not isinstance(self.mlp, Experts):
            return self.mlp(x_BTD), {}
        y, sums = self.mlp(x_BTD, counted)
        return (y + self.shared(x_BTD) if hasattr(self, "shared") else y), sums

    def decode(
        self,
        x_BTD: jax.Array,
        rope: Rope | None,
        window: int | None,
        segments: jax.Array,
        cache: Cache,
        at: At,
    ) -> tuple[jax.Array, Cache]:
        """The layer's output for the next T tokens, and the cache of all layers with them."""
        y, cache = self.attention.decode(self.read(x_BTD, "attention"), rope, window, segments, cache, at)
        x_BTD = self.added(x_BTD, y, "attention")
        return self.added(x_BTD, self.feed_forward(self.read(x_BTD, "mlp"), None)[0], "mlp"), cache
