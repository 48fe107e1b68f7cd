"""Every matmul of the step by the rules, for meshes that were not traced: as rows for the page. No jax.

A layout names every mesh axis that the rules know for a dim; axes of size 1 fall out. On the traced mesh the rows are
what was traced; a test holds that.
"""

from dataclasses import asdict
from typing import Any

from jaxscale import config as cfg
from jaxscale.blueprint.passes import passes


def layouts(config: cfg.Config) -> list[dict[str, Any]]:
    """All of them, as JSON: forward, recomputed, and the two gradients of each."""
    return [asdict(one) for one in passes(config, cfg.READY_AXES)]
