"""Which model is meant: the decoder of the config, or a model of your own that describes itself. No jax."""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

from jaxscale import config as cfg
from jaxscale.blueprint.decoder import decoder
from jaxscale.blueprint.table import Blueprint

_described: contextvars.ContextVar[Any] = contextvars.ContextVar("described", default=None)


@contextlib.contextmanager
def described_by(model: Any) -> Iterator[None]:
    """Inside, predictions are of `model`, whose `blueprint(config.model)` gives its rows; None: of the decoder."""
    if model is not None and not hasattr(model, "blueprint"):
        raise ValueError(
            f"{getattr(model, '__name__', model)} has no blueprint(model), which gives the rows that predictions "
            "are made from; see docs/models.md"
        )
    token = _described.set(model)
    try:
        yield
    finally:
        _described.reset(token)


def blueprint(model: cfg.Model) -> Blueprint:
    """The rows of a config's model: the decoder's, or inside `described_by` those of a model of your own."""
    if (described := _described.get()) is not None:
        rows: Blueprint = described.blueprint(model)
        return rows
    known = _decoders.get(id(model))
    if known is None or known[0] is not model:
        if len(_decoders) >= MOST_DECODERS:
            _decoders.clear()
        known = _decoders[id(model)] = (model, decoder(model))
    return known[1]


# By identity: a plan asks hundreds of thousands of times, and pydantic hashes every field each time.
MOST_DECODERS = 64
_decoders: dict[int, tuple[cfg.Model, Blueprint]] = {}
