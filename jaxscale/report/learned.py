"""Runs that learn from rewards and preferences -> rewards, divergence, rounds of samples, pairs."""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

from jaxscale.config.objective import OF_ROLLOUTS, UNITS
from jaxscale.report.inputs import Run, part
from jaxscale.report.plots import Axis, Cell, Line, Number, Plot, Section, Series, finite, thinned
from jaxscale.report.steps import X, along, over_steps, series_of
from jaxscale.rollouts.flag import overoptimised

NATS = "nats per token"
OF_LOSSES = (NATS, *UNITS.values())  # units of losses: numbers without prefixes
ROUND, HELD_OUT = "rollout", "rollout_validation"
MOST_CHECKS = 200  # of a run's rounds, for the flag

KL = Axis("kl", "KL from the model that the run began with, by k3", NATS)
VALUE = Axis("value", "reward, judge")
# What a run's records call it, the column, and how it is drawn: (kind, key, name, is it the judge's, line)
WORTH: tuple[tuple[str, str, str, bool, Line], ...] = (
    (ROUND, "reward", "reward", False, "solid"),
    (ROUND, "judge", "judge", True, "solid"),
    (HELD_OUT, "reward", "reward, held out", False, "dashed"),
    (HELD_OUT, "judge", "judge, held out", True, "dashed"),
    (HELD_OUT, "greedy_reward", "reward, held out, greedy", False, "dotted"),
    (HELD_OUT, "greedy_judge", "judge, held out, greedy", True, "dotted"),
)
ROUNDS = [
    Axis("length", "tokens of a sample, the stop token among them", zero=True),
    Axis("cut_off", "share of samples that no stop token ends", "share", zero=True),
    Axis("distinct", "share of samples unlike those before them in their group", "share", zero=True),
    Axis("without_signal", "share of groups whose rewards are all equal", "share", zero=True),
    Axis("best", "best reward of each prompt, mean"),
    Axis("reward_std", "standard deviation of rewards", zero=True),
    Axis("judge_std", "standard deviation of the judge's values", zero=True),
    Axis("no_reward", "samples without a reward", zero=True),
]
TAKEN = Axis("taken", "seconds of a step", "s", log=True)
SECONDS = (
    (ROUND, "generate_seconds", "sampling"),
    (ROUND, "reward_seconds", "rewards"),
    ("train", "step_seconds", "training"),
)
OF_PAIRS = ("dpo", "reward")  # kinds of objectives
PAIRS = [
    Axis("accuracy", "share of pairs that are the right way round", "share", top=1.0, zero=True),
    Axis("margin", "chosen less rejected"),
    Axis("chosen_reward", "reward of the chosen text: beta log(p / p of the reference)"),
    Axis("rejected_reward", "reward of the rejected text: beta log(p / p of the reference)"),
    Axis("chosen_score", "score of the chosen text"),
    Axis("rejected_score", "score of the rejected text"),
]
BOTH = [
    Axis("reward", "reward: beta log(p / p of the reference)"),
    Axis("score", "score after the last token"),
]
LABELS = {
    "accuracy": "share of pairs that are the right way round",
    "pairs": "pairs of a step",
    "samples": "what the sums of a step are divided by",
    "entropy": "entropy of a sampled token (nats)",
    "kl": "KL from the model that the run began with, by k3 (nats per token)",
    "kl_k1": "KL from the model that the run began with, by k1 (nats per token)",
    "kl_old": "KL from the model that sampled (nats per token)",
    "mismatch": "difference of log-probabilities, training and sampling (nats per token)",
    "clipped_low": "share of sampled tokens below the clip",
    "clipped_high": "share of sampled tokens above the clip",
}


def unit_of(run: Run) -> str:
    """Of its loss."""
    return UNITS.get(str(part(run.config, "objective", "kind")), NATS)


def learned_sections(runs: list[Run], names: list[str]) -> list[Section]:
    """A section where any run samples or learns from pairs; none otherwise. Source i is run i."""
    plots = [
        rewards_plot(runs, names),
        divergence_plot(runs, names),
        over_steps("rounds", "Rounds of samples", ROUNDS, runs, names, kind=ROUND),
        seconds_plot(runs, names),
        *pairs_plots(runs, names),
    ]
    section = Section("learned", "Rewards and preferences", plots=[plot for plot in plots if plot.series])
    for name, run in zip(names, runs, strict=True):
        if flag := raised(run):
            section.about.append(f"{name}, step {flag[0]}: {flag[1]}.")
    return [section] if section.plots else []


