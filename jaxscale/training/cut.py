"""A batch in parts of rows, cut where they lie on the devices."""

import jax
import jax.numpy as jnp

from jaxscale.blueprint.rules import count
from jaxscale.parallel.sharding import current_mesh, dims_of, to_spec


def in_parts(x: jax.Array, most: int) -> jax.Array:
    """[parts, B, T] as more parts of at most `most` rows, without moving any between devices: x[i::n] is a part.

    The rows of a part still divide by the devices that they are split over; where no such cut exists, x as it is.
    """
    parts, rows, length = x.shape
    dims = dims_of(x)
    split = count(dims[1], current_mesh().shape)
    n = next((n for n in range(-(-rows // most), rows + 1) if rows % n == 0 and rows // n % split == 0), 1)
    if n == 1:
        return x
    # x[parts, B_data, T] -> [parts, B/n_data, n, T]: each device cuts its own rows
    cut = jax.lax.reshape(x, (parts, rows // n, n, length), out_sharding=to_spec([(), dims[1], (), dims[2]]))
    return jnp.moveaxis(cut, 2, 1).reshape(parts * n, rows // n, length)
