"""Evaluation is treated as the step is: one number on every mesh, in the step's parts, in no more memory; rows once."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import Listener, Setup, make_batch, make_config, place, random_params

from jaxscale.data import opening
from jaxscale.data.tokens import Synthetic
from jaxscale.training import feed
from jaxscale.training.cut import in_parts
from jaxscale.training.evaluation import EachOnce, ValidationLoss
from jaxscale.training.journal import Journal
from jaxscale.training.spikes import no_losses
from jaxscale.training.step import TrainState
from jaxscale.training.trainer import Run

EIGHT = {"data": 2, "fsdp": 2, "tensor": 2}
CASES = {
    "one device": ({}, {}, None),
    "one device, parts, chunks": ({}, {"microbatches": 4}, 8),
    "eight devices": (EIGHT, {}, None),
    "eight devices, parts, full remat, chunks": ({"data": 4, "fsdp": 2}, {"microbatches": 4, "remat": "full"}, 8),
}


def make_setup(mesh, step, chunk):
    config = make_config(mesh, step=step, loss={"chunk": chunk}, data={"batch_size": 32})
    return Setup(config, batch=make_batch(config))


def loss(sums):
    return float(sums["cross_entropy"]) / float(sums["tokens"])


def make_state(setup, params):
    """What evaluation reads of a state, placed."""
    layout = jax.tree.map(lambda x: x.sharding, setup.program.abstract.params)
    params = jax.device_put(params, layout)
    return TrainState(jnp.int32(0), params, (), no_losses(), {}, {}, {}, jax.random.key(0), {})


@functools.cache
def reference():
    """Parameters, and their loss on one device in one piece, summed in float64."""
    setup = make_setup({}, {}, None)
    params = random_params(setup.config)
    with setup.context():
        model = setup.program.merge(params)
        batch = {k: v[0] for k, v in setup.batch.items()}
        logits = model(batch["tokens"], positions=batch["positions"], segments=batch["segments"])
        logits = np.asarray(logits, np.float64)[..., : setup.config.model.vocab_size]
    log_z = np.log(np.exp(logits).sum(-1))
    target = np.take_along_axis(logits, np.asarray(batch["targets"])[..., None], -1)[..., 0]
    weights = np.asarray(batch["weights"], np.float64)
    return params, ((log_z - target) * weights).sum() / weights.sum()


@pytest.mark.parametrize("case", CASES)
def test_one_number_in_no_more_memory_than_the_step(case):
    """Also of a batch that comes whole: the memory forecast, which is the step's, covers evaluation."""
    setup = make_setup(*CASES[case])
    params, wanted = reference()
    whole = place(make_batch(setup.config), setup.batch_sharding)
    with setup.context():
        program, state = setup.program, make_state(setup, params)
        step = program.step.lower(program.abstract, setup.batch).compile()
        for batch in (whole, setup.batch) if setup.config.step.microbatches > 1 else (whole,):
            evaluate = program.evaluate.lower(state, batch).compile()
            assert loss(jax.device_get(evaluate(state, batch))) == pytest.approx(wanted, rel=1e-6)
            bytes_needed = [x.memory_analysis().temp_size_in_bytes for x in (evaluate, step)]
            assert bytes_needed[0] <= bytes_needed[1]


