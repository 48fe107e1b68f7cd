"""Runs that learn from rewards and preferences, on the page: hand-made ones, whose figures are known."""

import json
import math

import pytest
import yaml

from jaxscale.report.inputs import read_inputs
from jaxscale.report.learned import samples_of, unit_of
from jaxscale.report.page import make_page
from jaxscale.report.pictures import draw_pictures
from jaxscale.rollouts.flag import overoptimised

from .conftest import write_run

GRPO = {"kind": "grpo", "group": 8, "max_new": 6, "reward": "a:b", "judge": "a:c", "kl": 0.1, "updates": 2}


def write_learned(path, objective, *, steps=20, judge=lambda step: 0.5, name=None, records=()):
    """A run of an objective: a round every `updates` steps, held-out prompts after every fifth, KL .1 a step."""
    path.mkdir(parents=True)
    config = {"name": name or path.name, "data": {"batch_size": 64, "seq_len": 16}, "objective": objective}
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    lines = list(records)
    for step in range(1, steps + 1):
        at = {"step": step, "time": 1.79e9 + step}
        if objective["kind"] in ("grpo", "raft") and (step - 1) % objective.get("updates", 1) == 0:
            lines.append({"kind": "rollout", "round": 0.0, "reward": 0.1 * step, "reward_std": 0.2, "best": 1.0,
                          "no_reward": 3.0, "without_signal": 0.25, "length": 5.0, "cut_off": 0.125, "distinct": 0.75,
                          "judge": judge(step), "judge_std": 0.1, "generate_seconds": 4.0, "reward_seconds": 1.0}
                         | at | {"round": float(step - 1)})  # fmt: skip
        own = {"accuracy": 0.9, "margin": 1.0, "chosen_reward": -0.1 * step, "rejected_reward": -0.2 * step}
        if objective["kind"] == "grpo":
            own = {"kl": 0.1 * (step - 1), "entropy": 1.0, "mismatch": 1e-6}
        lines.append({"kind": "train", "loss": 0.7, "step_seconds": 3.0, "data_wait_seconds": 5.0} | own | at)
        if step % 5 == 0:
            if objective["kind"] == "grpo":
                values = {"reward": 0.1 * step, "greedy_reward": 0.2, "judge": 0.3, "greedy_judge": 0.4, "cut_off": 0.0}
                lines.append({"kind": "rollout_validation"} | at | values)
            elif objective["kind"] != "raft":
                lines.append({"kind": "validation", "loss": 0.6, "accuracy": 0.8, "chosen_reward": -0.3} | at)
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def page_of(*paths):
    return make_page(read_inputs(list(paths)))


def plots_of(*paths):
    return {plot.id: plot for plot in page_of(*paths).plots}


def series(plot, name):
    return next(one for one in plot.series if one.name == name)


def test_rewards_of_rounds_and_of_held_out_prompts_stand_in_one_plot(tmp_path):
    plot = plots_of(write_learned(tmp_path / "run", GRPO))["rewards"]
    assert [one.name for one in plot.series] == [
        "reward", "judge", "reward, held out", "judge, held out", "reward, held out, greedy", "judge, held out, greedy",
    ]  # fmt: skip
    rounds = series(plot, "reward").columns
    assert rounds["step"] == list(range(1, 20, 2))
    assert rounds["value"] == pytest.approx([0.1 * step for step in range(1, 20, 2)])
    assert rounds["tokens"][1] == 3 * 64 * 16
    assert series(plot, "judge, held out, greedy").columns["value"] == [0.4] * 4
    assert series(plot, "reward").color == series(plot, "reward, held out").color != series(plot, "judge").color


def test_reward_against_the_divergence_of_the_model_that_sampled(tmp_path):
    """A round of step s is of the model whose KL step s tells; a measure after step s of the one of step s + 1."""
    plot = plots_of(write_learned(tmp_path / "run", GRPO))["reward-kl"]
    assert [axis.key for axis in plot.x] == ["kl"]
    rounds = series(plot, "reward").columns
    assert rounds["kl"] == pytest.approx([0.1 * (step - 1) for step in range(1, 20, 2)])
    assert rounds["value"] == pytest.approx([0.1 * step for step in range(1, 20, 2)])
    held_out = series(plot, "judge, held out").columns["kl"]
    assert held_out == pytest.approx([0.5, 1.0, 1.5, 1.9])  # after the last step no later one tells


def test_a_run_without_kl_has_no_such_plot(tmp_path):
    plots = plots_of(write_learned(tmp_path / "run", GRPO | {"kind": "raft"}))
    assert "reward-kl" not in plots
    assert "rewards" in plots


def test_what_is_told_of_rounds_and_their_seconds(tmp_path):
    plots = plots_of(write_learned(tmp_path / "run", GRPO))
    told = {axis.key: plots["rounds"].series[0].columns[axis.key][0] for axis in plots["rounds"].y}
    assert told == {"length": 5.0, "cut_off": 0.125, "distinct": 0.75, "without_signal": 0.25, "best": 1.0,
                    "reward_std": 0.2, "judge_std": 0.1, "no_reward": 3.0}  # fmt: skip
    seconds = {one.name: one.columns["taken"][0] for one in plots["step-seconds"].series}
    assert seconds == {"sampling": 2.0, "rewards": 0.5, "training": 3.0}, "a round serves two steps"


