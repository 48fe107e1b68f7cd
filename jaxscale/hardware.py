"""The chip table: peak FLOP/s of each device, every figure with its source. Knows nothing of jax.

All peaks are dense (not "with sparsity") and in FLOP/s of one *device* as JAX counts devices.
"""

from dataclasses import dataclass

SCALING_BOOK_TPU = "scaling book, tpus.md, and the vendor's page of this generation"
SCALING_BOOK_GPU = "scaling book, gpus.md, and the vendor's datasheet (dense)"


@dataclass(frozen=True)
class Chip:
    """One accelerator chip.

    Attributes:
        bf16_flops: dense bfloat16 FLOP/s of the chip.
        hbm_bytes: memory of the chip, in bytes.
        hbm_bandwidth: bytes/s.
        devices: how many JAX devices one chip is.
        kinds: beginnings of `jax.Device.device_kind`, longest match wins.
    """

    name: str
    bf16_flops: float
    hbm_bytes: float
    hbm_bandwidth: float
    source: str
    kinds: tuple[str, ...]
    devices: int = 1


GIB, GB = 2.0**30, 1e9
CHIPS = (
    Chip("v4", 275e12, 32 * GIB, 1.2e12, SCALING_BOOK_TPU, ("TPU v4",)),
    Chip("v5e", 197e12, 16 * GB, 819e9, SCALING_BOOK_TPU, ("TPU v5 lite", "TPU v5e")),
    Chip("v5p", 459e12, 95 * GIB, 2.765e12, SCALING_BOOK_TPU, ("TPU v5", "TPU v5p")),
    Chip("v6e", 918e12, 32 * GB, 1.638e12, SCALING_BOOK_TPU, ("TPU v6 lite", "TPU v6e")),
    Chip("tpu7x", 2307e12, 192 * GIB, 7.38e12, SCALING_BOOK_TPU, ("TPU7x", "TPU v7x"), devices=2),
    Chip("a100", 312e12, 80 * GB, 2.0e12, SCALING_BOOK_GPU, ("NVIDIA A100",)),
    Chip("h100", 989e12, 80 * GB, 3.35e12, SCALING_BOOK_GPU, ("NVIDIA H100 80GB HBM3",)),
    Chip("h200", 989e12, 141 * GB, 4.8e12, SCALING_BOOK_GPU, ("NVIDIA H200",)),
    Chip("b200", 2250e12, 192 * GB, 8.0e12, SCALING_BOOK_GPU, ("NVIDIA B200",)),
)
# Same silicon family, other clocks and memory: no figure here is theirs, so they get none.
NOT_THESE = ("NVIDIA H200 NVL",)


def find_chip(device_kind: str) -> Chip | None:
    """The chip of a `jax.Device.device_kind`; None when there is no published figure for exactly it."""
    if device_kind.startswith(NOT_THESE):
        return None
    matches = [(len(kind), chip) for chip in CHIPS for kind in chip.kinds if device_kind.startswith(kind)]
    return max(matches, key=lambda m: m[0])[1] if matches else None
