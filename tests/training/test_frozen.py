"""Parameters that an objective does not train stay as they are, have no optimizer state, and are saved and used."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from support import Listener, Setup, make_config

from jaxscale import objectives
from jaxscale.objectives import OBJECTIVES
from jaxscale.parallel.mesh import make_mesh
from jaxscale.parallel.sharding import fit_rules, make_rules, on_mesh
from jaxscale.serving.serve import restore_params
from jaxscale.training.frozen import split, whole
from jaxscale.training.step import make_program, used_parameters
from jaxscale.training.trainer import train

NAMES = ("embedding", "attention")
EIGHT = {"data": 2, "fsdp": 2, "tensor": 2}


@pytest.fixture(autouse=True)
def frozen(monkeypatch):
    make = OBJECTIVES["next_token"]
    monkeypatch.setitem(objectives.OBJECTIVES, "next_token", lambda config: replace(make(config), frozen=NAMES))


def test_a_tree_in_two_is_whole_again():
    tree = {"embedding": 1, "layers": {"attention": {"q": 2, "k": 3}, "mlp": {"up": (4, "x")}}, "score": 5}
    trained, held = split(tree, NAMES)
    assert trained == {"layers": {"mlp": {"up": (4, "x")}}, "score": 5}
    assert held == {"embedding": 1, "layers": {"attention": {"q": 2, "k": 3}}}
    assert whole(trained, held) == tree
    assert split(tree, ()) == (tree, {})
    with pytest.raises(ValueError, match="no parameter to freeze is called nope; paths are made of attention, "):
        split(tree, ("nope",))


def test_frozen_parameters_stay_bit_by_bit_and_the_others_learn_alike_on_every_mesh():
    found = []
    for mesh in ({}, EIGHT):
        setup = Setup(make_config(mesh, step={"microbatches": 2}))
        with setup.context():
            before = jax.device_get(setup.program.init().frozen)
        losses, _, state = setup.steps(4)
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.frozen), before)
        assert set(state.params["layers"]) == {"attention_norm", "mlp", "mlp_norm"}
        moments = state.opt_state[1][0].mu
        assert jax.tree.structure(moments) == jax.tree.structure(state.params)
        assert losses[-1] < losses[0]
        found.append(losses)
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5)


def test_they_are_saved_and_used(tmp_path):
    config = make_config(out=str(tmp_path), steps=2, optimizer={"ema": 0.5}, runtime={"simulated_devices": 1})
    first = train(config)
    second = train(config.model_copy(update={"steps": 3}), watcher=(listener := Listener()))
    assert any(line.startswith("resuming from step 2") for line in listener.lines)
    jax.tree.map(np.testing.assert_array_equal, *(jax.device_get(r.state.frozen) for r in (first, second)))
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    with on_mesh(mesh, fit_rules(make_rules(config.sharding), mesh.shape, config)):
        program = make_program(config)
        served = restore_params(tmp_path, program, config, None, print)
        wanted = used_parameters(config, second.state)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(served), jax.device_get(wanted))
    assert set(served) == {"embedding", "final_norm", "layers", "unembedding"}
