"""Parameters made from the model's table, and the norms that layers share."""

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


class Norm(nnx.Module):
    """RMSNorm (arXiv:1910.07467), or with a bias LayerNorm, computed in float32."""

    def __init__(self, name: str, make: Maker):
        self.centred, self.eps = make.has(f"{name}_bias"), make.model.norm_eps
        self.scale = make(f"{name}_scale")
        if self.centred:
            self.bias = make(f"{name}_bias")

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32)
        if self.centred:
            y = y - y.mean(-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + self.eps)
        vectors = [self.scale, self.bias] if self.centred else [self.scale]
        y = with_vectors(lambda y, w, *b: y * w + b[0] if b else y * w, y, *(v[...].astype(x.dtype) for v in vectors))
        return y.astype(x.dtype)
