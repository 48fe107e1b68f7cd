"""Parameters made from the model's table, and the norms that layers share."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from jaxscale import config as cfg
from jaxscale.blueprint.decoder import decoder
from jaxscale.parallel.sharding import with_vectors


class Maker:
    """Makes the decoder's parameters from its table: shape, logical axes and spread stand there (`blueprint.decoder`).

    A parameter is born sharded by its logical axes.
    """

    def __init__(self, model: cfg.Model, dtype: str, rngs: nnx.Rngs):
        self.model, self.dtype, self.rngs, self.table = model, dtype, rngs, decoder(model)

    def __call__(self, name: str) -> nnx.Param[jax.Array]:
        """The parameter of that row, of one layer: normal, ones, or zeros."""
        weight = self.table.weight(name)
        shape, axes = self.table.layer_shape(weight), self.table.layer_axes(weight)
        dtype = weight.kept_in(self.dtype)
        if weight.scale is None:
            value = jnp.ones(shape, dtype)
        elif std := weight.scale * self.model.init_std if weight.std is None else weight.std:
            value = std * jax.random.normal(self.rngs.params(), shape, dtype)
        else:
            value = jnp.zeros(shape, dtype)
        return nnx.Param(value, out_sharding=axes)

    def has(self, name: str) -> bool:
        return self.table.has(name)


def scaled(x: jax.Array, factor: float) -> jax.Array:
    """`x` times a number of the config, in x's dtype; no operation for 1."""
    return x if factor == 1 else x * factor


class Norm(nnx.Module):
    """RMSNorm (arXiv:1910.07467), or with a bias LayerNorm, computed in float32.

    Over as many of the last dims as its scale has; `repeat` makes the scale that of repeated heads.
    """

    def __init__(self, name: str, make: Maker, repeat: Callable[[jax.Array], jax.Array] | None = None):
        self.centred, self.eps = make.has(f"{name}_bias"), make.model.norm_eps
        self.repeat, self.plus = repeat, 1.0 if make.model.norm_plus_one else 0.0
        self.scale = make(f"{name}_scale")
        if self.centred:
            self.bias = make(f"{name}_bias")

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32)
        if self.centred:
            y = y - y.mean(-1, keepdims=True)
        vectors = [v[...].astype(x.dtype) for v in ([self.scale, self.bias] if self.centred else [self.scale])]
        dims = tuple(range(-vectors[0].ndim, 0))
        y = y * jax.lax.rsqrt(jnp.mean(y * y, dims, keepdims=True) + self.eps)
        if self.repeat is not None:
            vectors = [self.repeat(v) for v in vectors]
        return with_vectors(self.weighted, y, *vectors).astype(x.dtype)

    def weighted(self, y: jax.Array, w: jax.Array, *b: jax.Array) -> jax.Array:
        y = y * (w + self.plus) if self.plus else y * w
        return y + b[0] if b else y
