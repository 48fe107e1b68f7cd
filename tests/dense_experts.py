"""Experts written plainly, for tests to compare with: every expert on every token of one device, nothing sorted."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import Setup, make_config

from jaxscale import config as cfg
from jaxscale.models.experts import Experts
from jaxscale.objectives import make_objective
from jaxscale.parallel.sharding import on_mesh
from jaxscale.training.build import mesh_and_rules
from jaxscale.training.step import abstract_model

MOE = {"num_experts": 8, "top_k": 2, "mlp_dim": 32}
MODEL = {"num_kv_heads": 8, "num_layers": 2, "moe": MOE}
LOSS = {"balance": 0.05, "router_z": 0.02}
# experts over expert and tensor, each expert's mlp whole
CUBE = {"fsdp": 2, "expert": 2, "tensor": 2}
FOLDED = {
    "parameters": {"experts": ["expert", "tensor"], "expert_mlp": None},
    "activations": {"experts": ["expert", "tensor"], "expert_mlp": None},
}


def moe_config(mesh: dict | None = None, moe: dict | None = None, **sections) -> cfg.Config:
    """A tiny decoder with 8 experts of which each token goes to two; batch 16, so that it divides over 8 devices."""
    model = MODEL | sections.pop("model", {}) | {"moe": MOE | (moe or {})}
    return make_config(mesh, model=model, data={"batch_size": 16} | sections.pop("data", {}), **sections)


# --- the reference ----------------------------------------------------------------------------------------------


def ranks(scores: jax.Array) -> jax.Array:
    """Each element's place among those of the last dim: 0 the largest; of equal ones the first."""
    one, other = scores[..., :, None], scores[..., None, :]
    before = jnp.tri(scores.shape[-1], k=-1, dtype=bool)
    return ((other > one) | (other == one) & before).sum(-1)


def chosen(scores: jax.Array, moe: cfg.Moe, bias: jax.Array | float) -> jax.Array:
    """Whether a token goes to an expert: [..., E]."""
    wanted = scores + bias
    if moe.groups > 1:
        groups = wanted.reshape(*wanted.shape[:-1], moe.groups, -1)
        best = jnp.where(ranks(groups) < 2, groups, 0).sum(-1)
        keep = ranks(best) < moe.top_groups
        wanted = jnp.where(keep[..., None], groups, -jnp.inf).reshape(wanted.shape)
    return ranks(wanted) < moe.top_k


def dense_experts(x: jax.Array, w: dict, moe: cfg.Moe, counted: jax.Array) -> tuple[jax.Array, dict]:
    """Output of all experts, each times its weight, which is 0 for those not chosen; and the router's sums."""
    logits = jnp.einsum("btd,de->bte", x, w["router"]) + w.get("router_bias", 0)
    scores = jax.nn.softmax(logits) if moe.score == "softmax" else jax.nn.sigmoid(logits)
    here = chosen(scores, moe, w.get("balance_bias", 0))
    weights = jnp.where(here, scores, 0)
    if moe.normalize:
        weights = weights / weights.sum(-1, keepdims=True)
    gate, up = (jnp.einsum("btd,edm->btem", x, w[f"expert_{name}"]) for name in ("gate", "up"))
    y = jnp.einsum("btem,emd,bte->btd", jax.nn.silu(gate) * up, w["expert_down"], weights * moe.scale)
    p = scores / scores.sum(-1, keepdims=True)
    each = counted[..., None]
    sums = {
        "router_counts": (here * each).sum((0, 1)),
        "router_probabilities": (p * each).sum((0, 1)),
        "router_z": (jax.nn.logsumexp(logits, -1) ** 2 * counted).sum(),
        "router_entropy": (jax.scipy.special.entr(p) * each).sum(),
    }
    return y, sums


def dense_call(self: Experts, x: jax.Array, counted: jax.Array | None) -> tuple[jax.Array, dict]:
    """In place of `Experts.__call__` on one device."""
    names = ("router", "router_bias", "balance_bias", "expert_gate", "expert_up", "expert_down")
    weights = {name: getattr(self, name)[...] for name in names if hasattr(self, name)}
    return dense_experts(x, weights, self.moe, jnp.ones(x.shape[:2]) if counted is None else counted)


