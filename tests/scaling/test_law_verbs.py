"""`jaxscale law`: the whole way through the verbs, and the optimum that `plan` can run."""

import json
import shlex

import numpy as np
import pytest
from scaling.ladders import EPOCH, ROWS, chinchilla_rows, ladder, size_of
from scaling.test_forecast import SMALL, write_run
from scaling.test_table import write_csv

from jaxscale import config as cfg
from jaxscale.hardware.stated import read_topology
from jaxscale.predict import costs
from jaxscale.predict.plan import plan
from jaxscale.scaling.counts import flops_per_token
from jaxscale.scaling.counts import size_of as model_size
from jaxscale.scaling.law import read_law
from jaxscale.scaling.laws import fit
from jaxscale.scaling.optimum import Request, optimum, optimum_of_days
from jaxscale.scaling.shape import near


@pytest.fixture(scope="module")
def exact():
    return fit("chinchilla", ladder("chinchilla")[0], draws=30)


def test_fit_forecast_verify(jaxscale_here, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows, _ = chinchilla_rows(np.random.default_rng(0))
    write_csv(tmp_path / "runs.csv", rows)
    out = jaxscale_here("law", "fit", "runs.csv", "--hold-out", "largest")
    assert out.returncode == 0, out.stderr
    for said in ("chinchilla: L = E + A N^-alpha + B D^-beta, of 23 runs", "alpha", "leave-largest-out: ", "Held out"):
        assert said in out.stdout
    law = read_law(tmp_path / "law.json")
    assert [row.name for row in law.rows if row.held_out] == ["row 24"]
    whole = json.loads(jaxscale_here("law", "fit", "runs.csv", "--json", "-o", "b.json").stdout)
    assert whole == json.loads((tmp_path / "b.json").read_text())

    config = cfg.validate(SMALL | {"out": str(tmp_path / "run")}, source="small")
    (tmp_path / "small.yaml").write_text(cfg.dump_config(config))
    asked = ("law", "forecast", "law.json", "--config", "small.yaml", "--register", "f.json")
    out = jaxscale_here(*asked)
    assert out.returncode == 0, out.stderr
    assert "predicted loss" in out.stdout
    assert "registered in f.json\n" in out.stdout
    assert "already, with the same bytes" in jaxscale_here(*asked).stdout
    loss = json.loads((tmp_path / "f.json").read_text())["forecast"]["loss"]
    write_run(config, [loss["value"]])
    out = jaxscale_here("law", "verify", "f.json", "run")
    assert (out.returncode, "inside; the prediction is +0.00% off" in out.stdout) == (0, True), out
    write_run(config, [loss["high"] + 1])
    out = jaxscale_here("law", "verify", "f.json", "run", "--json")
    assert out.returncode == 1
    assert json.loads(out.stdout)["outside"] == pytest.approx(1.0)
    out = jaxscale_here(*asked)
    assert (out.returncode, out.stderr.count("\n"), "has begun" in out.stderr) == (2, 1, True)


@pytest.mark.parametrize("form", [form for form in ROWS if form != "envelope"])
def test_every_form_from_a_csv(jaxscale_here, tmp_path, form):
    rows, _ = ROWS[form](np.random.default_rng(0))
    write_csv(tmp_path / "runs.csv", rows)
    out = jaxscale_here("law", "fit", tmp_path / "runs.csv", "--form", form, "-o", tmp_path / "law.json")
    assert out.returncode == 0, out.stderr
    assert read_law(tmp_path / "law.json").form == form


def test_the_envelope_of_a_csv_with_rows_while_training(jaxscale_here, tmp_path):
    rows, _ = ROWS["envelope"](np.random.default_rng(0))
    every = [{"N": r["parameters"], "D": t, "loss": loss} for r in rows for t, loss in r["curve"]]
    write_csv(tmp_path / "runs.csv", every)
    out = jaxscale_here("law", "fit", tmp_path / "runs.csv", "--form", "envelope", "-o", tmp_path / "law.json")
    assert out.returncode == 0, out.stderr
    assert 0.4 < read_law(tmp_path / "law.json").parameters["power"] < 0.6


REFUSED = {
    "--form power: no such form": ("fit", "runs.csv", "--form", "power"),
    "nowhere.csv cannot be read": ("fit", "nowhere.csv"),
    "--hold-out some: give `largest`": ("fit", "runs.csv", "--hold-out", "some"),
    "--column 'loss': give QUANTITY=COLUMN": ("fit", "runs.csv", "--column", "loss"),
    "--ability copy: runs.csv is no ladder's record": ("fit", "runs.csv", "--ability", "copy"),
    "cannot write no/law.json; give -o a file": ("fit", "runs.csv", "-o", "no/law.json"),
    "law.json cannot be read: No such file or directory; make one with": ("forecast", "law.json", "--config", "x"),
    "runs.csv is no law": ("forecast", "runs.csv", "--config", "quickstart"),
    "--config is missing": ("forecast", "good.json"),
    "no config nope": ("forecast", "good.json", "--config", "nope"),
    "give the budget once": ("optimum", "good.json"),
    "--flops 'much' is no number of FLOPs": ("optimum", "good.json", "--flops", "much"),
    "--topology is missing": ("optimum", "good.json", "--days", "7"),
    "--days -1: give a number of days above 0": ("optimum", "good.json", "--days", "-1", "--topology", "h100:8"),
    "has experts, and a law sizes a dense model": ("optimum", "good.json", "--flops=1e22", "--config", "mixtral-8x7b"),
    "no model shaped as": ("optimum", "good.json", "--flops", "1e10"),
    "compute says no best size; fit one of the forms chinchilla": ("optimum", "compute.json", "--flops", "1e22"),
    "good.json is no registered forecast": ("verify", "good.json", "."),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory, law_file):
    path = tmp_path_factory.mktemp("refused")
    rows, _ = chinchilla_rows(np.random.default_rng(0))
    write_csv(path / "runs.csv", rows)
    (path / "good.json").write_bytes(law_file.read_bytes())
    law = fit("compute", ladder("compute")[0], draws=20)
    (path / "compute.json").write_text(law.model_dump_json())
    return path


@pytest.mark.parametrize(("message", "arguments"), REFUSED.items())
def test_refused_in_one_line(jaxscale_here, folder, monkeypatch, message, arguments):
    monkeypatch.chdir(folder)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    out = jaxscale_here("law", *arguments)
    assert (out.returncode, out.stderr.count("\n")) == (2, 1), out
    assert message in out.stderr
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


# --- the optimum -----------------------------------------------------------------------------------------------


def test_the_optimum_of_a_budget(exact):
    found = optimum(Request(exact, cfg.load_config("llama3.1-8b"), "llama3.1-8b"), 1e24)
    N = size_of(EPOCH, 1e24)
    assert found.size.value == pytest.approx(N, rel=1e-4)
    assert found.tokens.value == pytest.approx(1e24 / 6 / N, rel=1e-4)
    assert found.parameters == pytest.approx(N, rel=0.05)
    assert found.parameters * found.trains * 6 == pytest.approx(1e24)
    assert found.choice is None


@pytest.mark.parametrize("base", ["llama3.1-8b", "gpt2-124m", "gemma-3-1b"])
@pytest.mark.parametrize("size", [2e8, 1e9, 1e10])
def test_a_model_near_a_size_keeps_its_familys_shape(base, size):
    base = cfg.load_config(base)
    shaped, changed = near(base, size, "without")
    model = shaped.model
    assert model_size(shaped, "without") == pytest.approx(size, rel=0.15)
    assert model.num_heads * model.head_size == model.embed_dim
    assert model.mlp_dim / model.embed_dim == pytest.approx(base.model.mlp_dim / base.model.embed_dim, rel=0.1)
    assert 0.6 <= model.embed_dim / model.num_layers * base.model.num_layers / base.model.embed_dim <= 1.7
    assert {key: getattr(model, key) for key in changed} == changed


def test_the_command_makes_the_same_run(exact):
    where, _ = read_topology("v5p:4x4x4")
    found = optimum(Request(exact, cfg.load_config("llama3.1-8b"), "llama3.1-8b", (), where), 1e22)
    jaxscale, train, name, *overrides = shlex.split(found.command)
    assert (jaxscale, train, name) == ("jaxscale", "train", "llama3.1-8b")
    assert cfg.load_config(name, overrides) == found.config


def test_days_of_a_machine_are_a_fixed_point(exact):
    """The plan of the model that comes out spends the FLOPs that come out in the days that went in."""
    where, _ = read_topology("v5p:4x4x4")
    found = optimum_of_days(Request(exact, cfg.load_config("llama3.1-8b"), "llama3.1-8b", (), where), 7)
    best = plan(found.config, where, documents=costs.packs_documents(found.config)).choices[0]
    seconds = best.forecast.time.best * found.config.steps
    assert seconds / 86400 == pytest.approx(7, rel=0.02)
    assert flops_per_token(found.config) * found.trains == pytest.approx(found.flops)
    assert found.size.value == pytest.approx(size_of(EPOCH, found.flops), rel=1e-4)


def test_the_optimum_through_the_verb(jaxscale_here, folder, monkeypatch):
    monkeypatch.chdir(folder)
    out = jaxscale_here("law", "optimum", "good.json", "--topology", "h100:8", "--days", "7", "--json")
    assert out.returncode == 0, out.stderr
    values = json.loads(out.stdout)
    assert values["days"] == pytest.approx(7, rel=0.02)
    assert values["mesh"]
    assert values["loss"]["low"] < values["loss"]["value"] < values["loss"]["high"]
    out = jaxscale_here("law", "optimum", "good.json", "--flops", "1e22")
    assert "N* = " in out.stdout
    assert "jaxscale train llama3.1-8b model.num_layers=" in out.stdout
