"""A ladder: runs of one recipe at several sizes and lengths, as a file says them. No jax.

Each rung is a config of its own, made from the ladder's; nothing here knows how a rung is run or what came out.
"""

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from jaxscale import config as cfg
from jaxscale.config.other_files import read_kind
from jaxscale.config.values import Above0, NonNegative, Positive, Section, Share, Text
from jaxscale.scaling.counts import law_parameters, size_of, tokens_of
from jaxscale.scaling.laws import form_of

FEWEST_STEPS = 10
MOST_RUNS = 500
FOLDER = Path("runs/ladder")
HELD = ("optimizer.warmup_steps", "optimizer.decay_steps", "steps", "seed", "name", "out", "model.embed_dim",
        "model.num_layers", "model.num_heads")  # fmt: skip
BY_WIDTH = {"learning_rate": "optimizer.learning_rate", "batch": "data.batch_size"}


class Scaled(Section):
    """What follows the width: value * (embed_dim / at) ** power, rounded to a multiple where one is given."""

    at: Positive
    value: Above0
    power: float = 0.0
    multiple_of: Positive | None = None

    def of(self, width: int) -> float:
        try:
            scaled = self.value * (width / self.at) ** self.power
            round(scaled)
        except OverflowError:
            raise ValueError(
                f"{self.value:g} * ({width} / {self.at}) ** {self.power:g} is no number; change power"
            ) from None
        return scaled if self.multiple_of is None else max(1, round(scaled / self.multiple_of)) * self.multiple_of


class Size(Section):
    """The sizes of a rung; what is left out is the config's. `tokens` and `seeds` stand before the ladder's."""

    embed_dim: Positive
    num_layers: Positive
    num_heads: Positive | None = None
    num_kv_heads: Positive | None = None
    mlp_dim: Positive | None = None
    tokens: Above0 | None = None
    seeds: Positive | None = None


class Widths(Section):
    """Sizes by a rule: widths, how many layers each has, and what follows the width."""

    embed_dims: list[Positive]
    num_layers: Scaled
    head_dim: Positive = 64
    mlp_ratio: Annotated[float, Field(gt=0, le=1000)] = 4.0

    def sizes(self) -> list[Size]:
        for width in self.embed_dims:
            if width % self.head_dim:
                raise ValueError(f"widths: embed_dim {width} is not divisible by head_dim {self.head_dim}; change one")
        return [
            Size(
                embed_dim=width,
                num_layers=max(1, round(self.num_layers.of(width))),
                num_heads=width // self.head_dim,
                mlp_dim=round(self.mlp_ratio * width),
            )
            for width in self.embed_dims
        ]


class Target(Section):
    """The run that the ladder is for: its config, and tokens where they are not the config's steps."""

    config: Text
    tokens: Above0 | None = None


class Ladder(Section):
    """A ladder file.

    Attributes:
        config: a run file, or a shipped one's name; `set`: overrides for all rungs.
        rungs: sizes one by one, or `widths`: by a rule.
        tokens, tokens_per_parameter: of each run; `flops`: each size is run with each (isoFLOP).
        learning_rate, batch: by the width; None: the config's. `batch` is in rows.
        warmup_fraction, decay_fraction: of each run's own steps; `decay_fraction` for schedule wsd.
        seeds: runs of each rung, with seeds 0, 1, ...
        held_out: how many of the largest sizes are for judging the law, and not fitted.
        law: the form that the runs are for; `none` where they are for abilities alone.
        evaluate: abilities that are measured at each evaluation, `examples` of each.
        evaluations: of each run, the last at its end.
    """

    name: Text
    config: Text
    set: list[str] = Field(default_factory=list)
    rungs: list[Size] = Field(default_factory=list)
    widths: Widths | None = None
    tokens: Above0 | None = None
    tokens_per_parameter: Above0 | None = None
    flops: list[Above0] = Field(default_factory=list)
    learning_rate: Scaled | None = None
    batch: Scaled | None = None
    warmup_fraction: Share | None = None
    decay_fraction: Share | None = None
    seeds: Positive = 1
    held_out: NonNegative = 0
    law: Literal["compute", "chinchilla", "isoflop", "envelope", "data", "task", "none"] = "chinchilla"
    target: Target | None = None
    evaluate: list[str] = Field(default_factory=list)
    examples: Positive = 256
    evaluations: Positive = 4

    @model_validator(mode="after")
    def _check(self) -> "Ladder":
        if bool(self.rungs) == (self.widths is not None):
            raise ValueError("give either rungs (sizes one by one) or widths (by a rule)")
        lengths = [k for k in ("tokens", "tokens_per_parameter", "flops") if getattr(self, k)]
        by_rung = bool(self.rungs) and all(size.tokens for size in self.rungs)
        if len(lengths) + by_rung != 1:
            raise ValueError(
                f"how long a rung trains is said by {' and '.join(lengths) or 'nothing'}"
                f"{' and by each rung' * by_rung}; give one of tokens, tokens_per_parameter, flops, or tokens to each "
                "rung"
            )
        for one in self.set:
            if (key := key_of(one)) in self.decided:
                raise ValueError(f"set: {key} is decided for each rung; remove it, and say it by the ladder's own keys")
        return self

    @property
    def decided(self) -> list[str]:
        """Keys of the config that the ladder decides for each rung."""
        return [*HELD, *(key for rule, key in BY_WIDTH.items() if getattr(self, rule) is not None)]


