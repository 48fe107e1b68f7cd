"""How fast text becomes tokens, and tokens become batches on the mesh: tokens/s of preparing and of the feed alone."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import jax

from jaxscale import config as cfg
from jaxscale.bench.record import Figure, Row, measured
from jaxscale.data.prepare import prepare
from jaxscale.data.sources import text_source
from jaxscale.parallel.sharding import on_mesh
from jaxscale.training.build import mesh_and_rules
from jaxscale.training.feed import Feed, open_source
from jaxscale.training.step import batch_sharding


def load_rows(config: cfg.Config, devices: list[jax.Device], *, batches: int, burn_in: int = 4) -> Iterator[Row]:
    """Batches placed on the mesh one after another, with nothing computed on them: what the loader can give at most."""
    mesh, rules = mesh_and_rules(config, devices)
    rows = open_source(config, "train")
    assert rows is not None
    tokens, seconds = config.data.batch_size * config.data.seq_len, []
    with on_mesh(mesh, rules):
        feed = Feed(rows, config, batch_sharding(mesh), microbatches=config.step.microbatches)
        try:
            for number in range(burn_in + batches):
                start = time.perf_counter()
                jax.block_until_ready(next(feed))
                if number >= burn_in:
                    seconds.append(time.perf_counter() - start)
        finally:
            feed.close()
    figures = {
        "tokens_per_second": measured([tokens / s for s in seconds], "tokens/s"),
        "mean_tokens_per_second": Figure(value=tokens * len(seconds) / sum(seconds), unit="tokens/s"),
        "seconds": measured(seconds, "s"),
    }
    yield Row(
        labels={"part": "loading", "batch_size": config.data.batch_size, "seq_len": config.data.seq_len},
        figures=figures,
    )


def prepare_row(texts: list[str], tokenizer: str, *, repeats: int) -> Row:
    """The same text to a dataset, several times: tokenizing, shards, checksums."""
    rates, sizes, seconds = [], [], []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory(prefix="jaxscale-bench-") as folder:
            start = time.perf_counter()
            done = prepare(text_source(texts), tokenizer, Path(folder) / "data")
            seconds.append(time.perf_counter() - start)
            tokens = sum(split.tokens for split in done.index.splits.values())
        rates.append(tokens / seconds[-1])
        sizes.append(tokens)
    figures = {
        "tokens_per_second": measured(rates, "tokens/s"),
        "seconds": measured(seconds, "s"),
        "tokens": Figure(value=sizes[0], unit="tokens"),
    }
    return Row(labels={"part": "preparing", "tokenizer": tokenizer}, figures=figures)
