"""Where decoding keeps what attention reads of earlier tokens: arrays of all layers, or each layer's by itself.

Arrays of a layer are [B, ..., S, H]: the dim before the last is the tokens'. Stacked, all layers are one array
[L, B, ..., S, H] and a layer's number may be traced. Apart, they are a tuple, and the number is an int: so XLA's CPU
backend reads them where they lie, where it would copy a slice of a stack for each token.
"""

from typing import Any

import jax

Cache = dict[str, Any]  # name -> arrays of all layers
At = tuple[Any, jax.Array]  # where tokens are written: the layer, and the first one's place


def written(cache: Cache, new: dict[str, jax.Array], at: At) -> tuple[Cache, dict[str, jax.Array]]:
    """The cache with a layer's `new` arrays of some tokens, and that layer's whole arrays."""
    layer, start = at
    changed: Cache = {}
    layer_cache: dict[str, jax.Array] = {}
    for name, x in new.items():
        place: tuple[Any, ...] = (*[0] * (x.ndim - 2), start, 0)
        if isinstance(cache[name], tuple):
            layer_cache[name] = jax.lax.dynamic_update_slice(cache[name][layer], x, place)
            changed[name] = (*cache[name][:layer], layer_cache[name], *cache[name][layer + 1 :])
        else:
            changed[name] = jax.lax.dynamic_update_slice(cache[name], x[None], (layer, *place))
            layer_cache[name] = jax.lax.dynamic_index_in_dim(changed[name], layer, 0, keepdims=False)
    return changed, layer_cache


def apart(cache: Cache) -> Cache:
    """A stacked cache with each layer's arrays by themselves."""
    return {name: tuple(x[i] for i in range(len(x))) for name, x in cache.items()}