@dataclass(frozen=True)
class Rung:
    """One run of a ladder.

    Attributes:
        config: as `train` reads it.
        parameters: N, without the table of embeddings: model FLOPs a token / 6. `whole`: every parameter.
        tokens: D, in whole steps. `flops`: 6 N D.
    """

    name: str
    seed: int
    held_out: bool
    config: cfg.Config
    parameters: int
    whole: int
    tokens: int
    flops: float


def key_of(override: str) -> str:
    return override.partition("=")[0].strip()


def read_ladder(name: str) -> Ladder:
    """From a path, or the name of a shipped one. Raises ValueError, in one line."""
    path, ladder = read_kind(name, "ladder", Ladder, "name, config, and rungs or widths")
    if "/" in ladder.name or ladder.name.startswith("."):
        raise ValueError(f"{path}: name {ladder.name!r} names a folder; give one without a slash or a dot before it")
    return ladder


def rungs_of(ladder: Ladder, overrides: list[str] | None = None) -> list[Rung]:
    """All runs, the cheapest first.

    Args:
        overrides: over the ladder's own `set`, for all rungs.

    Raises:
        ValueError: a rung that no config can be, or a ladder that no law can be fitted to.
    """
    for one in overrides or []:
        if (key := key_of(one)) in ladder.decided:
            raise ValueError(f"{one}: a ladder decides {key} for each rung; change its file")
    common = [*ladder.set, *(overrides or [])]
    base = cfg.load_config(ladder.config, common)
    check_warmup(ladder, base)
    sizes = ladder.widths.sizes() if ladder.widths else ladder.rungs
    count = sum((size.seeds or ladder.seeds) * max(1, len(ladder.flops)) for size in sizes)
    if count > MOST_RUNS:
        raise ValueError(f"ladder {ladder.name} has {count:,} runs; give {MOST_RUNS} or fewer, by fewer sizes or seeds")
    rungs = [
        rung_of(ladder, common, size, seed, flops)
        for size in sizes
        for flops in ladder.flops or (None,)
        for seed in range(size.seeds or ladder.seeds)
    ]
    rungs.sort(key=lambda r: (r.flops, r.seed))
    twice = [name for name, count in Counter(r.name for r in rungs).items() if count > 1]
    if twice:
        raise ValueError(f"ladder {ladder.name} has rung {twice[0]} twice; remove one, or give it seeds: 2")
    return checked(ladder, held_out(ladder, rungs))


