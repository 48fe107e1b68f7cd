"""Where the rows of a batch lie on the mesh, and in which order their tokens."""

from collections.abc import Mapping

import jax
import numpy as np

from jaxscale import config as cfg
from jaxscale.blueprint.sequence import in_zigzag, order
from jaxscale.objectives.objective import Batch


def rows_needed(
    sharding: jax.sharding.Sharding, shape: tuple[int, int, int], devices: set[jax.Device] | None = None
) -> np.ndarray:
    """Rows of the global batch that these devices hold, sorted: [microbatches, B, T] laid out by `sharding`.

    Row r of the global batch is row r % B of microbatch r // B.

    Args:
        devices: None: this process's.
    """
    everywhere = sharding.devices_indices_map(shape)
    devices = set(sharding.addressable_devices) if devices is None else devices
    rows = np.arange(shape[0] * shape[1]).reshape(shape[:2])
    return np.unique(
        np.concatenate([rows[index[:2]].ravel() for device, index in everywhere.items() if device in devices])
    )


class Places:
    """Rows [R, T] in reading order as arrays [microbatches, B, T] on the mesh.

    Attributes:
        shape: of the arrays.
        rows: numbers of the global batch's rows that this process holds.
        back: indices that put the tokens of a placed row into reading order again.
    """

    def __init__(self, config: cfg.Config, sharding: jax.sharding.Sharding, *, microbatches: int):
        data = config.data
        self.sharding, self.shape = sharding, (microbatches, data.batch_size // microbatches, data.seq_len)
        self.rows = rows_needed(sharding, self.shape)
        shards = data.seq_len // sharding.shard_shape(self.shape)[2]
        self.order = order(data.seq_len, shards, zigzag=in_zigzag(config)) if shards > 1 else None
        self.back = np.arange(data.seq_len) if self.order is None else np.argsort(self.order)

    def own(self, local: np.ndarray) -> jax.Array:
        """This process's rows as its part of the global array."""
        if self.order is not None:
            local = local[:, self.order]

        def block(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            wanted = np.arange(self.shape[0] * self.shape[1]).reshape(self.shape[:2])[index[:2]]
            return local[np.searchsorted(self.rows, wanted)][..., index[2]]

        return jax.make_array_from_callback(self.shape, self.sharding, block, dtype=local.dtype)

    def every(self, columns: Mapping[str, np.ndarray]) -> Batch:
        """Columns of all rows, which every process has alike."""
        return {name: self.own(values[self.rows]) for name, values in columns.items()}

    def read(self, placed: jax.Array) -> np.ndarray:
        """An array [parts, B, T] that every process has whole, as rows [R, T] in reading order."""
        array = np.asarray(jax.device_get(placed))
        return array.reshape(-1, array.shape[-1])[:, self.back]
