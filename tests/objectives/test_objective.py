"""An objective as a value: what it reads, what it sums, what is divided; auxiliary sums of layers."""

from dataclasses import replace
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import Setup, make_batch, make_config

from jaxscale import config as cfg
from jaxscale import objectives
from jaxscale.data.columns import TEXT
from jaxscale.data.tokens import Synthetic
from jaxscale.models import transformer
from jaxscale.objectives import OBJECTIVES, make_objective
from jaxscale.training import feed, metrics
from jaxscale.training.step import abstract_batch

EIGHT = {"data": 2, "fsdp": 2, "tensor": 2}


def use(monkeypatch, **changes):
    """The objective of every config, changed."""
    make = OBJECTIVES["next_token"]
    monkeypatch.setitem(objectives.OBJECTIVES, "next_token", lambda config: replace(make(config), **changes))


def test_a_config_names_every_objective():
    assert set(get_args(cfg.Objective.model_fields["kind"].annotation)) == set(OBJECTIVES)


def test_a_config_with_another_name_is_refused():
    with pytest.raises(ValueError, match=r"objective\.kind"):
        make_config(objective={"kind": "nexttoken"})


def test_a_batch_has_the_columns_that_are_read_and_no_others():
    config = make_config()
    assert make_objective(config).reads(documents=False) == ("tokens", "targets", "weights")
    setup = Setup(config)
    with setup.context():
        assert set(abstract_batch(config, setup.mesh, documents=True)) == set(TEXT)


def test_a_column_that_the_data_lacks_is_refused_in_one_line(monkeypatch):
    use(monkeypatch, columns=("tokens", "advantages"))
    with pytest.raises(ValueError, match="advantages") as error:
        feed.open_source(make_config(), "train")
    assert str(error.value) == (
        "objective.kind=next_token reads the column advantages, and data.kind=synthetic gives only tokens, targets, "
        "segments, positions, weights; choose another objective or other data"
    )
    assert Synthetic(10, 8).columns == TEXT


def test_what_is_counted_divides_and_has_its_name_among_the_metrics(monkeypatch):
    """Rows instead of tokens, in microbatches on eight devices: the sums are those of one device."""
    use(monkeypatch, count=lambda batch: (batch["weights"].max(-1) > 0).sum().astype(jnp.float32), unit="rows",
        means={"loss": "cross_entropy", "log_z": "z"}, validated=("loss", "log_z"))  # fmt: skip
    found = []
    for mesh, parts in (({}, 1), (EIGHT, 2)):
        setup = Setup(make_config(mesh, step={"microbatches": parts}))
        with setup.context():
            state = setup.program.init()
            sums = jax.device_get(setup.program.evaluate(state, setup.batch))
            values = jax.device_get(setup.program.step(state, setup.batch)[1])
        assert sums.keys() == {"cross_entropy", "z", "rows"}
        assert values["rows"] == sums["rows"] == 8
        assert values["loss"] == pytest.approx(sums["cross_entropy"] / 8, rel=1e-6)
        found.append([values["loss"], values["log_z"], values["grad_norm"]])
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5)


def test_its_flops_are_counted(monkeypatch):
    config = make_config()
    plain = metrics.model_flops_per_token(config, None)
    use(monkeypatch, flops_per_token=1e3)
    assert metrics.model_flops_per_token(config, None) == plain + 1e3


class Counting(transformer.Block):
    """A block with auxiliary sums: its tokens in each half of the sequence, and the squares of its input."""

    def __call__(self, x_BTD, rope, window, segments, counted=None):
        y, sums = super().__call__(x_BTD, rope, window, segments, counted)
        assert sums == {}
        halves = jnp.full(2, x_BTD.shape[0] * x_BTD.shape[1] / 2, jnp.float32)
        return y, {"tokens_of": halves, "squares": jnp.square(x_BTD.astype(jnp.float32)).sum()}


@pytest.mark.parametrize("remat", ["none", "full"])
@pytest.mark.parametrize("mesh", [{}, EIGHT], ids=["one", "eight"])
def test_auxiliary_sums_of_layers_come_to_the_objective(monkeypatch, mesh, remat):
    """By layer, beside its other sums, with a gradient; without them nothing of the program changes."""
    monkeypatch.setattr(transformer, "Block", Counting)
    make = OBJECTIVES["next_token"]

    def with_squares(config):
        plain = make(config)

        def sums(model, batch, **options):
            found = plain.sums(model, batch, **options)
            assert found["tokens_of"].shape == (config.model.num_layers, 2)
            return found | {
                "objective": found["objective"] + 1e-3 * found["squares"].mean(),
                "first": found["squares"][0],
            }

        return replace(plain, sums=sums, means={"loss": "cross_entropy", "first": "first"})

    monkeypatch.setitem(objectives.OBJECTIVES, "next_token", with_squares)
    config = make_config(mesh, step={"remat": remat}, loss={"chunk": 8})
    setup = Setup(config)
    with setup.context():
        state = setup.program.init()
        embedding = np.asarray(jax.device_get(state.params["embedding"]))
        values = jax.device_get(setup.program.step(state, setup.batch)[1])
    batch = make_batch(config)
    wanted = np.square(embedding[batch["tokens"]]).sum() / batch["weights"].sum()
    assert values["first"] == pytest.approx(wanted, rel=1e-5)
