"""`jaxscale.train` where a person looks: a notebook's kernel, a logger; its records as CSV and pandas."""

import json
import logging
import sys
from pathlib import Path

import pytest

import jaxscale
from jaxscale.library.records import read_records

SMALL = [
    "data.kind=synthetic", "data.path=null", "model.num_layers=1", "model.embed_dim=32", "model.mlp_dim=64", "steps=6",
    "data.seq_len=32", "data.batch_size=4", "optimizer.warmup_steps=1", "checkpoint.every=6", "evaluation.every=0",
    "mesh.data=1", "mesh.fsdp=1", "mesh.tensor=1", "runtime.simulated_devices=1", "metrics.tensorboard=false",
]  # fmt: skip
CELLS = [
    "import warnings; warnings.simplefilter('error', UserWarning); import jaxscale",
    "result = jaxscale.train(jaxscale.load_config('quickstart', {overrides}))\nresult",
    "print(len(jaxscale.read_records(result.out, 'train')))",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("library") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.stdout, "isatty", lambda: False, raising=False)
        lines = []
        handler = logging.Handler()
        handler.emit = lambda record: lines.append(record.getMessage())
        log = logging.getLogger("jaxscale")
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        try:
            result = jaxscale.train(jaxscale.load_config("quickstart", [*SMALL, f"out={out}"]))
        finally:
            log.removeHandler(handler)
            log.setLevel(logging.NOTSET)
    return result, lines


def test_a_script_logs_its_steps_and_prints_nothing(run):
    _, lines = run
    assert any("step 6/6" in line and "loss" in line for line in lines)
    assert any("parameters" in line for line in lines)  # the banner


def test_a_result_shows_itself(run):
    result, _ = run
    assert "training loss" in repr(result)
    assert f"{result.loss:.4f}" in repr(result)
    assert result._repr_html_().startswith("<pre")


def test_records_of_a_run_are_rows(run, tmp_path):
    result, _ = run
    rows = jaxscale.read_records(result.out)
    train = jaxscale.read_records(result.out / "metrics.jsonl", kind="train")
    assert [row["step"] for row in train] == [1, 2, 3, 4, 5, 6]
    assert len(rows) > len(train)
    rows.to_csv(tmp_path / "rows.csv")
    head, first, *_ = (tmp_path / "rows.csv").read_text().splitlines()
    assert head.split(",") == rows.columns
    assert len(first.split(",")) == len(rows.columns)
    pandas = pytest.importorskip("pandas")
    frame = train.to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert frame["loss"].iloc[-1] == result.loss


def test_records_of_a_benchmark_are_rows():
    path = sorted((Path(__file__).parents[2] / "benchmarks" / "results").rglob("*.json"))
    records = [p for p in path if "schema_version" in json.loads(p.read_text())]
    rows = read_records(records[0])
    assert {"figure", "value", "unit", "basis"} <= set(rows.columns)


def test_what_is_no_record_is_one_line(run, tmp_path):
    result, _ = run
    with pytest.raises(ValueError, match="is not there; give a run's directory"):
        jaxscale.read_records(tmp_path)
    with pytest.raises(ValueError, match=r"no records of kind 'tain'; it has .*train"):
        jaxscale.read_records(result.out, "tain")


def test_a_notebook_shows_a_run_as_it_goes(tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient")
    import nbformat

    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    overrides = repr([*SMALL, f"out={tmp_path / 'run'}"])
    cells = [nbformat.v4.new_code_cell(cell.format(overrides=overrides)) for cell in CELLS]
    notebook = nbformat.v4.new_notebook(cells=cells)
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    outputs = notebook.cells[1].outputs
    assert [o for o in outputs if o["output_type"] == "stream"] == []
    progress, table = outputs
    shown = progress["data"]["text/html"]
    for part in ("step 6/6", "loss", "#" * 40, "parameters"):
        assert part in shown
    assert "training loss" in table["data"]["text/html"]
    assert notebook.cells[2].outputs[0]["text"].strip() == "6"