def rung_of(ladder: Ladder, common: list[str], size: Size, seed: int, flops: float | None) -> Rung:
    """One run, of whole steps."""
    name = f"d{size.embed_dim}-l{size.num_layers}" + (f"-{flops:.3g}".replace("+", "") if flops else "") + f"-s{seed}"
    shape = {k: v for k in ("embed_dim", "num_layers", "num_heads", "mlp_dim") if (v := getattr(size, k)) is not None}
    if size.num_heads is not None:
        shape |= {"num_kv_heads": size.num_kv_heads, "head_dim": None}
    values = [*common, f"name={ladder.name}-{name}", f"out={FOLDER / ladder.name / name}", f"seed={seed}"]
    values += [f"model.{key}={'null' if value is None else value}" for key, value in shape.items()]
    if ladder.learning_rate:
        values.append(f"optimizer.learning_rate={ladder.learning_rate.of(size.embed_dim):.6g}")
    if ladder.batch:
        values.append(f"data.batch_size={max(1, round(ladder.batch.of(size.embed_dim)))}")
    try:
        draft = cfg.load_config(ladder.config, values)
        config = cfg.load_config(ladder.config, [*values, *lengths(ladder, draft, size, flops)])
    except ValueError as error:
        raise ValueError(f"rung {name}: {error}") from error
    n, tokens = law_parameters(config), tokens_of(config)
    return Rung(name, seed, False, config, n, round(size_of(config, "with")), tokens, 6.0 * n * tokens)


def lengths(ladder: Ladder, draft: cfg.Config, size: Size, flops: float | None) -> list[str]:
    """Overrides for a run's steps, its warm-up and decay, and its evaluations."""
    n = law_parameters(draft)
    wanted = size.tokens or ladder.tokens or (flops or 0) / (6 * n) or (ladder.tokens_per_parameter or 0) * n
    steps = math.ceil(wanted / (draft.data.batch_size * draft.data.seq_len))
    if steps < FEWEST_STEPS:
        raise ValueError(
            f"{wanted:,.0f} tokens are {steps} steps of {draft.data.batch_size * draft.data.seq_len:,} tokens; give "
            f"{FEWEST_STEPS} steps or more, by more tokens or a smaller batch"
        )
    every = math.ceil(steps / ladder.evaluations) if ladder.evaluations > 1 else 0  # 0: at the end alone
    overrides: dict[str, Any] = {"steps": steps, "evaluation.every": every}
    if ladder.warmup_fraction is not None:
        overrides["optimizer.warmup_steps"] = round(ladder.warmup_fraction * steps)
    if ladder.decay_fraction is not None:
        overrides["optimizer.decay_steps"] = max(1, round(ladder.decay_fraction * steps))
    if ladder.evaluate:
        overrides["evaluation.abilities"] = f"[{', '.join(ladder.evaluate)}]"
        overrides["evaluation.examples"] = ladder.examples
    return [f"{key}={value}" for key, value in overrides.items()]


def check_warmup(ladder: Ladder, base: cfg.Config) -> None:
    """One warm-up, in steps, for short and long runs bends the exponent (arXiv:2406.19146)."""
    for key, fraction in (("warmup_steps", ladder.warmup_fraction), ("decay_steps", ladder.decay_fraction)):
        steps = getattr(base.optimizer, key)
        if steps and fraction is None:
            fraction_key = f"{key.removesuffix('_steps')}_fraction"
            raise ValueError(
                f"optimizer.{key}={steps} is the same for short and long rungs, which bends the law's exponent; give "
                f"the ladder {fraction_key}, a share of each run"
            )


def held_out(ladder: Ladder, rungs: list[Rung]) -> list[Rung]:
    """The ladder's largest sizes, marked."""
    largest = sorted({r.parameters for r in rungs}, reverse=True)[: ladder.held_out]
    marked = [Rung(**(vars(r) | {"held_out": r.parameters in largest})) for r in rungs]
    fitted = [r.flops for r in marked if not r.held_out]
    for rung in marked:
        if rung.held_out and fitted and rung.flops < max(fitted):
            raise ValueError(
                f"rung {rung.name} is held out with {rung.flops:.3g} FLOPs, below the {max(fitted):.3g} of a fitted "
                "one; a law is judged above its runs: give it more tokens, or hold out fewer"
            )
    return marked


def checked(ladder: Ladder, rungs: list[Rung]) -> list[Rung]:
    fitted = {(r.parameters, r.tokens) for r in rungs if not r.held_out}
    needs = 0 if ladder.law == "none" else form_of(ladder.law).rungs
    if len(fitted) < needs:
        raise ValueError(
            f"ladder {ladder.name} has {len(fitted)} rungs to fit (of {len(rungs)} runs), and law={ladder.law} needs "
            f"{needs} or more of different size or length; add rungs, or say law: none"
        )
    return rungs