# --- rewards --------------------------------------------------------------------------------------------------


def rewards_plot(runs: list[Run], names: list[str]) -> Plot:
    plot = Plot("rewards", "Reward and judge", "lines", x=X, y=[VALUE], smooth=True)
    for i, run in enumerate(runs):
        for kind, key, name, judge, line in WORTH:
            title, color = named(names, i, name), 2 * i + judge
            plot.series += series_of(run, kind, "value", key, title, i, color=color, line=line, marks=kind == HELD_OUT)
        if flag := raised(run):
            plot.series.append(flag_line(plot, run, flag[0], named(names, i, "over-optimised from here on"), i))
    if any(part(run.config, "objective", "judge") for run in runs):
        plot.about.append("The judge's values are measured alone: no run is trained on them.")
    return plot


def named(names: list[str], i: int, what: str) -> str:
    return what if len(names) == 1 else f"{names[i]}, {what}"


def flag_line(plot: Plot, run: Run, step: int, name: str, source: int) -> Series:
    """Upright, where the flag was first raised, as high as the run's values."""
    values = [v for one in plot.series if one.source == source for v in one.columns["value"] if v is not None]
    there = along(run, ROUND, [])
    place = there["step"].index(step)
    columns: dict[str, list[Number]] = {key: [column[place]] * 2 for key, column in there.items()}
    return Series(name, source, columns | {"value": [min(values), max(values)]}, color=7, line="dotted")


