"""The smallest runs: one device with one row at a time, trained, evaluated and sampled from with one prompt.

A dim of size 1 is where an axis can be lost: it needs not be split, and broadcasting hides what is missing.
"""

import jax
import numpy as np
import pytest
from support import Setup, make_batch, make_config, place

from jaxscale.rollouts.choose import row_keys
from jaxscale.rollouts.sampler import Sampler

CASES = {
    "batch 1": (1, 1, {}, True),
    "batch 1, plain rows, chunked loss": (1, 1, {"loss": {"chunk": 8}}, False),
    "microbatches of one row": (2, 2, {}, True),
    "microbatches of one row, gpt2, full remat": (
        2,
        2,
        {
            "step": {"microbatches": 2, "remat": "full"},
            "model": {"position": "learned", "norm": "layernorm", "mlp": "gelu", "tie_embeddings": True},
        },
        False,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_one_device_one_row_at_a_time(case):
    batch_size, microbatches, sections, documents = CASES[case]
    sections = {"step": {"microbatches": microbatches}} | sections
    config = make_config(data={"batch_size": batch_size}, **sections)
    setup = Setup(config, batch=make_batch(config, documents=documents))
    with setup.context():
        program, state = setup.program, setup.program.init()
        whole = place(make_batch(config, documents=documents), setup.batch_sharding)
        judged = [jax.device_get(program.evaluate(state, batch)) for batch in (whole, setup.batch)]
        losses = []
        for _ in range(2):
            state, metrics = program.step(state, setup.batch)
            losses.append(float(metrics["loss"]))
    for sums in judged:
        assert sums["cross_entropy"] / sums["tokens"] == pytest.approx(losses[0], rel=1e-6)
    assert losses[1] < losses[0]
    sampler = Sampler(config, setup.mesh, setup.rules)
    options = {"max_new": 4, "temperature": 0.0}
    (tokens,) = sampler(state.params, [[3]], keys=row_keys(0, [0]), **options).rows()
    again = sampler(state.params, [[3], [3]], keys=row_keys(0, [0, 1]), **options).rows()
    assert len(tokens) == 4
    assert np.array_equal(again, [tokens, tokens])
