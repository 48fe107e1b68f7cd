"""The loss in chunks: its gradients beside float64, array by array, and what it keeps alive."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxscale import config as cfg
from jaxscale.models.transformer import Transformer
from jaxscale.objectives import token_sums
from jaxscale.objectives.next_token import cross_entropy_sums, with_objective
from jaxscale.objectives.token_sums import chunked_sums, keeps_gradient
from jaxscale.parallel.mesh import make_mesh
from jaxscale.parallel.sharding import on_mesh

VOCAB = 250  # padded to 256 columns


class Head:
    """The last matmul of the decoder alone."""

    head_formula, gathered, multiply, finish = (
        Transformer.head_formula, Transformer.gathered, Transformer.multiply, Transformer.finish,
    )  # fmt: skip

    def __init__(self, matrix: jax.Array):
        self.model = SimpleNamespace(
            tie_embeddings=False, logits_softcap=None, logits_scaling=1.0, padded_vocab_size=256, vocab_size=VOCAB
        )
        self.dtype, self.last_matrix = jnp.bfloat16, matrix


def inputs(D: int, rows: int = 2, T: int = 256) -> dict:
    """Numbers that bfloat16 has, with a mean: gradients of many tokens add up the same way."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: np.asarray(jnp.asarray(rng.normal(0.3, 1, shape), jnp.bfloat16), np.float64)  # noqa: E731
    return {
        "x": draw(rows, T, D), "head": draw(D, 256) * 2.0**-6,
        "targets": rng.integers(0, VOCAB, (rows, T)), "weights": (rng.random((rows, T)) > 0.1).astype(np.float64),
    }  # fmt: skip


def exact(x, head, targets, weights) -> dict[str, np.ndarray]:
    """Gradients of the mean cross entropy, in float64."""
    logits = (x @ head)[..., :VOCAB]
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    p[(*np.indices(targets.shape), targets)] -= 1
    d = np.zeros((*targets.shape, 256))
    d[..., :VOCAB] = p * weights[..., None] / weights.sum()
    return {"x": d @ head.T, "head": np.einsum("btd,btv->dv", x, d)}


def of_logits(logits, columns, divisor):
    return with_objective(cross_entropy_sums(logits, **columns, vocab_size=VOCAB), 0.0, divisor)


def ours(x, head, targets, weights, *, chunk: int | None) -> dict[str, np.ndarray]:
    with on_mesh(make_mesh(cfg.Mesh(data=1), jax.devices()[:1])):
        spec = jax.P("data")
        x = jax.device_put(jnp.asarray(x, jnp.bfloat16), spec)
        head = jax.device_put(jnp.asarray(head, jnp.float32), jax.P())
        batch = {
            "targets": jax.device_put(jnp.asarray(targets, jnp.int32), spec),
            "weights": jax.device_put(jnp.asarray(weights, jnp.float32), spec),
        }

        def objective(x, head):
            divisor = batch["weights"].sum()
            return chunked_sums(Head(head), x, batch, of_logits, chunk=chunk, divisor=divisor)["objective"]

        dx, dhead = jax.jit(jax.grad(objective, argnums=(0, 1)))(x, head)
        return {"x": np.asarray(dx, np.float64), "head": np.asarray(dhead, np.float64)}


def error(got: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize(
    ("kept", "tolerance"), [(False, 1.5), (True, 4.0)], ids=["gradients added up", "logits' gradient kept"]
)
def test_the_error_of_gradients_does_not_grow_with_the_number_of_chunks(kept, tolerance, monkeypatch):
    """What is kept is rounded to bfloat16, as a TPU's matmul does with chunks and without."""
    monkeypatch.setattr(token_sums, "keeps_gradient", lambda x, head: kept)
    values = inputs(D=16)
    wanted = exact(**values)
    whole = {name: error(g, wanted[name]) for name, g in ours(**values, chunk=None).items()}
    assert whole["head"] < 4e-3  # as bfloat16 rounds it once
    for chunks in (2, 16, 256):
        found = ours(**values, chunk=256 // chunks)
        for name, gradient in found.items():
            assert error(gradient, wanted[name]) <= tolerance * whole[name], (name, chunks)


def test_what_is_kept_follows_from_bytes(monkeypatch):
    monkeypatch.setattr(token_sums, "platform", lambda: "tpu")
    with on_mesh(make_mesh(cfg.Mesh(data=1), jax.devices()[:1])):
        few, many = jnp.zeros((1, 16, 32)), jnp.zeros((4, 16, 32))
        head = jnp.zeros((32, 256))
        assert keeps_gradient(few, head)
        assert not keeps_gradient(many, head)
        monkeypatch.setattr(token_sums, "platform", lambda: "cpu")
        assert not keeps_gradient(few, head)