def test_the_flag_is_a_line_on_the_page_and_in_the_plot(tmp_path):
    run = write_learned(tmp_path / "run", GRPO, judge=lambda step: 0.9 if step < 9 else 0.2)
    page = page_of(run)
    section = next(s for s in page.sections if s.id == "learned")
    rounds = [r for r in read_inputs([run]).runs[0].metrics if r["kind"] == "rollout"]
    first = next(n for n in range(1, len(rounds) + 1) if overoptimised(rounds[:n], 64))
    assert section.about == [f"run, step {rounds[first - 1]['step']}: {overoptimised(rounds[:first], 64)}."]
    mark = series(section.plots[0], "over-optimised from here on").columns
    assert mark["step"] == [rounds[first - 1]["step"]] * 2
    assert mark["value"] == [0.1, pytest.approx(2.0)]
    even = page_of(write_learned(tmp_path / "even", GRPO))
    assert next(s for s in even.sections if s.id == "learned").about == []


def test_losses_of_different_units_share_no_axis(tmp_path):
    runs = [write_run(tmp_path / "text"), write_learned(tmp_path / "grpo", GRPO)]
    runs += [write_learned(tmp_path / kind, {"kind": kind}) for kind in ("dpo", "reward")]
    page = page_of(*runs)
    plots = {plot.id: plot for plot in page.plots if plot.id.startswith("loss")}
    assert {(plot.title, plot.y[0].unit) for plot in plots.values()} == {
        ("Loss, nats per token", "nats per token"), ("Loss, a step", "a step"), ("Loss, a pair", "a pair"),
    }  # fmt: skip
    assert [sorted({one.source for one in plot.series}) for plot in plots.values()] == [[0], [1], [2, 3]]
    table = page.sections[0].tables[0]
    loss = table.columns.index("training loss")
    assert [row[loss].unit for row in table.rows] == ["nats per token", "a step", "a pair", "a pair"]
    alone = {plot.id: plot for plot in page_of(runs[2]).plots}
    assert (alone["loss"].title, alone["loss"].y[0].unit) == ("Loss", "a pair")


def test_pairs(tmp_path):
    plots = plots_of(write_learned(tmp_path / "run", {"kind": "dpo"}))
    assert [axis.key for axis in plots["pairs"].y] == ["accuracy", "margin", "chosen_reward", "rejected_reward"]
    assert [one.name for one in plots["pairs"].series] == ["training", "validation"]
    assert plots["pairs"].series[1].columns["accuracy"] == [0.8] * 4
    both = plots["chosen-rejected"]
    assert [axis.key for axis in both.y] == ["reward"]
    assert series(both, "chosen, training").columns["reward"][9] == pytest.approx(-1.0)
    assert series(both, "rejected, training").columns["reward"][9] == pytest.approx(-2.0)
    assert "displacement" in both.about[0]


def test_columns_of_the_summary_only_where_there_are_such_runs(tmp_path):
    def columns(*paths):
        return page_of(*paths).sections[0].tables[0]

    text, grpo = write_run(tmp_path / "text"), write_learned(tmp_path / "grpo", GRPO)
    dpo = write_learned(tmp_path / "dpo", {"kind": "dpo"})
    learned = ["reward", "judge", "KL", "pairs right"]
    assert not set(learned) & set(columns(text).columns)
    table = columns(text, grpo, dpo)
    assert [c for c in table.columns if c in learned] == learned
    values = [[row[table.columns.index(c)].value for c in learned] for row in table.rows]
    assert values[0] == [None] * 4
    assert values[1] == [pytest.approx(2.0), 0.3, pytest.approx(1.9), None], "of held-out prompts, after the last step"
    assert values[2] == [None, None, None, 0.8]
    seconds = [row[table.columns.index("step time")].value for row in table.rows]
    assert seconds[1:] == [8.0, 3.0], "samples are part of a step; data that is waited for is none"


def test_runs_of_text_have_no_such_section(tmp_path):
    assert "learned" not in {s.id for s in page_of(write_run(tmp_path / "run")).sections}


def test_labels_are_plain_words(tmp_path):
    plots = plots_of(write_learned(tmp_path / "run", GRPO))
    labels = {axis.key: axis.label for axis in plots["optimization"].y}
    assert labels["entropy"] == "entropy of a sampled token (nats)"
    assert not [label for label in labels.values() if "_" in label]


def test_values_that_are_no_numbers_leave_gaps(tmp_path):
    run = write_learned(tmp_path / "run", GRPO, judge=lambda step: math.nan if step == 5 else 0.5)
    columns = series(plots_of(run)["rewards"], "judge").columns
    assert columns["value"][2] is None
    assert columns["value"][3] == 0.5


def test_pictures(tmp_path):
    page = page_of(write_learned(tmp_path / "grpo", GRPO), write_learned(tmp_path / "dpo", {"kind": "dpo"}))
    drawn = {path.stem for path in draw_pictures(page, tmp_path)}
    assert {"rewards", "reward-kl", "rounds", "step-seconds", "pairs", "chosen-rejected", "loss-a-pair"} <= drawn


def test_units_and_samples_of_a_round(tmp_path):
    raft = write_learned(tmp_path / "raft", {"kind": "raft", "group": 4, "prompts": 10})
    whole = write_learned(tmp_path / "whole", {"kind": "raft", "group": 4})
    runs = read_inputs([write_learned(tmp_path / "grpo", GRPO), raft, whole, write_run(tmp_path / "text")]).runs
    assert [samples_of(run) for run in runs] == [64, 40, 256, 0]
    assert [unit_of(run) for run in runs] == ["a step", "nats per token", "nats per token", "nats per token"]