# --- one layer --------------------------------------------------------------------------------------------------


def layer_inputs(config: cfg.Config, *, seed: int = 0, std: float = 0.3) -> dict:
    """Parameters, tokens, what they count and the output's gradient, on the host."""
    rng, moe, D = np.random.default_rng(seed), config.model.moe, config.model.embed_dim
    assert moe is not None
    E, M, shape = moe.num_experts, moe.mlp_dim, (config.data.batch_size, config.data.seq_len)
    sizes = {"router": (D, E), "expert_gate": (E, D, M), "expert_up": (E, D, M), "expert_down": (E, M, D)}
    sizes |= {"router_bias": (E,)} if moe.linear_bias else {}
    sizes |= {"balance_bias": (E,)} if moe.bias else {}
    return {
        "params": {name: (std * rng.standard_normal(size)).astype(np.float32) for name, size in sizes.items()},
        "x": rng.standard_normal((*shape, D)).astype(np.float32),
        "counted": (rng.random(shape) > 0.2).astype(np.float32),
        "gradient": rng.standard_normal((*shape, D)).astype(np.float32),
    }


def objective_of(y: jax.Array, sums: dict, gradient: jax.Array) -> jax.Array:
    """A scalar with a gradient through everything that a layer gives."""
    squares = (sums["router_probabilities"] ** 2).sum()
    return (y * gradient).sum() + 1e-2 * squares + 1e-2 * sums["router_z"]


def layer_on_mesh(config: cfg.Config, inputs: dict) -> tuple[jax.Array, dict, dict]:
    """Output, sums and the gradients of x and of all parameters, on the config's mesh."""
    count = int(np.prod(list(config.mesh.sizes(None).values())))
    mesh, rules = mesh_and_rules(config, jax.devices()[:count])
    with on_mesh(mesh, rules):
        shapes, _, merge = abstract_model(lambda rngs: Experts(config.model, config.step, rngs))
        between = rules.activations["batch"], rules.activations["residual_sequence"]
        spec = jax.P(*(tuple(a for a in axes if a in mesh.axis_names) or None for axes in between))
        put = lambda x, spec: jax.device_put(x, jax.NamedSharding(mesh, spec))  # noqa: E731
        params = {name: put(inputs["params"][name], shape.sharding.spec) for name, shape in shapes.items()}
        x, counted, gradient = (put(inputs[name], spec) for name in ("x", "counted", "gradient"))

        def objective(params, x):
            y, sums = merge(params)(x, counted)
            return objective_of(y, sums, gradient), (y, sums)

        grads, (y, sums) = jax.jit(jax.grad(objective, (0, 1), has_aux=True))(params, x)
        return jax.device_get((y, sums, {**grads[0], "x": grads[1]}))


def layer_dense(config: cfg.Config, inputs: dict) -> tuple[jax.Array, dict, dict]:
    """The same of the reference."""

    def objective(params, x):
        y, sums = dense_experts(x, params, config.model.moe, inputs["counted"])
        return objective_of(y, sums, inputs["gradient"]), (y, sums)

    grads, (y, sums) = jax.jit(jax.grad(objective, (0, 1), has_aux=True))(inputs["params"], inputs["x"])
    return jax.device_get((y, sums, {**grads[0], "x": grads[1]}))


# --- rows that no expert has ------------------------------------------------------------------------------------


def nobodys(x_RD: jax.Array, sizes_E: jax.Array, value: float) -> jax.Array:
    return jnp.where(jnp.arange(len(x_RD))[:, None] < sizes_E.sum(), x_RD, value)


@jax.custom_vjp
def poisoned(x_RD, w_EDF, sizes_E):
    """A grouped matmul that reads no row past the sizes' sum, and leaves NaN there: forward and backward."""
    return nobodys(jax.lax.ragged_dot(nobodys(x_RD, sizes_E, 0), w_EDF, sizes_E), sizes_E, jnp.nan)


