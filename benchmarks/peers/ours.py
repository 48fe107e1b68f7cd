"""One side: jaxscale's own step (`make_program`, fed by `Feed`). It writes the parameters that both start from."""

import sys
from pathlib import Path

import jax
import numpy as np

from benchmarks.common import serve, time_steps
from benchmarks.peers.shapes import run_config
from jaxscale.heap import keep_heap
from jaxscale.parallel.mesh import make_mesh, start_devices
from jaxscale.parallel.sharding import on_mesh
from jaxscale.training.feed import Feed, open_source
from jaxscale.training.peak import measure_peak
from jaxscale.training.step import batch_sharding, make_program
from jaxscale.training.trainer import rules_for


def main(family: str, device: str, initial: Path) -> None:
    keep_heap()  # as the command line does
    config = run_config(family, device)
    devices = start_devices(config.runtime)
    if (device == "cpu") != (devices[0].platform == "cpu"):
        raise SystemExit(f"--device {device}, and JAX has {devices[0].platform}")
    mesh = make_mesh(config.mesh, devices[:1])
    with on_mesh(mesh, rules_for(config, mesh, decoder=True)):
        program = make_program(config)
        held = {"state": program.init()}
        leaves = jax.tree_util.tree_leaves_with_path(held["state"].params)
        np.savez(initial, **{jax.tree_util.keystr(k): v for k, v in leaves})
        feed = Feed(open_source(config, "train"), config, batch_sharding(mesh))

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
