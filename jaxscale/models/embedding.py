"""Looking up rows of a table that is split over the mesh, without gathering the table."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxscale.models.sums import take
from jaxscale.parallel.local import on_each_device
from jaxscale.parallel.sharding import axes_of, dims_of, spec, to_spec


def lookup(table_VD: jax.Array, ids_BT: jax.Array, *, dtype: jnp.dtype) -> jax.Array:
    """Rows of the table for each id, as [B, T, D] in the layout of the residual stream.

    # table[V_tensor, D_fsdp], ids[B_{data,fsdp}, T] -> x[B_{data,fsdp}, T_tensor, D]

    Three steps, none of which moves the table: every device looks up the ids of all rows along fsdp in its own
    block (rows of other vocab shards give zeros); the blocks' sums are reduce-scattered over tensor; an all-to-all
    over fsdp trades columns for rows. Bytes sent go with the tokens of a device, not with the vocabulary, and
    backward is the same in reverse, with the table's gradient added where its block lives.

    shard_map, because a lookup in a split table makes the partitioner replicate it ("Involuntary full
    rematerialization").
    """
    batch, sequence = axes_of("batch"), axes_of("residual_sequence")
    vocab, embed = dims_of(table_VD)
    vocab = tuple(a for a in vocab if a not in batch)  # by default all of both; what an override splits otherwise
    trade = tuple(a for a in embed if a in batch)  # is gathered first
    table_VD = jax.reshard(table_VD, to_spec([vocab, trade]))
    scatter = sequence if sequence == vocab else ()
    rest = tuple(a for a in (*batch, *axes_of("sequence")) if a not in (*vocab, *trade))

    def local(table: jax.Array, ids: jax.Array) -> Any:
        if rest:  # here, so that the gradient crosses these axes in the table's dtype
            table = jax.lax.pcast(table, rest, to="varying")
        if trade:
            ids = jax.lax.all_gather(ids, trade, axis=0, tiled=True)
        if vocab:
            ids = ids - jax.lax.axis_index(vocab) * table.shape[0]
            inside = (ids >= 0) & (ids < table.shape[0])
            rows = jnp.where(inside[..., None], take(table, jnp.clip(ids, 0, table.shape[0] - 1)), 0).astype(dtype)
        else:
            rows = take(table, ids).astype(dtype)
        if scatter:
            rows = jax.lax.psum_scatter(rows, scatter, scatter_dimension=1, tiled=True)
        elif vocab:
            rows = jax.lax.psum(rows, vocab)
        return jax.lax.all_to_all(rows, trade, split_axis=0, concat_axis=2, tiled=True) if trade else rows

    out = spec("batch", "residual_sequence" if scatter else "sequence", None)
    run = on_each_device(local, (to_spec([vocab, trade]), spec("batch", "sequence")), out)
    with jax.named_scope("lookup"):
        x_BTD = run(table_VD, jax.reshard(ids_BT, spec("batch", "sequence")))
        moved: jax.Array = jax.reshard(x_BTD, spec("batch", "residual_sequence", "embed"))
        return moved
