"""Every attention kernel that this device has: speed, memory, and how far it is from the reference.

FLOPs are causal: 4 * T/2 * N * H a token forward, 2.5 times that backward where a kernel makes the scores again
(FlashAttention-2, arXiv:2307.08691); every kernel is credited with the same. The reference is the plain softmax over
the whole square, in float32.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxscale.bench.clock import Effort, device_seconds, time_calls
from jaxscale.bench.record import Figure, Label, Row, measured
from jaxscale.models import attention as kernels

RUN = {
    "xla": kernels.xla_attention,
    "cudnn": kernels.cudnn_attention,
    "splash": kernels.splash_attention,
}


LONGEST = 2048  # tokens over which the error is taken: the reference holds the whole square
CONVENTION = (
    "attention FLOPs causal: 2 T N H a token forward, 3.5 times that forward and backward (scores made again), "
    "whatever the kernel does"
)


@dataclass(frozen=True)
class Case:
    """Sizes of one call: B rows of T tokens, N query heads over K kv heads of H."""

    batch: int
    seq_len: int
    heads: int
    kv_heads: int
    head_dim: int
    dtype: str = "bfloat16"

    @property
    def forward_flops(self) -> float:
        return 4.0 * self.batch * self.seq_len * self.seq_len / 2 * self.heads * self.head_dim


def available(case: Case, platform: str) -> dict[str, str | None]:
    """Kernel -> None, or why it cannot compute this here."""
    how, shape = kernels.Attention(), (case.batch, case.seq_len, case.heads, case.head_dim)
    return {
        "xla": None,
        "cudnn": kernels.cudnn_problem(how, jnp.dtype(case.dtype), shape, platform),
        "splash": kernels.splash_problem(shape, platform),
    }


def operands(case: Case) -> tuple[jax.Array, ...]:
    """q, k, v and the cotangent of the context, normal."""
    B, T, N, K, H = case.batch, case.seq_len, case.heads, case.kv_heads, case.head_dim
    shapes = ((B, T, N, H), (B, T, K, H), (B, T, K, H), (B, T, N, H))
    return tuple(jax.random.normal(jax.random.key(i), s, case.dtype) for i, s in enumerate(shapes))


def forward(kernel: str) -> Callable[..., jax.Array]:
    return functools.partial(RUN[kernel], segments_BT=None, how=kernels.Attention())


def both(run: Callable[..., jax.Array]) -> Callable[..., Any]:
    """(context, (dq, dk, dv)) from q, k, v and the context's cotangent."""

    def gradients(q, k, v, cotangent):
        out, backward = jax.vjp(run, q, k, v)
        return out, backward(cotangent)

    return gradients


def reference(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """softmax(q k^T / sqrt(H)) v in float32, over the whole square."""
    q, k, v = (x.astype(jnp.float32) for x in (q, k, v))
    T, groups = q.shape[1], q.shape[2] // k.shape[2]
    k, v = (jnp.repeat(x, groups, axis=2) for x in (k, v))
    scores = jnp.einsum("btnh,bsnh->bnts", q, k, precision="highest") * q.shape[-1] ** -0.5
    scores = jnp.where(jnp.tril(jnp.ones((T, T), bool)), scores, -jnp.inf)
    return jnp.einsum("bnts,bsnh->btnh", jax.nn.softmax(scores, axis=-1), v, precision="highest")


def largest_error(case: Case, kernel: str, longest: int = LONGEST) -> tuple[float, float]:
    """Largest difference to the reference, of the context and of any gradient, on the first rows and tokens."""
    small = Case(1, min(case.seq_len, longest), case.heads, case.kv_heads, case.head_dim, case.dtype)
    args = operands(small)
    mine = jax.jit(both(forward(kernel)))(*args)
    theirs = jax.jit(both(reference))(*(x.astype(jnp.float32) for x in args))
    errors = jax.tree.map(lambda a, b: float(jnp.abs(a.astype(jnp.float32) - b).max()), mine, theirs)
    return errors[0], max(errors[1])


def measure(cases: list[Case], device: jax.Device, peak: float | None, effort: Effort) -> Iterator[Row]:
    """Rows of forward, and of forward and backward, for each kernel and case; a kernel that cannot says why."""
    for case in cases:
        for kernel, problem in available(case, device.platform).items():
            labels: dict[str, Label] = {
                "kernel": kernel,
                "seq_len": case.seq_len,
                "batch": case.batch,
                "heads": case.heads,
                "kv_heads": case.kv_heads,
                "head_dim": case.head_dim,
                "dtype": case.dtype,
            }
            if problem:
                yield Row(labels=labels, error=problem)
                continue
            try:
                yield from rows_of(case, kernel, labels, device, peak, effort)
            except (jax.errors.JaxRuntimeError, MemoryError) as error:  # the other rows are still wanted
                yield Row(labels=labels, error=" ".join(str(error).split())[:300])


def rows_of(
    case: Case, kernel: str, labels: dict[str, Label], device: jax.Device, peak: float | None, effort: Effort
) -> Iterator[Row]:
    with jax.default_device(device):
        args = operands(case)
        errors = largest_error(case, kernel)
        one, two = forward(kernel), both(forward(kernel))
        passes = {"forward": (one, args[:3], 1.0), "forward and backward": (two, args, 3.5)}
        for error, (name, (function, inputs, share)) in zip(errors, passes.items(), strict=True):
            compiled = jax.jit(function).lower(*inputs).compile()
            once = functools.partial(call, compiled, inputs)
            seconds = time_calls(once, effort)
            flops = share * case.forward_flops
            figures = {
                "flops_per_second": measured([flops / s for s in seconds], "FLOP/s"),
                "seconds": measured(seconds, "s"),
                "max_error": Figure(value=error, unit="absolute"),
                "max_error_tokens": Figure(value=min(case.seq_len, LONGEST), unit="tokens"),
            }
            if memory := compiled.memory_analysis():
                temporary = memory.temp_size_in_bytes
                whole = temporary + memory.argument_size_in_bytes + memory.output_size_in_bytes
                figures["temporary_bytes"] = Figure(value=temporary, unit="bytes", basis="compiled")
                figures["peak_memory_bytes"] = Figure(value=whole, unit="bytes", basis="compiled")
            if device_time := device_seconds(once):
                figures["device_clock_seconds"] = Figure(value=device_time, unit="s")
            if peak:
                figures["share_of_peak"] = measured([flops / s / peak for s in seconds], "share")
            yield Row(labels=labels | {"pass": name}, figures=figures)


def call(compiled: Any, inputs: tuple[jax.Array, ...], number: int) -> Any:
    return compiled(*inputs)
