"""What is said of a run's samples where a step is predicted: seconds, what decoding waits for, memory."""

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from jaxscale import config as cfg
from jaxscale.hardware.chips import GIB
from jaxscale.predict.rollouts import Sampling

WAITS = {
    "compute": "FLOPs",
    "HBM": "reading weights and cache from HBM",
    "weights": "gathering the weights",
    "collectives": "collectives of its activations",
}


def sampling_lines(config: cfg.Config, sampling: Sampling | None, training: float) -> Iterable[str]:
    """Of one way to run; nothing where it does not sample. `training`: seconds of the rest of a step."""
    if sampling is None:
        return
    parts = {"prompts": sampling.prefill, "decoding": sampling.decode, "reference": sampling.reference}
    parts |= {"gathering the weights": sampling.gather}
    breakdown = ", ".join(f"{name} {seconds:.3g}" for name, seconds in parts.items() if seconds)
    yield (
        f"samples of a step, predicted: at least {sampling.seconds:.3g} s ({breakdown}) beside {training:.3g} s of "
        f"training; decoding is {sampling.share_of_decode(training):.0%} of the whole step"
    )
    yield (
        f"a token of decoding waits most for {WAITS[sampling.binds]}; {sampling.rows:,} rows a device, samples of "
        f"{sampling.tokens:,} tokens, prompts padded to {sampling.prompt:,} ({sampling.prompt_from})"
    )
    need = sampling.need
    how = "once a round" if sampling.gathered else "for each token, as they do not fit whole"
    yield f"weights are gathered {how}: {need.weights / GIB:,.2f} GiB of them, {need.cache / GIB:,.2f} of cache"
    if config.objective.reward and ":" not in config.objective.reward:
        yield f"not counted: {config.objective.reward}, the reward model, in memory and in seconds"


def sampling_values(sampling: Sampling | None, training: float) -> dict[str, Any] | None:
    """For `--json`; seconds are predicted."""
    if sampling is None:
        return None
    more = {"seconds": sampling.seconds, "share_of_decode": sampling.share_of_decode(training)}
    return {"basis": "predicted"} | asdict(sampling) | more