def raised(run: Run) -> tuple[int, str] | None:
    """The first round after which the judge falls while the reward does not, and what is said of it then."""
    rounds = [r for r in run.metrics if r["kind"] == ROUND]
    samples = samples_of(run)
    if not samples:
        return None
    every = max(1, len(rounds) // MOST_CHECKS)
    for end in [*range(every, len(rounds), every), len(rounds)]:
        if text := overoptimised(rounds[:end], samples):
            return rounds[end - 1]["step"], text
    return None


def samples_of(run: Run) -> int:
    """Samples of a round; 0 where the config does not say."""
    objective, rows = part(run.config, "objective") or {}, part(run.config, "data", "batch_size")
    if objective.get("kind") not in OF_ROLLOUTS or not isinstance(rows, int):
        return 0
    return (
        rows if objective["kind"] == "grpo" else (objective.get("prompts") or rows) * int(objective.get("group") or 1)
    )


def divergence_plot(runs: list[Run], names: list[str]) -> Plot:
    """Reward against KL: as far from the first model as a step has gone, what is gained there (arXiv:2210.10760)."""
    plot = Plot("reward-kl", "Reward against KL", "lines", x=[KL], y=[VALUE])
    for i, run in enumerate(runs):
        known = [(r["step"], v) for r in run.metrics if r["kind"] == "train" and (v := finite(r.get("kl"))) is not None]
        for kind, key, name, judge, line in WORTH if known else ():
            columns = along(run, kind, [key])
            # a round of step s is sampled by the model whose KL step s tells; a measure after step s, by the one of s+1
            steps = [None if s is None else s + (kind == HELD_OUT) for s in columns["step"]]
            columns = {"kl": [at(known, s) for s in steps], "value": columns[key], "step": columns["step"]}
            if any(v is not None for v in columns["value"]):
                one = Series(named(names, i, name), i, columns, color=2 * i + judge, marker=2 * i + judge, line=line,
                             marks=kind == HELD_OUT)  # fmt: skip
                plot.series.append(thinned(one, ["value"]))
    if plot.series:
        plot.about.append(
            "A line goes on in the order of steps. Where the reward rises and the judge falls, the reward is "
            "over-optimised (Gao et al., arXiv:2210.10760)."
        )
    return plot


def at(known: Sequence[tuple[int, Number]], step: Number) -> Number:
    """The figure of that step, else of the next one that has it, else the last."""
    if step is None:
        return None
    return known[min(bisect_left([s for s, _ in known], step), len(known) - 1)][1]


# --- rounds ---------------------------------------------------------------------------------------------------


def seconds_plot(runs: list[Run], names: list[str]) -> Plot:
    """What a step's samples, their rewards and its training take."""
    plot = Plot("step-seconds", "Seconds of a step: samples, rewards, training", "lines", x=X, y=[TAKEN], smooth=True)
    for i, run in enumerate(runs):
        if not any(r["kind"] == ROUND for r in run.metrics):
            continue
        updates = part(run.config, "objective", "updates") or 1
        for order, (kind, key, name) in enumerate(SECONDS):
            columns = along(run, kind, [key])
            share = updates if kind == ROUND else 1
            columns[TAKEN.key] = [None if v is None else v / share for v in columns.pop(key)]
            if any(v is not None for v in columns[TAKEN.key]):
                one = Series(named(names, i, name), i, columns, color=3 * i + order, marker=order)
                plot.series.append(thinned(one, [TAKEN.key]))
    if plot.series:
        plot.about.append("A round's seconds are divided by its steps. The first ones hold a compile.")
    return plot


# --- pairs ----------------------------------------------------------------------------------------------------


def pairs_plots(runs: list[Run], names: list[str]) -> list[Plot]:
    """What is told of pairs, and the chosen beside the rejected text: both may fall while the loss does."""
    pairs = Plot("pairs", "Pairs", "lines", x=X, y=[], smooth=True)
    both = Plot("chosen-rejected", "Chosen and rejected texts", "lines", x=X, y=[], smooth=True)
    for i, run in enumerate(runs):
        if part(run.config, "objective", "kind") not in OF_PAIRS:
            continue
        for kind, name in (("train", "training"), ("validation", "validation")):
            how: dict[str, Any] = {"line": "dashed", "marks": True} if kind == "validation" else {}
            columns = along(run, kind, [a.key for a in PAIRS])
            there = [a for a in PAIRS if any(v is not None for v in columns[a.key])]
            if there:
                pairs.y += [a for a in there if a not in pairs.y]
                pairs.series.append(Series(named(names, i, name), i, columns, color=i, marker=i, **how))
            for order, which in enumerate(("chosen", "rejected")):
                for axis in BOTH:
                    title, key = named(names, i, f"{which}, {name}"), f"{which}_{axis.key}"
                    series = series_of(run, kind, axis.key, key, title, i, color=2 * i + order, **how)
                    both.series += series
                    both.y += [axis] if series and axis not in both.y else []
    for one in pairs.series:
        thinned(one, [a.key for a in pairs.y])
        one.columns = {k: v for k, v in one.columns.items() if k.partition(":")[0] in {a.key for a in [*X, *pairs.y]}}
    if any(axis.key == "reward" for axis in both.y):
        both.about.append(
            "Where the chosen text's reward falls too, it becomes less likely than it was (displacement)."
        )
    return [pairs, both]


# --- the summary ----------------------------------------------------------------------------------------------

COLUMNS: dict[str, tuple[tuple[str, str], ...]] = {  # title -> where the last figure is, the first that is there
    "reward": ((HELD_OUT, "reward"), (ROUND, "reward")),
    "judge": ((HELD_OUT, "judge"), (ROUND, "judge")),
    "KL": (("train", "kl"),),
    "pairs right": (("validation", "accuracy"), ("train", "accuracy")),
}
IN_SHARES = ("pairs right",)


def learned_columns(runs: list[Run]) -> list[str]:
    """Titles of the columns that any run has a figure for."""
    return [title for title in COLUMNS if any(last(run, title) is not None for run in runs)]


def learned_cells(run: Run, titles: list[str]) -> list[Cell]:
    """Of held-out prompts and pairs where there are such figures, else of the last step's."""
    return [Cell(last(run, title), "share" if title in IN_SHARES else "") for title in titles]


def last(run: Run, title: str) -> Number:
    for kind, key in COLUMNS[title]:
        for record in reversed(run.metrics):
            if record["kind"] == kind and (value := finite(record.get(key))) is not None:
                return value
    return None
