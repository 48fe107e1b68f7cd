"""One side: jaxscale's own step (`make_program`, fed by `Feed`). It writes the parameters that both start from."""

import sys
from pathlib import Path

import jax
import numpy as np

from benchmarks.common import serve, time_steps
from benchmarks.peers.shapes import run_config
from jaxscale.parallel.mesh import start_devices
from jaxscale.process.heap import keep_heap
from jaxscale.training.build import build
from jaxscale.training.feed import Feed, open_source
from jaxscale.training.peak import measure_peak


def main(family: str, device: str, initial: Path) -> None:
    keep_heap()  # as the command line does
    config = run_config(family, device)
    devices = start_devices(config.runtime)
    if (device == "cpu") != (devices[0].platform == "cpu"):
        raise SystemExit(f"--device {device}, and JAX has {devices[0].platform}")
    setup = build(config, devices[:1])
    program = setup.program
    with setup.context():
        held = {"state": program.init()}
        leaves = jax.tree_util.tree_leaves_with_path(held["state"].params)
        np.savez(initial, **{jax.tree_util.keystr(k): v for k, v in leaves})
        feed = Feed(open_source(config, "train"), config, setup.batch_sharding)

        def one() -> float:
            held["state"], metrics = program.step(held["state"], next(feed))
            loss = float(jax.device_get(metrics["loss"]))
            jax.block_until_ready(held["state"])
            return loss

        serve(
            {"device": devices[0].device_kind, "optimizer": "AdamW, optax"},
            steps=lambda count: time_steps(one, count),
            matmul=lambda: measure_peak(devices[0], "float32", sizes=(1024, 2048)).flops_per_second,
        )
        feed.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
