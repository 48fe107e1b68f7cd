"""A model of a wanted size, shaped as one that is there: its heads, its MLP's ratio, its width for a depth."""

import math
from collections.abc import Iterator

from jaxscale import config as cfg
from jaxscale.compiled.story import with_changes
from jaxscale.scaling.counts import size_of

Sizes = dict[str, int | float]
SLIM, WIDE = 0.6, 1.7  # width over depth may be these times the base's
ASPECT = 0.15  # what a factor e in width over depth counts, against a factor e in size
SMALL_HEAD = 64  # of models too narrow for the base's heads
GROUP = 8  # heads of a wide model are a multiple of it, for tensor parallelism
EVEN = 12  # layers from which their number is even, for pipelines
MOST_LAYERS = 200
NEAR = 1.25  # times the wanted size, or a part of it, at most


def near(base: cfg.Config, size: float, counts: str) -> tuple[cfg.Config, Sizes]:
    """(`base` with a model near N = `size`, the keys of the model that changed).

    Raises:
        ValueError: the base is no dense model that is trained whole, or no model is so small.
    """
    if base.model.moe or base.model.lora:
        what = "experts" if base.model.moe else "LoRA"
        raise ValueError(f"--config {base.name} has {what}, and a law sizes a dense model; give e.g. llama3.1-8b")
    best: tuple[float, cfg.Config, Sizes] | None = None
    for width in widths(base, size):
        one, two = (built(base, width, layers) for layers in (1, 2))
        if one is None or two is None:
            continue
        first, second = size_of(one[0], counts), size_of(two[0], counts)
        depth = 1 + (size - first) / (second - first)
        for layers in (max(1, round(depth)), max(2, 2 * round(depth / 2))):
            stretch = width / layers / (base.model.embed_dim / base.model.num_layers)
            if layers % 2 and layers > EVEN:
                continue
            if not SLIM <= stretch <= WIDE or layers > MOST_LAYERS:
                continue
            here = first + (layers - 1) * (second - first)
            score = abs(math.log(here / size)) + ASPECT * abs(math.log(stretch))
            if best is None or score < best[0]:
                whole = built(base, width, layers)
                best = (score, *whole) if whole else best
    if best is None or not 1 / NEAR < size_of(best[1], counts) / size < NEAR:
        raise ValueError(
            f"no model shaped as {base.model.name} (vocabulary {base.model.vocab_size:,}) has {size:.3g} parameters; "
            "give another --config, or other FLOPs"
        )
    return best[1], best[2]


def widths(base: cfg.Config, size: float) -> Iterator[int]:
    """Widths about the one that the base's shape has at this size: multiples of what its heads are split by."""
    about = base.model.embed_dim * (size / size_of(base, "without")) ** (1 / 3)
    grain = 64 if about < 768 else 256 if about < 2048 else GROUP * min(128, base.model.head_size)
    low, high = max(1, int(about / 1.6 // grain)), int(about * 1.6 // grain) + 1
    for k in range(low, high + 1):
        yield k * grain


def built(base: cfg.Config, width: int, layers: int) -> tuple[cfg.Config, Sizes] | None:
    """The base's model at a width and depth; None where its heads do not divide the width."""
    model = base.model
    head = model.head_size if width >= 8 * model.head_size else min(model.head_size, SMALL_HEAD)
    if width % head:
        return None
    heads = width // head
    kv = heads
    if model.kv_heads < model.num_heads:  # as many as the base's, or the most below that divide the heads
        kv = max(k for k in range(1, model.kv_heads + 1) if heads % k == 0)
    grain = 256 if width >= 2048 else 64
    mlp = max(grain, round(width * model.mlp_dim / model.embed_dim / grain) * grain)
    values: Sizes = {
        "num_layers": layers,
        "embed_dim": width,
        "num_heads": heads,
        "num_kv_heads": kv,
        "head_dim": head,
        "mlp_dim": mlp,
    }
    if math.isclose(model.embedding_multiplier, model.embed_dim**0.5, rel_tol=1e-3) and model.embed_dim > 1:
        values["embedding_multiplier"] = width**0.5  # Gemma's, which follows the width
    return with_changes(base, {"model": values}, source=f"{base.name} at {layers} layers of {width}"), values