def poisoned_back(saved, gradient_RF):
    x_RD, w_EDF, sizes_E = saved
    _, back = jax.vjp(lambda x, w: jax.lax.ragged_dot(x, w, sizes_E), nobodys(x_RD, sizes_E, 0), w_EDF)
    of_x, of_w = back(nobodys(gradient_RF, sizes_E, 0))
    return nobodys(of_x, sizes_E, jnp.nan), of_w, None


poisoned.defvjp(lambda *args: (poisoned(*args), args), poisoned_back)


def poisoned_matmul(x, w, *, sizes_E, platform, transposed=False):
    """`poisoned` in place of `kernels.grouped.grouped_matmul`."""
    return poisoned(x, w.swapaxes(1, 2) if transposed else w, sizes_E)


# --- a step -----------------------------------------------------------------------------------------------------


def blank_state(setup: Setup):
    """The state before the first step, with zeros for parameters and moments; inside the setup's context."""
    abstract, key = setup.program.abstract, setup.program.abstract.rng.sharding
    zeros = jax.tree.map(lambda x: jax.device_put(np.zeros(x.shape, x.dtype), x.sharding), abstract._replace(rng=()))
    return zeros._replace(rng=jax.device_put(jax.random.key(0), key))


def first_step(config: cfg.Config, params: dict, batch: dict | None = None, bias: dict | None = None):
    """Metrics of the real step, and the gradients after clipping: Adam's first moment has them."""
    setup = Setup(config, batch=batch)
    with setup.context():
        abstract = setup.program.abstract
        state = blank_state(setup)._replace(
            params=jax.device_put(params, jax.tree.map(lambda x: x.sharding, abstract.params))
        )
        if bias:
            layout = jax.tree.map(lambda x: x.sharding, abstract.router_bias)
            state = state._replace(router_bias=jax.device_put(bias, layout))
        state, metrics = setup.program.step(state, setup.batch)
        is_adam = lambda x: isinstance(x, optax.ScaleByAdamState)  # noqa: E731
        (adam,) = [x for x in jax.tree.leaves(state.opt_state, is_leaf=is_adam) if is_adam(x)]
        grads = jax.tree.map(lambda m: m / (1 - config.optimizer.b1), adam.mu)
        return jax.device_get((metrics, grads, state))


def dense_step(config: cfg.Config, params: dict, batch: dict) -> tuple[dict, dict]:
    """The same of the reference on one device, its losses and its clipping written out."""
    plain = config.model_copy(update={"loss": cfg.Loss()})
    objective, setup, n = make_objective(plain), Setup(plain, batch=batch), batch["weights"].sum()
    moe, weights = config.model.moe, config.loss

    def loss(params, columns):
        sums = objective.sums(setup.program.merge(params), columns, divisor=n)
        load, p = sums["router_counts"] / n, sums["router_probabilities"] / n  # [L, E]
        balance = (moe.num_experts / moe.top_k * (jax.lax.stop_gradient(load) * p).sum(-1)).mean()
        z = sums["router_z"].mean() / n
        cross_entropy = sums["cross_entropy"] / n
        total = cross_entropy + weights.z_loss * sums["z"] / n + weights.balance * balance + weights.router_z * z
        metrics = {"loss": cross_entropy, "balance": balance, "router_z": z, "router_counts": sums["router_counts"]}
        return total, metrics

    with pytest.MonkeyPatch.context() as patch, setup.context():
        patch.setattr(Experts, "__call__", dense_call)
        grads, metrics = jax.device_get(jax.jit(jax.grad(loss, has_aux=True))(params, columns_of(setup)))
    norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in jax.tree.leaves(grads)))
    clip = config.optimizer.clip_norm
    factor = 1.0 if clip is None else min(1.0, clip / norm)
    return metrics | {"grad_norm": norm, "tokens": n}, jax.tree.map(lambda g: g * np.float32(factor), grads)


def columns_of(setup: Setup) -> dict:
    return jax.tree.map(lambda x: x[0], setup.batch)
