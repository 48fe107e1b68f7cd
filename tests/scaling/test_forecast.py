"""Forecasts of runs that are not there, written down before them, and what became of them."""

import json
import os

import numpy as np
import pytest
import yaml
from scaling.ladders import EPOCH, chinchilla_rows, isoflop_rows, ladder

from jaxscale import config as cfg
from jaxscale.predict.costs import parameter_counts, train_flops_per_token
from jaxscale.scaling.curves import power_sum
from jaxscale.scaling.forecast import beyond_words, forecast
from jaxscale.scaling.law import read_law
from jaxscale.scaling.laws import fit
from jaxscale.scaling.register import read_registered, register, verify
from jaxscale.scaling.table import make_table

SMALL = {
    "name": "small", "steps": 100,
    "model": {"vocab_size": 257, "num_layers": 2, "embed_dim": 64, "num_heads": 4, "mlp_dim": 128},
    "data": {"kind": "synthetic", "batch_size": 8, "seq_len": 64},
}  # fmt: skip


@pytest.fixture
def small(tmp_path) -> cfg.Config:
    return cfg.validate(SMALL | {"out": str(tmp_path / "run")}, source="small")


def write_run(config, losses, *, time=2e9, step=None):
    """A run's directory as training leaves it: validation losses at equal distances, the last at the end."""
    config.out_dir.mkdir(parents=True, exist_ok=True)
    (config.out_dir / "config.yaml").write_text(cfg.dump_config(config))
    last = step or config.steps
    lines = [{"kind": "train", "step": 1, "time": time, "loss": 5.5}]
    for i, loss in enumerate(losses, 1):
        lines.append({"kind": "validation", "step": last * i // len(losses), "time": time + i, "loss": loss})
    (config.out_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_n_and_c_are_those_of_the_models_one_description(small, law_file):
    found = forecast(read_law(law_file), small)
    each = train_flops_per_token(small.model, 64)
    assert (found.parameters, found.tokens, found.flops) == (round(each / 6), 100 * 8 * 64, each * 100 * 8 * 64)
    rows, _ = chinchilla_rows()
    with_embeddings = fit("chinchilla", make_table(rows, "t", counts="with"), draws=20)
    assert forecast(with_embeddings, small).parameters == sum(parameter_counts(small.model).values())


def test_a_noise_free_law_forecasts_itself():
    law = fit("chinchilla", ladder("chinchilla")[0], draws=20)
    config = cfg.load_config("llama3.1-8b")
    found = forecast(law, config, tokens=2e12)
    N = train_flops_per_token(config.model, 8192) / 6
    assert found.loss.value == pytest.approx(float(power_sum(EPOCH, N, 2e12)), rel=1e-6)
    assert found.loss.low == pytest.approx(found.loss.high, rel=1e-4)
    assert found.beyond["FLOPs"] == pytest.approx(6 * N * 2e12 / (6 * 2e9 * 640e9))
    assert beyond_words(found.beyond) == (
        "13.4 times the largest run's FLOPs; 4.29 times the largest run's parameters; "
        "3.12 times the largest run's tokens"
    )
    assert (found.basis, found.left_out_error) == ("predicted", pytest.approx(0, abs=1e-6))


def test_the_interval_widens_outside_of_the_data(law_file):
    law, config = read_law(law_file), cfg.load_config("llama3.1-8b")
    near, far = (forecast(law, config, tokens=tokens).loss for tokens in (1e11, 1e15))
    assert far.high - far.low > near.high - near.low
    assert near.low < near.value < near.high


def test_a_task_is_forecast_in_loss_and_accuracy():
    law = fit("task", ladder("task", np.random.default_rng(0))[0], draws=50)
    found = forecast(law, cfg.load_config("llama3.1-8b"), tokens=2e12)
    assert found.accuracy is not None
    assert 0.7 < found.accuracy.low < found.accuracy.value < found.accuracy.high < 1


def test_data_that_repeats_is_forecast_worse():
    law = fit("data", ladder("data")[0], draws=20)
    config = cfg.load_config("llama3.1-8b")
    once = forecast(law, config, tokens=1e12)
    again = forecast(law, config, tokens=1e12, unique_tokens=2e10)
    assert again.loss.value > once.loss.value + 0.05
    assert any("--unique-tokens" in line for line in once.doubts)
    assert not any("--unique-tokens" in line for line in again.doubts)


def test_a_frontier_says_that_a_model_is_not_of_the_best_size():
    law = fit("isoflop", ladder("isoflop")[0], draws=20)
    found = forecast(law, cfg.load_config("llama3.1-8b"), tokens=1e10)
    assert any("says the loss at the best size alone" in line for line in found.doubts)


def test_isoflop_of_four_budgets_says_no_loss():
    table, _ = ladder("isoflop")
    law = fit("isoflop", table.take(table.flops < 5e20), draws=20)
    assert list(law.parameters) == ["k", "power"]
    with pytest.raises(ValueError, match="fewer than 5 budgets and so says N\\* and D\\* alone, no loss"):
        forecast(law, cfg.load_config("llama3.1-8b"))


@pytest.mark.parametrize(("budgets", "quantity"), [(6, "loss"), (5, "N*")])
def test_isoflop_is_judged_by_the_best_run_that_was_held_out(budgets, quantity):
    rows = isoflop_rows(budgets=budgets)[0]
    largest = max(row["flops"] for row in rows)
    law = fit("isoflop", make_table([row | {"held_out": row["flops"] > largest / 2} for row in rows], "t"), draws=20)
    (one,) = law.held_out
    assert one.quantity == quantity
    assert one.measured == pytest.approx(one.predicted, rel=0.01)
    assert one.low is not None


def test_a_forecast_registered_twice_is_the_same_bytes(tmp_path, small, law_file):
    law, path = read_law(law_file), tmp_path / "f.json"
    assert register(forecast(law, small), law, law_file, small, path)
    first = path.read_bytes()
    assert not register(forecast(law, small), law, law_file, small, path)
    assert register(forecast(read_law(law_file), small), law, law_file, small, tmp_path / "g.json")
    assert path.read_bytes() == first == (tmp_path / "g.json").read_bytes()
    assert read_registered(path).forecast == forecast(law, small)


def test_a_registered_forecast_is_never_changed(tmp_path, small, law_file):
    law, path = read_law(law_file), tmp_path / "f.json"
    path.write_text("mine")
    with pytest.raises(ValueError, match="another file is there, and a forecast is never changed"):
        register(forecast(law, small), law, law_file, small, path)
    assert path.read_text() == "mine"


def test_a_forecast_after_its_run_is_refused(tmp_path, small, law_file):
    law, path = read_law(law_file), tmp_path / "f.json"
    write_run(small, [3.0])
    with pytest.raises(ValueError, match="has begun, and a forecast is made before its run"):
        register(forecast(law, small), law, law_file, small, path)
    assert not path.exists()


@pytest.fixture
def registered(tmp_path, small, law_file):
    law, path = read_law(law_file), tmp_path / "f.json"
    found = forecast(law, small)
    register(found, law, law_file, small, path)
    return path, found


def test_inside_outside_and_by_how_much(registered, small):
    path, found = registered
    for measured, outside in (
        (found.loss.value, 0.0), (found.loss.high + 0.2, 0.2), (found.loss.low - 0.1, -0.1)
    ):  # fmt: skip
        write_run(small, [9.0, measured])
        verdict = verify(path, small.out_dir)
        assert verdict.inside == (outside == 0)
        assert verdict.outside == pytest.approx(outside, abs=1e-9)
        assert (verdict.measured, verdict.step, verdict.tokens) == (measured, 100, found.tokens)
        assert verdict.error == pytest.approx(found.loss.value / measured - 1)
        assert not verdict.late
    os.utime(path, (3e9, 3e9))
    assert verify(path, small.out_dir).late


def test_a_run_that_is_not_the_one(registered, small, tmp_path):
    path, _ = registered
    with pytest.raises(ValueError, match=r"is no run's directory, as it has no config\.yaml"):
        verify(path, tmp_path)
    write_run(small, [3.0], step=60)
    with pytest.raises(ValueError, match=r"has seen 3\.072e\+04 tokens at its last validation.*let it train on"):
        verify(path, small.out_dir)
    write_run(small, [])
    with pytest.raises(ValueError, match="has no validation loss"):
        verify(path, small.out_dir)
    other = cfg.validate(SMALL | {"model": SMALL["model"] | {"num_layers": 4}, "out": str(small.out_dir)}, source="x")
    write_run(other, [3.0])
    with pytest.raises(ValueError, match="parameters and the forecast is of a model with"):
        verify(path, small.out_dir)


def test_files_that_are_no_forecast(registered, tmp_path):
    path, _ = registered
    values = json.loads(path.read_text())
    wrong = {
        "{": "is no forecast",
        "[]": "is no registered forecast: it has no kind: forecast",
        json.dumps(values | {"forecast_version": 2}): "has forecast_version 2 and this jaxscale reads 1",
        json.dumps(values | {"forecast": {}}): "is damaged: forecast",
        yaml.safe_dump(values): "is no forecast",
    }
    for text, message in wrong.items():
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(ValueError, match=message) as error:
            read_registered(tmp_path / "x.json")
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(("option", "number"), [("tokens", -1.0), ("tokens", float("nan")), ("unique_tokens", 0.0)])
def test_tokens_that_cannot_be(law_file, small, option, number):
    with pytest.raises(ValueError, match=f"--{option.replace('_', '-')} .*must be a number of tokens above 0"):
        forecast(read_law(law_file), small, **{option: number})
