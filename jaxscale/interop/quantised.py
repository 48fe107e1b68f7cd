"""Quantised tensors of published files, as numbers: MXFP4 (gpt-oss) and FP8 in blocks (DeepSeek-V3).

MXFP4 (OCP Microscaling Formats, 1.0): 32 numbers share a scale, a power of two in a byte (E8M0: 2^(byte - 127), and 255
is no number). Each number is 4 bits (E2M1), two of them a byte, the lower half first. FP8: each block of a matrix has a
scale in float32. Nothing is written so.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from jaxscale.interop.tensors import FLOATS, Place

BLOCK = 32  # numbers of one scale
BYTES = BLOCK // 2  # that they take
SIDE = 128  # of a block of FP8
OF_FP8 = "_scale_inv"  # ends the name of the scales, which multiply
HALVES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
VALUES = np.concatenate([HALVES, -HALVES])  # by their 4 bits
PAIRS = np.stack([VALUES[np.arange(256) & 15], VALUES[np.arange(256) >> 4]], axis=-1)  # by a byte
SCALES = np.append(np.ldexp(np.float32(1), np.arange(255) - 127), np.nan).astype(np.float32)  # by a byte


@dataclass(frozen=True)
class Packed:
    """A tensor [E, in, out] in MXFP4: `blocks` [E, out, in / 32, 16] and `scales` [E, out, in / 32], bytes."""

    blocks: Place
    scales: Place

    @property
    def shape(self) -> tuple[int, ...]:
        experts, out, groups, _ = self.blocks.shape
        return experts, groups * BLOCK, out

    def read(self, experts: slice = slice(None)) -> np.ndarray:
        """Those of these experts, float32: exact, as bfloat16 would be."""
        numbers = PAIRS[self.blocks.read()[experts]] * SCALES[self.scales.read()[experts]][..., None, None]
        return numbers.reshape(*numbers.shape[:2], -1).swapaxes(1, 2)


@dataclass(frozen=True)
class Scaled:
    """A matrix [out, in] in FP8: `numbers`, and a scale for each block of 128 x 128."""

    numbers: Place
    scales: Place

    @property
    def shape(self) -> tuple[int, ...]:
        return self.numbers.shape

    def read(self) -> np.ndarray:
        """All of it, float32."""
        numbers = np.asarray(self.numbers.read(), np.float32)
        for i, row in enumerate(np.asarray(self.scales.read(), np.float32)):
            band = slice(i * SIDE, (i + 1) * SIDE)
            numbers[band] *= np.repeat(row, SIDE)[: numbers.shape[1]]
        return numbers


Tensor = Place | Packed | Scaled


def joined(places: Mapping[str, Place]) -> dict[str, Tensor]:
    """Quantised tensors put together with their scales, by the name that they have otherwise.

    Raises ValueError for scales that do not fit, and for numbers of a kind that is not read.
    """
    names = dict[str, Tensor](places)
    for name in places:
        if name.endswith("_blocks") and (scales := f"{name.removesuffix('_blocks')}_scales") in places:
            names[name.removesuffix("_blocks")] = packed(name, names.pop(name), names.pop(scales))  # type: ignore[arg-type]
        elif (scales := f"{name}{OF_FP8}") in places:
            names[name] = scaled(name, places[name], names.pop(scales))  # type: ignore[arg-type]
    for name, tensor in names.items():
        if isinstance(tensor, Place) and tensor.dtype not in map(np.dtype, FLOATS.values()):
            raise ValueError(f"{name} is {tensor.dtype} without scales; weights are {', '.join(FLOATS)}, MXFP4 or FP8")
    return names


def packed(name: str, blocks: Place, scales: Place) -> Packed:
    bytes_ = blocks.dtype == scales.dtype == np.uint8
    if not bytes_ or len(blocks.shape) != 4 or blocks.shape != (*scales.shape, BYTES):
        raise ValueError(
            f"{name} is {list(blocks.shape)} with scales {list(scales.shape)}; "
            f"MXFP4 is [E, N, G, {BYTES}] with [E, N, G]"
        )
    return Packed(blocks, scales)


def scaled(name: str, numbers: Place, scales: Place) -> Scaled:
    wanted = tuple(-(-n // SIDE) for n in numbers.shape)
    kinds = numbers.dtype == np.dtype(ml_dtypes.float8_e4m3fn) and scales.dtype in map(np.dtype, FLOATS.values())
    if not kinds or len(wanted) != 2 or scales.shape != wanted:
        raise ValueError(
            f"{name} is {numbers.dtype}{list(numbers.shape)} with scales {list(scales.shape)}; "
            f"FP8 has a scale for each {SIDE} x {SIDE}, {list(wanted)}"
        )
    return Scaled(numbers, scales)
