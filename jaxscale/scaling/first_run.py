"""A first run file: a model sized for a text, a machine and some hours, by rules that the file names.

Three rules of thumb stand for a law that is not there yet: 20 tokens a parameter (Hoffmann et al. 2022,
arXiv:2203.15556), at most 4 epochs (Muennighoff et al. 2023, arXiv:2305.16264), and a learning rate that falls with the
square root of the width. A ladder of small runs (`jaxscale ladder`) replaces all three.
"""

import contextlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from jaxscale import config as cfg
from jaxscale.compiled.story import with_changes
from jaxscale.hardware.topology import Topology
from jaxscale.predict.plan import Choice, plan
from jaxscale.scaling.counts import short, size_of, tokens_of
from jaxscale.scaling.shape import near

TOKENS_EACH = 20  # tokens a parameter
EPOCHS = 4
SHARE = 0.3  # of the peak, where no plan says it
STEPS = 1000  # at least about so many, unless the batch is as small as it may be
LEAST_TOKENS, MOST_TOKENS = 2**11, 2**20  # of a step
LEAST_SIZE = 1.5e5  # parameters
LEAST_STEPS = 200  # of a text so small that more epochs are the only way
FEW = 100  # tokens of a text that no model learns from
RATE, RATE_WIDTH = 3e-3, 64  # the learning rate at a width; the shipped ladders' own
LARGE = 2e7  # parameters from which a model is shaped as Llama 3.2 1B rather than as the quickstart's
LARGER, MOST_LARGER = 1.25, 25  # a size is raised by this factor, so many times at most
ROUNDS = 3  # of: hours -> size -> speed -> hours


@dataclass(frozen=True)
class Wish:
    """What a user has: so many tokens of a vocabulary, and a machine for some hours.

    Attributes:
        tokens: of the training text; an estimate where it is not prepared yet.
        peak: FLOP/s of all devices, published or measured.
        topology: of accelerators; None for a CPU.
    """

    data: Path
    tokens: float
    vocab_size: int
    hours: float
    peak: float
    topology: Topology | None


@dataclass(frozen=True)
class FirstRun:
    """The run's config, why it is so, and how long it takes.

    Attributes:
        epochs: times that the text is read.
        seconds: predicted by `plan`; on a CPU by a share of its measured peak.
        limited: what ends it, `text` or `hours`.
    """

    config: cfg.Config
    choice: Choice | None
    parameters: float
    epochs: float
    seconds: float
    limited: str


def first_run(wish: Wish) -> FirstRun:
    """The run that a wish makes.

    Raises:
        ValueError: next to no text, or no model that fits the machine.
    """
    share = SHARE
    for _ in range(ROUNDS):
        flops = share * wish.peak * wish.hours * 3600
        run = sized(wish, flops, share)
        if run.choice is None or run.choice.forecast.mfu is None:
            return run
        share = run.choice.forecast.mfu
    return run


def sized(wish: Wish, flops: float, share: float) -> FirstRun:
    """The best model for so many FLOPs: C = 6 N D with D = 20 N, unless the text ends before."""
    if wish.tokens < FEW:
        raise ValueError(f"{wish.data} has about {wish.tokens:,.0f} tokens; give a text of {FEW} or more")
    D = math.sqrt(flops / 6 * TOKENS_EACH)
    most = EPOCHS * wish.tokens
    limited = "text" if most < D else "hours"
    D = max(min(D, most), LEAST_STEPS * LEAST_TOKENS)
    N = max(D / TOKENS_EACH, LEAST_SIZE)
    config = shaped(wish, N, D)
    choice = None
    if wish.topology is not None:
        choices = plan(config, wish.topology).choices
        if not choices:
            raise ValueError(f"no mesh of {wish.topology.name} holds {short(N)} parameters; give fewer --hours")
        choice = choices[0]
        config = choice.config
    trained = tokens_of(config)
    size = size_of(config, "without")
    seconds = choice.forecast.seconds * config.steps if choice else 6 * size * trained / (share * wish.peak)
    return FirstRun(config, choice, size_of(config, "with"), trained / wish.tokens, seconds, limited)


