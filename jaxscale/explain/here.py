"""`explain` for a model of your own, which is traced in this process, for its devices."""

from typing import Any

from jaxscale import config as cfg
from jaxscale.blueprint.described import described_by
from jaxscale.blueprint.rules import STAGE_AXES, split_by
from jaxscale.explain import story, trace
from jaxscale.hardware.topology import Topology


def explain_model(
    model: Any, config: cfg.Config, topology: Topology | None = None, *, compiler: str = "cpu"
) -> story.Explanation:
    """As `story.explain`, for a model that `train` takes and that describes itself (`blueprint(model)`).

    Args:
        compiler: `cpu` or `none`; a chip's compiler is used for the decoder only.

    Raises ValueError for a mesh of more devices than this process has, and for one with stages.
    """
    if compiler not in ("cpu", "none"):
        raise ValueError(f"compiler={compiler}: a model of your own is compiled by cpu or none")
    devices = topology.devices if topology else config.runtime.simulated_devices
    if split := split_by(STAGE_AXES, config.mesh.sizes(devices)):
        raise ValueError(f"mesh.{split[0]}: a model of your own is explained whole; set it to 1")
    with described_by(model):
        answer = lambda shown, request, verbose: trace.explain(shown, request, model)  # noqa: E731
        return story.explain(config, topology, compiler=compiler, tracer=answer)
