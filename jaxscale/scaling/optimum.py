"""The best model for a budget: a law's N* and D*, joined to `plan`, which knows what a machine makes of its days."""

import math
import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import yaml

from jaxscale import config as cfg
from jaxscale.compiled.story import with_batch_tokens
from jaxscale.hardware.topology import Topology
from jaxscale.predict import costs
from jaxscale.predict.plan import Choice, plan
from jaxscale.predict.ways import held_keys
from jaxscale.scaling.counts import COUNTS, flops_per_token, short, size_of
from jaxscale.scaling.forecast import Estimate, beyond, estimate, values
from jaxscale.scaling.law import Law, Point
from jaxscale.scaling.laws import FORMS, Form, form_of
from jaxscale.scaling.shape import Sizes, near

DAY = 86400.0
GUESS = 0.4  # of the peak, where the fixed point begins
ROUNDS = 12
CLOSE = 0.01  # share by which FLOPs may change in the last round
VARIED = ("mesh", "step.microbatches", "step.remat", "loss.chunk")  # what a plan chooses


@dataclass(frozen=True)
class Optimum:
    """What a budget is best spent on.

    Attributes:
        flops: the budget C; of days on a machine what they hold.
        size, tokens: N* and D* with their intervals, C = 6 N D.
        model: the config with a model near N*; `parameters` its own N, `trains` its tokens, for all of C.
        loss: of that model at these tokens; None where the law says none.
        choice: the fastest way on the topology; None without one. `days` that it takes.
        command: what trains it.
        rounds: of the fixed point, 0 where FLOPs were given.
    """

    flops: float
    size: Estimate
    tokens: Estimate
    counts: str
    config: cfg.Config
    parameters: float
    trains: float
    loss: Estimate | None
    accuracy: Estimate | None
    beyond: dict[str, float]
    choice: Choice | None
    days: float | None
    command: str
    rounds: int


@dataclass(frozen=True)
class Request:
    """The law, and what the user gave beside the budget: a base to shape the model by, and a machine."""

    law: Law
    base: cfg.Config
    named: str  # how the base is named on a command line
    overrides: tuple[str, ...] = ()
    topology: Topology | None = None
    batch_tokens: int | None = None


def optimum(request: Request, flops: float) -> Optimum:
    """What so many FLOPs are best spent on.

    Raises:
        ValueError: the form says no best size, or the topology holds no such model.
    """
    if not 1e3 < flops < 1e40:
        raise ValueError(f"--flops {flops:g}: give a number of FLOPs, e.g. 1e24")
    form = sized(request.law)
    size = estimate_size(request.law, form, flops)
    shaped, changed = near(request.base, size.value, request.law.counts)
    if request.batch_tokens is not None:
        shaped = with_batch_tokens(shaped, request.batch_tokens)
    each = flops_per_token(shaped)
    D = flops / each
    steps = max(1, round(D / (shaped.data.batch_size * shaped.data.seq_len)))
    name = f"{request.base.name}-{short(size_of(shaped, request.law.counts)).lower()}"
    shaped = cfg.validate(shaped.model_dump(mode="json") | {"name": name, "steps": steps, "out": None}, source=name)
    choice = fastest(request, shaped) if request.topology else None
    N = size_of(shaped, request.law.counts)
    loss, accuracy = said(request.law, Point(N, D, flops))
    seconds = choice.forecast.seconds * flops / choice.forecast.model_flops if choice else None
    return Optimum(
        flops=flops,
        size=size,
        tokens=Estimate(value=flops / 6 / size.value, low=flops / 6 / size.high, high=flops / 6 / size.low),
        counts=COUNTS[request.law.counts],
        config=choice.config if choice else shaped,
        parameters=N,
        trains=D,
        loss=loss,
        accuracy=accuracy,
        beyond=beyond(request.law, N, D, flops),
        choice=choice,
        days=None if seconds is None else seconds / DAY,
        command=command(request, shaped, changed, choice),
        rounds=0,
    )


