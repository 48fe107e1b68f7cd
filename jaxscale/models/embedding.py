"""Looking up rows of a table that is split over the mesh, without gathering the table."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxscale.models.sums import take
from jaxscale.parallel.local import on_each_device
from jaxscale.parallel.sharding import axes_of, dims_of, spec, to_spec


def lookup(table_VD: jax.Array, ids_BT: jax.Array, *, dtype: jnp.dtype) -> jax.Array:
    """Rows of the table for each id, as [B, T, D] in the layout of the residual stream.

    # table[V_{tensor,pipeline}, D_{fsdp,context}], ids[B_{data,fsdp}, T_context]
    #     -> x[B_{data,fsdp}, T_{context,tensor}, D]

    Three steps, none of which moves the table: every device looks up the ids of all rows along fsdp, and of their
    tokens along context, in its own block (rows of other vocab shards give zeros); the blocks' sums are
    reduce-scattered over tensor, and all-reduced over pipeline; all-to-alls over fsdp and context trade columns for
    rows and for tokens. Bytes sent go with the tokens of a device, not with the vocabulary, and backward is the same
    in reverse, with the table's gradient added where its block lives.

    shard_map, because a lookup in a split table makes the partitioner replicate it ("Involuntary full
    rematerialization").
    """
    batch, sequence = axes_of("batch"), axes_of("sequence")
    vocab, embed = dims_of(table_VD)
    vocab = tuple(a for a in vocab if a not in (*batch, *sequence))  # by default all of both; what an override
    rows = tuple(a for a in embed if a in batch)  # splits otherwise is gathered first
    tokens = tuple(a for a in embed if a in sequence)
    table_VD = jax.reshard(table_VD, to_spec([vocab, (*rows, *tokens)]))
    residual = axes_of("residual_sequence")
    scatter = residual[len(sequence) :]  # the blocks' sums lie where the stream's tokens do, where they can at once
    if residual[: len(sequence)] != sequence or not set(scatter) <= set(vocab):
        scatter = ()
    summed = tuple(a for a in vocab if a not in scatter)
    rest = tuple(a for a in (*batch, *sequence) if a not in (*vocab, *rows, *tokens))

    def local(table: jax.Array, ids: jax.Array) -> Any:
        if rest:  # here, so that the gradient crosses these axes in the table's dtype
            table = jax.lax.pcast(table, rest, to="varying")
        if rows:
            ids = jax.lax.all_gather(ids, rows, axis=0, tiled=True)
        if tokens:
            ids = jax.lax.all_gather(ids, tokens, axis=1, tiled=True)
        x = rows_of(table, ids, vocab, dtype)
        shards = jax.lax.axis_size(tokens) if tokens else 1
        x = x.reshape(x.shape[0], shards, -1, x.shape[-1])  # the tokens of each device along context
        if scatter:
            x = jax.lax.psum_scatter(x, scatter, scatter_dimension=2, tiled=True)
        if summed:
            x = jax.lax.psum(x, summed)
        if tokens:
            x = jax.lax.all_to_all(x, tokens, split_axis=1, concat_axis=3, tiled=True)
        if rows:
            x = jax.lax.all_to_all(x, rows, split_axis=0, concat_axis=3, tiled=True)
        return x.reshape(x.shape[0], -1, x.shape[-1])

    out = spec("batch", "residual_sequence" if scatter else "sequence", None)
    layouts = (to_spec([vocab, (*rows, *tokens)]), spec("batch", "sequence"))
    run = on_each_device(local, layouts, out)
    with jax.named_scope("lookup"):
        x_BTD = run(table_VD, jax.reshard(ids_BT, spec("batch", "sequence")))
        moved: jax.Array = jax.reshard(x_BTD, spec("batch", "residual_sequence", "embed"))
        return moved


def rows_of(table: jax.Array, ids: jax.Array, vocab: tuple[str, ...], dtype: jnp.dtype) -> jax.Array:
    """Rows of a device's own block of the table: partial sums over `vocab`, as other blocks' rows are zeros."""
    if not vocab:
        return take(table, ids).astype(dtype)
    ids = ids - jax.lax.axis_index(vocab) * table.shape[0]
    inside = (ids >= 0) & (ids < table.shape[0])
    return jnp.where(inside[..., None], take(table, jnp.clip(ids, 0, table.shape[0] - 1)), 0).astype(dtype)