def shaped(wish: Wish, N: float, D: float) -> cfg.Config:
    """A config with a model near N parameters that reads about D tokens."""
    large = N >= LARGE
    T = 256 if N < 5e6 else 1024 if N < 2e8 else 2048
    name, plain = ("llama3.2-1b", ["model.rope_scaling=null"]) if large else ("quickstart", [])
    base = cfg.load_config(name, [f"model.vocab_size={wish.vocab_size}", *plain])
    model = near_or_larger(base, N)
    devices = wish.topology.devices if wish.topology else 1
    rows = max(power_of_two(min(max(D / STEPS, LEAST_TOKENS), MOST_TOKENS) / T), devices)
    steps = max(1, round(D / rows / T))
    plainly = {"name": wish.data.name, "out": None, "steps": steps}
    sections = {
        "model": {"name": f"{wish.data.name}-{short(N).lower()}", "max_seq_len": T},
        "mesh": {"data": 1, "tensor": 1, "fsdp": devices},
        "runtime": {"platform": "auto" if wish.topology else "cpu", "simulated_devices": None if wish.topology else 1},
        "data": {"path": str(wish.data), "batch_size": rows, "seq_len": T},
        "step": {"compute_dtype": "bfloat16", "remat": "full"} if wish.topology else {},
        "optimizer": {
            "learning_rate": float(f"{RATE * (RATE_WIDTH / model.model.embed_dim) ** 0.5:.1e}"),
            "warmup_steps": max(1, steps // 20),
        },
        "checkpoint": {"every": max(1, steps // 4)},
        "evaluation": {"every": max(1, steps // 10)},
    }
    named = cfg.validate(model.model_dump(mode="json") | plainly, source="init")
    return with_changes(named, sections, source="init")


def near_or_larger(base: cfg.Config, N: float) -> cfg.Config:
    """The base's shape at N parameters, or at the least size above N that it can have: a vocabulary has its size."""
    for k in range(MOST_LARGER):
        with contextlib.suppress(ValueError):
            return near(base, LARGER**k * N, "without")[0]
    return near(base, LARGER**MOST_LARGER * N, "without")[0]


def power_of_two(number: float) -> int:
    return 2 ** max(0, round(math.log2(number)))


# --- the file -------------------------------------------------------------------------------------------------


def run_file(wish: Wish, run: FirstRun, prepare: str | None, path: Path) -> str:
    """The run file, with what it was made for above it. `prepare`: the command that makes its dataset."""
    config = run.config
    tokens = config.data.batch_size * config.data.seq_len
    where = wish.topology.name if wish.topology else "this CPU"
    head = [f"{config.name}: {short(run.parameters)} parameters, chosen by `jaxscale init` for {where}."]
    head += ["", *([f"  {prepare}"] if prepare else []), f"  jaxscale train {path}", ""]
    head += [
        f"{config.steps:,} steps of {tokens:,} tokens read the text {run.epochs:.2g} times. {ended(run)}",
        f"It takes about {clock(run.seconds)}, predicted; `train` shows the speed that it reaches.",
        f"The size follows from {TOKENS_EACH} tokens a parameter (arXiv:2203.15556) and at most {EPOCHS} epochs",
        "(arXiv:2305.16264). `jaxscale ladder` finds what is right for your text.",
    ]
    body = yaml.safe_dump(short_values(config), sort_keys=False, default_flow_style=None, width=100)
    return "".join(f"# {line}".rstrip() + "\n" for line in head) + body


def ended(run: FirstRun) -> str:
    if run.epochs > 1.5 * EPOCHS:
        return "That is little text: the model will learn it by heart."
    if run.limited == "text":
        return "The text sets the size; more hours need more text."
    return "The hours set the size."


def short_values(config: cfg.Config) -> dict[str, Any]:
    """What a person would write of a config; the rest is the defaults'."""
    values = config.model_dump(mode="json", exclude_defaults=True)
    del values["out"]
    del values["model"]["vocab_size"]  # the data's
    return {key: value for key, value in values.items() if value != {}}


def clock(seconds: float) -> str:
    """In the unit that a person would use."""
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.2g} {unit}"
    return f"{seconds:.2g} seconds"
