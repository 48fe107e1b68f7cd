"""All chips, and which of them a device is. Knows nothing of jax. Their entries: `tpus`, `gpus` and `cards`."""

import re

from jaxscale.hardware.cards import CARDS
from jaxscale.hardware.chip import GB, GIB, GPU_MEMORY_FRACTION, Chip
from jaxscale.hardware.gpus import GPUS
from jaxscale.hardware.tpus import TPUS

__all__ = ["CHIPS", "GB", "GIB", "GPU_MEMORY_FRACTION", "Chip", "find_chip"]

CHIPS = (*TPUS, *GPUS, *CARDS)
# After a chip's name these words mean other clocks, memory or a part of one: no figure here is theirs, so they get none
OTHER_SILICON = {"NVL", "MIG", "Ti", "D", "SUPER", "Laptop", "Max", "lite"}


def find_chip(device_kind: str) -> Chip | None:
    """The chip of a `jax.Device.device_kind`; None when there is no published figure for exactly it."""

    def matches(kind: str) -> bool:
        parts = re.split("[ -]", device_kind.removeprefix(kind))
        return device_kind.startswith(kind) and parts[0] == "" and not OTHER_SILICON & set(parts)

    candidates = [(len(kind), chip) for chip in CHIPS for kind in chip.kinds if matches(kind)]
    return max(candidates, key=lambda m: m[0])[1] if candidates else None