def optimum_of_days(request: Request, days: float) -> Optimum:
    """What so many days of the topology are best spent on.

    The FLOPs of the days depend on the model's speed, and the model on those FLOPs: a fixed point. Bisection finds it
    where two models next to each other send it back and forth.

    Raises:
        ValueError: as `optimum`; no number of days, or no topology.
    """
    where = request.topology
    if where is None or not 0 < days < 1e5:
        raise ValueError(f"--days {days:g}: give a number of days above 0, and the --topology that they are of")
    flops = GUESS * where.chip.bf16_flops * where.chips * days * DAY
    low, high = 0.0, math.inf  # budgets that are too small for the days, and too large
    for rounds in range(1, ROUNDS + 1):
        best = replace(optimum(request, flops), rounds=rounds)
        assert best.days is not None
        if abs(best.days / days - 1) < CLOSE:
            break
        low, high = (flops, high) if best.days < days else (low, flops)
        guess = flops * days / best.days
        flops = guess if low < guess < high else (low * high) ** 0.5 if low and high < math.inf else guess
    return best


def sized(law: Law) -> Form:
    form = form_of(law.form)
    if form.size is None:
        others = ", ".join(name for name, one in FORMS.items() if one.size)
        raise ValueError(f"{law.form} says no best size; fit one of the forms {others} to the same runs")
    return form


def estimate_size(law: Law, form: Form, flops: float) -> Estimate:
    size: Callable = form.size  # type: ignore[assignment]  # `sized` has looked
    with np.errstate(over="ignore"):
        best_size = estimate(size(law.best, flops), size(law.drawn, flops))
    if not 1 < best_size.value < 1e20:
        raise ValueError(
            f"the law's best size at {flops:.3g} FLOPs is {best_size.value:.3g}, which no model has; fit it anew"
        )
    return best_size


def said(law: Law, at: Point) -> tuple[Estimate | None, Estimate | None]:
    """Loss and accuracy; no loss of an isoflop law of few budgets."""
    if law.form == "isoflop" and len(law.parameters) < 5:
        return None, None
    return values(law, at)


def fastest(request: Request, config: cfg.Config) -> Choice:
    """The first choice of `plan`, around what the command line holds."""
    assert request.topology is not None
    documents, held = costs.packs_documents(config), held_keys(request.overrides)
    planned = plan(config, request.topology, documents=documents, held=held)
    if not planned.choices:
        why = f": {planned.left_out[0][0]}" if planned.left_out else ""
        raise ValueError(
            f"no way to train {size_of(config, 'with'):.3g} parameters on {request.topology.name} with "
            f"{config.data.batch_size * config.data.seq_len:,} tokens a step{why}; try other --batch-tokens"
        )
    return planned.choices[0]


def command(request: Request, shaped: cfg.Config, changed: Sizes, choice: Choice | None) -> str:
    """The command that trains it: the base with overrides that make the same config."""
    arguments = ["jaxscale", "train", request.named, *request.overrides]
    arguments += [f"model.{key}={value!r}" for key, value in changed.items()]
    arguments += [f"name={shaped.name}", f"steps={shaped.steps}"]
    if request.batch_tokens is not None:
        arguments.append(f"data.batch_size={shaped.data.batch_size}")
    if choice is not None:
        before, after = shaped.model_dump(mode="json"), choice.config.model_dump(mode="json")
        for key in VARIED:
            old, new = (in_section(values, key) for values in (before, after))
            given = changes(key, old, new)
            if key == "mesh" and given:  # an axis that the file leaves out may take all devices (-1)
                given = list(dict(given + changes(key, cfg.Mesh().model_dump(mode="json"), new)).items())
            arguments += [f"{name}={flow(value)}" for name, value in given]
    return " ".join(shlex.quote(argument) for argument in arguments)


def in_section(values: dict, key: str) -> object:
    section, _, name = key.partition(".")
    return values[section][name] if name else values[section]


def changes(key: str, old: object, new: object) -> list[tuple[str, object]]:
    """(key, new value) of each leaf that differs; a mapping that is another is given whole where its keys changed."""
    if isinstance(old, dict) and isinstance(new, dict) and old.keys() == new.keys():
        return [one for name in new for one in changes(f"{key}.{name}", old[name], new[name])]
    return [] if old == new else [(key, new)]


def flow(value: object) -> str:
    """A value of YAML on one line."""
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("...\n").strip()