@pytest.mark.parametrize("mesh", [{"data": 1}, {"data": 2, "fsdp": 2}, {"data": 8}], ids=str)
@pytest.mark.parametrize(("shape", "most", "parts"), [((1, 32, 4), 8, 4), ((2, 16, 4), 16, 2), ((1, 24, 4), 10, 3)])
def test_a_batch_is_cut_where_it_lies(mesh, shape, most, parts):
    """Every row once, in parts that still fill the devices; nothing is sent."""
    setup = Setup(make_config(mesh))
    with setup.context():
        rows = np.arange(np.prod(shape), dtype=np.int32).reshape(-1, shape[2])
        x = place({"rows": rows}, setup.batch_sharding, shape[0])["rows"]
        cut = jax.jit(in_parts, static_argnums=1).lower(x, most).compile()
        got = cut(x)
    assert got.shape == (parts, shape[0] * shape[1] // parts, shape[2])
    assert sorted(map(tuple, np.asarray(got).reshape(-1, shape[2]))) == sorted(map(tuple, rows))
    assert got.sharding.spec == x.sharding.spec
    assert not any(word in cut.as_text() for word in ("all-gather", "all-to-all", "collective-permute", "all-reduce"))


def test_a_batch_that_cannot_be_cut_stays_whole():
    setup = Setup(make_config({"data": 8}))
    with setup.context():
        x = place({"rows": np.zeros((8, 4), np.int32)}, setup.batch_sharding)["rows"]
        assert jax.eval_shape(lambda x: in_parts(x, 2), x).shape == (1, 8, 4)


# --- rows -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("microbatches", [1, 2])
@pytest.mark.parametrize(("rows", "batches", "counted"), [(3, 8, 3), (8, 8, 8), (12, 8, 12), (12, 1, 8), (100, 2, 16)])
def test_every_row_of_the_split_counts_once(tmp_path, rows, batches, counted, microbatches):
    """Also where the split is smaller than a batch, or no multiple of it."""
    config = make_config(
        {"data": 4}, out=str(tmp_path), evaluation={"batches": batches}, step={"microbatches": microbatches}
    )
    source, seen, written = Synthetic(250, 32, num_rows=rows), [], []

    def evaluate(state, batch):
        assert batch["tokens"].shape == (microbatches, 8 // microbatches, 32)
        batch = {k: np.asarray(v) for k, v in batch.items()}
        seen.extend(map(tuple, batch["tokens"][batch["weights"].all(-1)]))
        return {"cross_entropy": (batch["targets"] * batch["weights"]).sum(), "tokens": batch["weights"].sum()}

    setup = Setup(config)
    with setup.context():
        journal = Journal(Listener())
        journal.metrics = SimpleNamespace(write=lambda *record, plotted: written.append(record))
        made_up = SimpleNamespace(config=config, program=SimpleNamespace(evaluate=evaluate), mesh=setup.mesh)
        run = Run(made_up, None, {}, journal, None, None)
        run.evaluate(None, 5, [ValidationLoss(source, config)])
    wanted = [source.row(i) for i in range(counted)]
    assert seen == [tuple(r["tokens"]) for r in wanted]
    assert run.validation_loss == pytest.approx(np.mean([r["targets"] for r in wanted]), rel=1e-12)
    assert written == [("validation", 5, {"loss": run.validation_loss, "batches": -(-counted // 8),
                                          "tokens": counted * 32})]  # fmt: skip


def test_rows_beyond_the_source_weigh_nothing():
    source = EachOnce(Synthetic(50, 8, num_rows=2), 5)
    assert [float(source.row(i)["weights"].sum()) for i in range(len(source))] == [8, 8, 0, 0, 0]


# --- no split to validate on -----------------------------------------------------------------------------------


def test_a_split_shorter_than_a_window_is_said_and_training_goes_on(monkeypatch):
    tokens, lines = {"train": 100, "validation": 32}, []
    about = {"vocab_size": 250, "fingerprint": None, "separator_id": None}
    stores = {k: SimpleNamespace(num_tokens=n, **about) for k, n in tokens.items()}
    monkeypatch.setattr(opening, "open_store", lambda data, split: stores[split])
    monkeypatch.setattr(opening, "examples_at", lambda path: None)
    config = make_config()
    config = config.model_copy(update={"data": config.data.model_copy(update={"kind": "tokens", "path": "data"})})
    assert len(feed.open_source(config, "train")) == 3
    assert feed.open_source(config, "validation", say=lines.append) is None
    assert lines == [
        "no validation loss: the validation split has 32 tokens, and one window needs data.seq_len + 1 = 33; hold out "
        "more when preparing the data, or lower data.seq_len"
    ]
    stores["validation"] = None
    assert feed.open_source(config, "validation", say=lines.append) is None
    assert lines[1].startswith("no validation loss: there is no validation split; ")
