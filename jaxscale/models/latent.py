"""Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, 2.1).

Dims: B batch, T sequence, S cache, D embed, N heads, H head dim of queries and keys, Y its rotary part, O values; X, J
latents of queries and of keys and values; A the latter with the rotary keys; W a head's other keys and its values.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from jaxscale import config as cfg
from jaxscale.kernels.plain import visible
from jaxscale.models.attention import Attention, attend, attention
from jaxscale.models.cache import At, Cache, written
from jaxscale.models.layers import Maker, Norm, scaled
from jaxscale.models.names import named
from jaxscale.models.rotary import Rope, rotate
from jaxscale.parallel.local import on_each_device
from jaxscale.parallel.sharding import einsum, gather, shard, spec

EPS = 1e-6  # of the latents' norms, whatever the model's norm_eps is: the published code gives it to none of them


class LatentAttention(nnx.Module):
    """Queries, keys and values of all heads made of latents; one rotary part of keys for all heads."""

    def __init__(self, model: cfg.Model, step: cfg.Step, rngs: nnx.Rngs):
        assert model.latent is not None
        self.model, self.latent, self.step, self.dtype = model, model.latent, step, jnp.dtype(step.compute_dtype)
        self.how = Attention(None, model.attention_softcap, step.attention, step.context_attention)
        self.multiplier = model.attention_multiplier or model.head_size**-0.5
        make = Maker(model, step.param_dtype, rngs)
        if self.latent.q_rank:
            self.q_down, self.q_latent_norm, self.q_up = make("q_down"), Norm("q_latent_norm", make), make("q_up")
            self.q_latent_norm.eps = EPS
        else:
            self.q = make("q")
        self.kv_down, self.kv_latent_norm, self.kv_up = make("kv_down"), Norm("kv_latent_norm", make), make("kv_up")
        self.kv_latent_norm.eps = EPS
        self.out = make("out")

    def __call__(
        self, x_BTD: jax.Array, rope: Rope | None, window: int | None, segments: jax.Array | None
    ) -> jax.Array:
        """Attention to the layer's window of tokens, by keys and values of every head; None: to all."""
        assert rope is not None
        latent_BTJ, shared_BTY = self.latents(x_BTD, rope)
        # c[B, T_tensor, J] · w[J_fsdp, N_tensor, W] -> kv[B, T, N_tensor, W]   gather w over fsdp, c over tensor
        out = ("batch", "sequence", "heads", "head_dim")
        kv = checkpoint_name(einsum("btj,jnw->btnw", latent_BTJ, self.weight("kv_up"), out=out, name="kv_up"), "kv")
        k, v = jnp.split(kv, [self.latent.nope_head_dim], axis=-1)
        shape = (*k.shape[:3], self.latent.rope_head_dim)
        with jax.named_scope("shared_keys"):  # the gradients of all heads are added up
            shared = jax.lax.broadcast_in_dim(shared_BTY, shape, (0, 1, 3), out_sharding=spec(*out))
        usual = self.model.head_size**-0.5  # the kernels' own
        q = self.queries(x_BTD, rope, self.multiplier / usual)
        how = replace(self.how, sliding_window=window)
        return self.output(attention(q, jnp.concatenate([k, shared], axis=-1), v, segments, how))

    def decode(
        self,
        x_BTD: jax.Array,
        rope: Rope | None,
        window: int | None,
        segments: jax.Array,
        cache: Cache,
        at: At,
    ) -> tuple[jax.Array, Cache]:
        """The same for the next T tokens by the latents alone, which the cache keeps: no head's keys are made.

        q · (c W_k) is (q W_k) · c, so W_k is multiplied with the queries and W_v with the result (2.1.2 there).
        """
        assert rope is not None
        latent_BTJ, shared_BTY = self.latents(x_BTD, rope)
        new = {"kv": shard(latent_BTJ, "batch", "sequence", "latent"), "rope": shared_BTY}
        cache, layer_cache = written(cache, new, at)
        nope, J = self.latent.nope_head_dim, self.latent.kv_rank
        w_k, w_v = jnp.split(self.weight("kv_up"), [nope], axis=-1)
        usual = (J + self.latent.rope_head_dim) ** -0.5  # of keys that are latents
        q, q_rope = jnp.split(self.queries(x_BTD, rope, self.multiplier / usual), [nope], axis=-1)
        out = ("batch", "sequence", "heads", "latent")
        q = jnp.concatenate([einsum("btnh,jnh->btnj", q, w_k, out=out, name="q_of_latents"), q_rope], axis=-1)
        attended = self.attend_latents(q, layer_cache, segments, at[1], window)
        out = ("batch", "sequence", "heads", "head_dim")
        return self.output(einsum("btnj,jno->btno", attended, w_v, out=out, name="values_of_latents")), cache

    def attend_latents(
        self, q: jax.Array, cache: dict[str, jax.Array], segments: jax.Array, start: jax.Array, window: int | None
    ) -> jax.Array:
        """[B, T, N, J]: what each head's queries gather of the cache's latents."""
        T, S = q.shape[1], segments.shape[1]

        def local(q: jax.Array, kv: jax.Array, rope: jax.Array, segments: jax.Array, start: jax.Array) -> jax.Array:
            mask_TS = visible(start + jnp.arange(T)[:, None], jnp.arange(S)[None, :], window)
            q_segments = jax.lax.dynamic_slice_in_dim(segments, start, T, 1)
            mask = mask_TS & (q_segments[:, :, None] == segments[:, None, :])
            keys = jnp.concatenate([kv, rope], axis=-1)[:, :, None]
            return attend(q, keys, kv[:, :, None], mask, softcap=self.how.softcap)

        heads, whole = spec("batch", None, "heads", None), spec("batch", None, None)
        run = on_each_device(local, (heads, whole, whole, spec("batch", None), spec()), heads, check_vma=False)
        return run(q, cache["kv"], cache["rope"], segments, start)

    def latents(self, x_BTD: jax.Array, rope: Rope) -> tuple[jax.Array, jax.Array]:
        """Of keys and values: the latent [B, T_tensor, J], normed, and the keys' rotary part [B, T, Y], turned."""
        # x[B, T_tensor, D] · w[D_fsdp, A] -> kv[B, T_tensor, A]   gather w over fsdp
        kv = checkpoint_name(self.down(x_BTD, "btd,da->bta", "kv_down"), "kv_latent")
        latent, shared = jnp.split(kv, [self.latent.kv_rank], axis=-1)
        with jax.named_scope("shared_keys"):
            shared = shard(shared, "batch", "sequence", "head_dim")
        turned = rotate(shared[:, :, None], *rope, interleaved=self.latent.interleaved)
        return self.kv_latent_norm(latent), turned[:, :, 0]

    def queries(self, x_BTD: jax.Array, rope: Rope, factor: float) -> jax.Array:
        """[B, T, N, H] with the rotary part last, times `factor`."""
        out = ("batch", "sequence", "heads", "head_dim")
        if self.latent.q_rank:
            c = self.q_latent_norm(checkpoint_name(self.down(x_BTD, "btd,dq->btq", "q_down"), "q_latent"))
            # c[B, T_tensor, X] · w[X_fsdp, N_tensor, H] -> q[B, T, N_tensor, H]   gather w over fsdp, c over tensor
            q = einsum("btx,xnh->btnh", c, self.weight("q_up"), out=out, name="q_up")
        else:
            x_BTD = gather(x_BTD, "batch", "sequence", "embed", over="heads")
            q = einsum("btd,dnh->btnh", x_BTD, self.weight("q"), out=out, name="q")
        q, q_rope = jnp.split(checkpoint_name(q, "q"), [self.latent.nope_head_dim], axis=-1)
        q_rope = rotate(q_rope, *(scaled(x, factor) for x in rope), interleaved=self.latent.interleaved)
        return jnp.concatenate([scaled(q, factor), q_rope], axis=-1)

    def down(self, x_BTD: jax.Array, formula: str, name: str) -> jax.Array:
        """A latent, made of tokens where they lie between matmuls: tensor parallelism then gathers less than D."""
        return einsum(formula, x_BTD, self.weight(name), out=("batch", "residual_sequence", "latent_out"), name=name)

    def output(self, attended: jax.Array) -> jax.Array:
        # a[B, T, N_tensor, O] · w[N_tensor, O, D_fsdp] -> y[B, T_tensor, D]   gather w over fsdp; reduce-scatter y
        out = ("batch", "residual_sequence", "embed")
        y = einsum("btno,nod->btd", attended, self.weight("out"), out=out, name="out")
        return named(y, "attention_out", self.step)

    def weight(self, name: str) -> jax.Array:
        weight: jax.Array = getattr(self, name)[...].astype(self.dtype)
        return weight


def empty_cache(model: cfg.Model, batch_size: int, length: int, dtype: jnp.dtype) -> Cache:
    """Latents of every layer [L, B, S, J], and the keys' rotary part [L, B, S, Y]; whole on each device of a row."""
    assert model.latent is not None
    widths = {"kv": model.latent.kv_rank, "rope": model.latent.rope_head_dim}
    layout = spec(None, "batch", None, None)
    return {
        name: jnp.zeros((model.num_layers, batch_size, length, width), dtype, out_sharding=layout)
        for name, width in widths.items()
    }
