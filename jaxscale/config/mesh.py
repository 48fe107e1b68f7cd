"""The sections `mesh` and `sharding`: the axes, their sizes, and what is split over them."""

import math

from pydantic import model_validator

from jaxscale.config.errors import divisors
from jaxscale.config.mesh_text import mesh_text, split_axes
from jaxscale.config.values import Positive, Section

AXES = ("replica", "pipeline", "data", "fsdp", "expert", "context", "tensor")  # slowest link first
OVER_SLICES = "data"  # the axis that several slices split where nothing else is said


class Dcn(Section):
    """How many slices (GPU: groups of nodes) each axis runs over, on the slow network between them."""

    replica: Positive = 1
    """Slices that the axis `replica` runs over."""
    pipeline: Positive = 1
    """Slices that the axis `pipeline` runs over."""
    data: Positive = 1
    """Slices that the axis `data` runs over."""
    fsdp: Positive = 1
    """Slices that the axis `fsdp` runs over."""
    expert: Positive = 1
    """Slices that the axis `expert` runs over."""
    context: Positive = 1
    """Slices that the axis `context` runs over."""
    tensor: Positive = 1
    """Slices that the axis `tensor` runs over."""


class Mesh(Section):
    """Sizes of the mesh axes within a slice. One may be -1: the devices that the others leave.

    An axis's whole size is its size here times its size in `dcn`.
    """

    replica: int = 1
    """Copies of the model that train apart and meet every `outer.every` steps."""
    pipeline: int = 1
    """Stages, each with its share of the layers; -1: all devices that the other axes leave."""
    data: int = -1
    """Copies of the parameters, which split the batch; -1: all devices that the other axes leave."""
    fsdp: int = 1
    """Devices that split the parameters and the batch; -1: all devices that the other axes leave."""
    expert: int = 1
    """Devices that split the experts and the batch; -1: all devices that the other axes leave."""
    context: int = 1
    """Devices that split the tokens of each sequence; -1: all devices that the other axes leave."""
    tensor: int = 1
    """Devices that split heads, MLP and vocabulary; -1: all devices that the other axes leave."""
    dcn: Dcn = Dcn()
    """How many slices (GPU: groups of nodes) each axis runs over, on the slow network between them."""

    @model_validator(mode="after")
    def _check(self) -> "Mesh":
        wild = [a for a in AXES if getattr(self, a) == -1]
        if len(wild) > 1 and "data" in wild and "data" not in self.model_fields_set:
            object.__setattr__(self, "data", 1)  # the default gives way to an axis that asks for the rest
            wild.remove("data")
        if len(wild) > 1:
            raise ValueError(f"{' and '.join(wild)} are both -1; only one axis can take the remaining devices")
        if self.replica == -1:
            raise ValueError("replica=-1: how many replicas there are changes what is learnt; give their number")
        for axis in AXES:
            size = getattr(self, axis)
            if size != -1 and size < 1:
                raise ValueError(f"{axis}={size} must be a positive size, or -1 for the remaining devices")
        return self

    @property
    def replicas(self) -> int:
        """Copies of the model that train apart; 1: a usual run."""
        return self.replica * self.dcn.replica

    @property
    def over_slices(self) -> dict[str, int]:
        """Axis -> size over the slow network, of those that cross it."""
        return {a: n for a in AXES if (n := getattr(self.dcn, a)) > 1}

    def sizes(self, num_devices: int | None) -> dict[str, int]:
        """Resolve -1 and check against the number of devices (None: any number that the sizes multiply to).

        Returns axis name -> size, in the mesh's order, without axes of size 1 (one `data` axis of size 1 when
        nothing is left, as JAX has no sharding on a mesh without axes).
        """
        sizes = {a: getattr(self, a) for a in AXES}
        slices = math.prod(self.over_slices.values())
        fixed = math.prod(s for s in sizes.values() if s != -1) * slices
        wild = [a for a, s in sizes.items() if s == -1]
        text = mesh_text(split_axes(sizes) | {f"dcn.{a}": n for a, n in self.over_slices.items()})
        if num_devices is None:
            num_devices = fixed
        if wild:
            if num_devices % fixed:
                raise ValueError(
                    f"mesh {text}: {fixed} does not divide {num_devices} devices; make the product of the fixed axes "
                    f"one of {divisors(num_devices)}"
                )
            sizes[wild[0]] = num_devices // fixed
        elif fixed != num_devices:
            raise ValueError(
                f"mesh {text or 'of one device'} needs {fixed} devices and there are {num_devices}; set an axis to -1, "
                f"or on CPU runtime.simulated_devices={fixed}"
            )
        sizes = {a: s * getattr(self.dcn, a) for a, s in sizes.items()}
        return {a: s for a, s in sizes.items() if s > 1} or {"data": 1}


AxisNames = str | list[str] | None


class Sharding(Section):
    """Overrides of the logical rules: logical axis -> mesh axis, several, or null for not split."""

    parameters: dict[str, AxisNames] = {}
    """For parameters: logical axis to a mesh axis, several of them, or null for not split."""
    activations: dict[str, AxisNames] = {}
    """For activations: logical axis to a mesh axis, several of them, or null for not split."""
