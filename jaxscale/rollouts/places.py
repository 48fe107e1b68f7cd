"""Rows that every process has, as arrays of a batch on the mesh."""

from collections.abc import Mapping

import jax
import numpy as np

from jaxscale import config as cfg
from jaxscale.blueprint.sequence import in_zigzag, order
from jaxscale.objectives.objective import Batch
from jaxscale.training.feed import place_rows, rows_needed


class Places:
    """Columns [R, T] in reading order, the same on every process, as arrays [microbatches, B, T].

    Attributes:
        names: the columns that are placed.
        back: indices that put tokens of a placed row into reading order again.
    """

    def __init__(self, config: cfg.Config, sharding: jax.sharding.Sharding, names: tuple[str, ...]):
        data, parts = config.data, config.step.microbatches
        self.sharding, self.shape, self.names = sharding, (parts, data.batch_size // parts, data.seq_len), names
        self.rows = rows_needed(sharding, self.shape)
        shards = data.seq_len // sharding.shard_shape(self.shape)[2]
        same = np.arange(data.seq_len)
        self.order = order(data.seq_len, shards, zigzag=in_zigzag(config)) if shards > 1 else same
        self.back = np.argsort(self.order)

    def __call__(self, columns: Mapping[str, np.ndarray]) -> Batch:
        return {
            name: place_rows(columns[name][self.rows][:, self.order], self.rows, self.shape, self.sharding)
            for name in self.names
            if name in columns
        }
