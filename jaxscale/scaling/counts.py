"""N of a model, as laws count it. The model's one description (`blueprint`) has the numbers."""

from jaxscale import config as cfg
from jaxscale.predict.costs import parameter_counts, train_flops_per_token

COUNTS = {
    "without": "without embeddings (FLOPs a token / 6)",
    "with": "with embeddings",
    "unknown": "taken as without embeddings (FLOPs a token / 6), as the table did not say",
}


def flops_per_token(config: cfg.Config) -> float:
    """Of training, forward and backward, in the convention of `metrics.mfu`."""
    return train_flops_per_token(config.model, config.data.seq_len, convention=config.metrics.mfu)


def law_parameters(config: cfg.Config) -> int:
    """N of a law: a token's model FLOPs / 6, so active matrices and attention, by the convention of `metrics.mfu`."""
    return round(flops_per_token(config) / 6)


def size_of(config: cfg.Config, counts: str) -> float:
    """N: `with` embeddings all parameters, else FLOPs a token / 6, so that C = 6 N D.

    The two differ most in small models, and with them the law: Kaplan's N* grows as C^0.73, Chinchilla's as C^0.50
    (arXiv:2406.12907).
    """
    if counts == "with":
        return float(sum(parameter_counts(config.model).values()))
    return float(law_parameters(config))


def tokens_of(config: cfg.Config) -> int:
    """Tokens that the run of a config sees."""
    return config.steps * config.data.batch_size * config.data.seq_len


def short(count: float) -> str:
    """1,234,567 -> 1.23M."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count:.3g}"
