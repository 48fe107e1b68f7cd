"""What the trainer writes is what the report reads: a real run that is cut off, goes on, and is reported."""

import shutil

import pytest
from support import make_config

from jaxscale.report.goodput import PARTS
from jaxscale.report.inputs import read_inputs
from jaxscale.report.page import make_page
from jaxscale.training.trainer import train

pytestmark = pytest.mark.slow


def run_config(stdlib, out, steps):
    return make_config(
        {"data": 2},
        steps=steps,
        out=str(out),
        model={"vocab_size": 257, "num_layers": 1, "embed_dim": 32, "num_heads": 2, "mlp_dim": 64},
        data={"kind": "tokens", "path": str(stdlib), "batch_size": 4, "seq_len": 32},
        runtime={"platform": "cpu", "simulated_devices": 2, "compilation_cache": None},
        checkpoint={"every": 2},
        evaluation={"batches": 1},
        metrics={"tensorboard": False},
    )


@pytest.fixture(scope="module")
def resumed(stdlib, tmp_path_factory):
    """Five steps whose last checkpoint was not finished when the machine was lost, then seven in all."""
    out = tmp_path_factory.mktemp("resumed") / "run"
    train(run_config(stdlib, out, 5))
    shutil.rmtree(out / "checkpoints" / "5")
    lines = (out / "events.jsonl").read_text().splitlines()
    (out / "events.jsonl").write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:20] + "\n")
    train(run_config(stdlib, out, 7))
    return make_page(read_inputs([out]))


def test_goodput_of_a_real_run(resumed):
    plot = next(p for p in resumed.plots if p.id == "goodput")
    spent = dict(zip(plot.series[0].labels, plot.series[0].columns["seconds"], strict=True))
    assert tuple(spent) == PARTS
    for part in ("steps that counted", "lost steps", "compile", "init", "evaluation", "checkpoint blocking", "restart"):
        assert spent[part] > 0, part
    assert "7 of them, 1 lost and done again, 2 attempts" in plot.about[0]


def test_figures_of_a_real_run(resumed):
    plots = {p.id: p for p in resumed.plots}
    training = plots["loss"].series[0].columns
    assert training["step"] == [1, 2, 3, 4, 5, 6, 7], "the lost step has one record"
    assert training["tokens"] == [128 * n for n in range(1, 8)]
    assert training["seconds"] == sorted(training["seconds"])
    assert {"throughput", "mfu", "optimization"} <= plots.keys()
    assert "peak: best " in plots["mfu"].about[0]
    assert "matmul measured in this process" in resumed.sources[0].facts["MFU peak"]
    table = resumed.sections[0].tables[0]
    row = dict(zip(table.columns, table.rows[0], strict=True))
    assert row["validation loss"].value == pytest.approx(row["training loss"].value, abs=1.0)
    assert row["device"] == "2 x cpu"
