"""A dropless mixture of experts: a router, and SwiGLUs of which each token goes to `top_k`.

Dims: B batch, T sequence, D embed, E experts, K experts of a token, M mlp of an expert; S tokens of a device, R rows
that its experts have place for.

Router and choice are made of tokens where they lie between matmuls. What is ragged is in one program of each device
(`dispatch`); the experts' weights are gathered before it, as any matmul's are. A row is multiplied by its weight before
the last matmul: so the way back is a plain sum, and no backward pass needs the experts' outputs.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from jaxscale import config as cfg
from jaxscale.blueprint.cases import without
from jaxscale.blueprint.experts import way
from jaxscale.kernels.grouped import grouped_matmul
from jaxscale.models.dispatch import Way, numbers_to_experts, route, to_experts, to_tokens
from jaxscale.models.layers import Maker
from jaxscale.models.sums import take
from jaxscale.parallel.local import on_each_device
from jaxscale.parallel.sharding import (
    axes_of,
    current_mesh,
    dims_of,
    einsum,
    move,
    platform,
    shard,
    shard_count,
    spec,
    to_spec,
)

Sums = dict[str, jax.Array]
Axes = tuple[str, ...]


class Experts(nnx.Module):
    """Each token through the experts that its router chooses."""

    def __init__(self, model: cfg.Model, step: cfg.Step, rngs: nnx.Rngs):
        assert model.moe is not None
        self.moe, self.dtype, self.exchange = model.moe, jnp.dtype(step.compute_dtype), step.expert_exchange
        make = Maker(model, step.param_dtype, rngs)
        self.router = make("router")
        if self.moe.linear_bias:
            self.router_bias = make("router_bias")
        if self.moe.bias:
            self.balance_bias = make("balance_bias")
        self.expert_gate, self.expert_up, self.expert_down = (make(f"expert_{n}") for n in ("gate", "up", "down"))
        if self.moe.mlp_bias:
            self.expert_gate_bias, self.expert_up_bias = make("expert_gate_bias"), make("expert_up_bias")
            self.expert_down_bias = make("expert_down_bias")

    def __call__(self, x_BTD: jax.Array, counted: jax.Array | None) -> tuple[jax.Array, Sums]:
        """The experts' output in the layout of x, and sums over tokens for the log and for losses.

        Args:
            counted: [B, T] what each token counts in the sums; None: 1.
        """
        chosen, sums = self.choose(self.scores(x_BTD), counted)
        return self.multiply(x_BTD, *chosen), sums

    def scores(self, x_BTD: jax.Array) -> jax.Array:
        """Logits of the router in float32."""
        # x[B, T_tensor, D] · w[D_fsdp, E] -> logits[B, T_tensor, E]   gather w over fsdp
        router = self.router[...].astype(jnp.float32)
        out = ("batch", "residual_sequence", "router")
        logits = einsum("btd,dr->btr", x_BTD.astype(jnp.float32), router, out=out, name="router")
        if self.moe.linear_bias:
            logits = logits + self.router_bias[...].astype(jnp.float32)
        named: jax.Array = checkpoint_name(logits, "router_logits")
        return named

    def choose(self, logits_BTE: jax.Array, counted: jax.Array | None) -> tuple[tuple[jax.Array, jax.Array], Sums]:
        """Each token's experts, their numbers and weights [B, T, K], and the sums.

        On each device, because outside of its program the partitioner gathers the scores of all tokens for a top-k.
        """
        if counted is None:
            counted = jnp.ones(logits_BTE.shape[:2], out_sharding=spec("batch", "residual_sequence"))
        counted = shard(counted, "batch", "residual_sequence")
        bias = self.balance_bias[...] if self.moe.bias else jnp.zeros(self.moe.num_experts)
        here, whole = to_spec(dims_of(logits_BTE)), PartitionSpec()
        tokens = tuple(axis for dim in dims_of(logits_BTE) for axis in dim)

        def local(logits: jax.Array, counted: jax.Array, bias: jax.Array) -> tuple[jax.Array, ...]:
            probabilities, weights, index = choose(logits, self.moe, bias)
            sums = token_sums(logits, probabilities, index, counted)
            return index, weights, *lax.psum(sums, tokens)

        run = on_each_device(local, (here, to_spec(dims_of(counted)), whole), (here, here, *[whole] * len(SUMS)))
        with jax.named_scope("choose_experts"):
            index, weights, *sums = run(logits_BTE, counted, bias)
            return (index, weights), dict(zip(SUMS, sums, strict=True))

    def multiply(self, x_BTD: jax.Array, index_BTK: jax.Array, weights_BTK: jax.Array) -> jax.Array:
        """For each token the weighted sum of its experts' outputs."""
        experts, split = axes_of("experts"), axes_of("expert_mlp")
        sequence = without(axes_of("residual_sequence"), split)
        # x[B, T_tensor, D] -> x[B, T, D]   gather over tensor, as each device has a part of every expert's mlp
        layout: list[Axes] = [axes_of("batch"), sequence, ()]
        with jax.named_scope("gather_for_experts"):
            x_BTD, weights_BTK = (move(a, layout, set(split)) for a in (x_BTD.astype(self.dtype), weights_BTK))
            index_BTK = jax.reshard(index_BTK, to_spec(layout))
        over = {a for dim in layout for a in dim} - {*experts, *split}
        if current_mesh().size == 1:
            over = set()  # jax lowers no marks where a device's program is the whole
        # w[E_expert, D_fsdp, M_tensor] -> w[E_expert, D, M_tensor]   gather over fsdp
        up = [self.weight(name, [experts, (), split], over) for name in ("expert_gate", "expert_up")]
        turned = bool(dims_of(self.expert_down[...])[2])  # by its device's part: gathered so, it needs no turned copy
        down = self.weight("expert_down", [experts, *([(), split] if turned else [split, ()])], over, turned=turned)
        operands = (x_BTD, weights_BTK, index_BTK, *up, down)
        if self.moe.mlp_bias:
            layouts = {"expert_gate_bias": [experts, split], "expert_up_bias": [experts, split]}
            layouts |= {"expert_down_bias": [experts, ()]}
            operands += tuple(self.weight(name, dims, over) for name, dims in layouts.items())
        body = _Local(self.moe, self.exchange, experts, split, platform(), shard_count("experts"), turned)
        run = on_each_device(
            body, [jax.typeof(a).sharding.spec for a in operands], to_spec(layout, unreduced=set(split))
        )
        with jax.named_scope("experts"):
            # y[B, T, D] -> y[B, T_tensor, D]   reduce-scatter over tensor
            y_BTD: jax.Array = jax.reshard(run(*operands), spec("batch", "residual_sequence", "embed"))
        named: jax.Array = checkpoint_name(y_BTD, "mlp_out")
        return named

    def weight(self, name: str, dims: list[Axes], over: set[str], *, turned: bool = False) -> jax.Array:
        """A weight where it is multiplied; `turned`: with its last two dims exchanged."""
        with jax.named_scope(name):
            w = getattr(self, name)[...].astype(self.dtype)
            return move(w.swapaxes(1, 2) if turned else w, dims, over)


# --- what one device does -------------------------------------------------------------------------------------

SUMS = ("router_counts", "router_probabilities", "router_z", "router_entropy")


def sums_of(moe: cfg.Moe) -> dict[str, tuple[int, ...]]:
    """Names and shapes of what a layer sums up over tokens: `token_sums`."""
    return dict(zip(SUMS, ((moe.num_experts,), (moe.num_experts,), (), ()), strict=True))


def choose(logits: jax.Array, moe: cfg.Moe, bias_E: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Probabilities [..., E] that sum to 1, and of the chosen experts weights and numbers [..., K].

    The bias has a say in the choice alone (arXiv:2408.15664). A group is as good as its two best experts
    (DeepSeek-V3, arXiv:2412.19437, 2.1.2). Of equal scores the first wins.

    Args:
        logits: [..., E] float32; `bias_E`: zeros where there is none.
    """
    scores = jax.nn.softmax(logits, -1) if moe.score == "softmax" else jax.nn.sigmoid(logits)
    choice = lax.stop_gradient(scores) + lax.stop_gradient(bias_E)
    if moe.groups > 1:
        grouped = choice.reshape(*choice.shape[:-1], moe.groups, -1)
        best = lax.top_k(grouped, min(2, grouped.shape[-1]))[0].sum(-1)
        wanted = lax.top_k(best, moe.top_groups)[1]
        keep = (wanted[..., None] == jnp.arange(moe.groups)).any(-2)
        choice = jnp.where(keep[..., None], grouped, -jnp.inf).reshape(choice.shape)
    index = lax.top_k(choice, moe.top_k)[1]
    # compared and added up, as the transpose of an indexing is a scatter
    weights = jnp.where(index[..., None] == jnp.arange(moe.num_experts), scores[..., None, :], 0).sum(-1)
    if moe.normalize:
        weights = weights / (weights.sum(-1, keepdims=True) + (1e-20 if moe.score == "sigmoid" else 0))
    probabilities = scores if moe.score == "softmax" else scores / (scores.sum(-1, keepdims=True) + 1e-20)
    return probabilities, weights * moe.scale, index


def token_sums(
    logits: jax.Array, probabilities: jax.Array, index: jax.Array, counted: jax.Array
) -> tuple[jax.Array, ...]:
    """By `SUMS`: how often each expert is chosen, its probability, log(Z)^2 and the entropy in nats, over tokens."""
    chosen = (index[..., None] == jnp.arange(logits.shape[-1])).any(-2)
    each = counted[..., None]
    z = jnp.square(jax.nn.logsumexp(logits, -1))
    entropy = -(probabilities * jnp.log(jnp.maximum(probabilities, 1e-30))).sum(-1)
    counts, sums = (chosen * each).sum((0, 1)), (probabilities * each).sum((0, 1))
    return counts, sums, (z * counted).sum(), lax.stop_gradient((entropy * counted).sum())


@dataclass(frozen=True)
class _Local:
    """The tokens of one device through the experts, wherever they are."""

    moe: cfg.Moe
    exchange: str
    experts: Axes
    split: Axes  # of the experts' mlp: outputs are partial sums over it
    platform: str
    shards: int
    turned: bool  # the last matrices are [E, D, M]

    def __call__(self, *operands: jax.Array) -> jax.Array:
        """Of x [B, T, D], weights and numbers of experts [B, T, K], matrices, and biases where there are some."""
        x_BTD, weights, index, gate, up, down, *biases = _alike(*operands)
        B, T, D = x_BTD.shape
        how = way(self.exchange, self.shards, self.moe.top_k)
        there = Way(how, self.experts, self.platform, self.shards, self.moe.num_experts, B * T, self.moe.top_k)
        with jax.named_scope("dispatch"):
            path = route(index.reshape(B * T, -1), there)
            rows = checkpoint_name(to_experts(x_BTD.reshape(B * T, D), there, path), "expert_in")
            weight_R = numbers_to_experts(weights.reshape(B * T, -1), there, path)
        multiply = partial(grouped_matmul, sizes_E=path.sizes, platform=self.platform)
        owners = owners_of_rows(path.sizes, len(rows))
        of_rows = [bias_of_rows(bias, owners) for bias in biases]
        gate_RM, up_RM = (
            checkpoint_name(multiply(rows, w), f"expert_{name}") for name, w in (("gate", gate), ("up", up))
        )
        if of_rows:
            gate_RM, up_RM = gate_RM + of_rows[0], up_RM + of_rows[1]
        h = gated(gate_RM, up_RM, self.moe.limit)
        h = (h.astype(jnp.float32) * weight_R[:, None]).astype(h.dtype)
        y_RD = multiply(h, down, transposed=self.turned)
        if of_rows:
            y_RD = y_RD + (self.once(of_rows[2]).astype(jnp.float32) * weight_R[:, None]).astype(y_RD.dtype)
        with jax.named_scope("combine"):
            y = to_tokens(y_RD, there, path).reshape(B, T, D)
        return lax.pcast(y, self.split, to="unreduced") if self.split else y

    def once(self, bias: jax.Array) -> jax.Array:
        """What is added to partial sums over the experts' mlp: on one device of those that hold them."""
        return bias * (lax.axis_index(self.split) == 0).astype(bias.dtype) if self.split else bias


def gated(gate: jax.Array, up: jax.Array, limit: float | None) -> jax.Array:
    """SwiGLU, or with a limit gpt-oss's (arXiv:2508.10925)."""
    if limit is None:
        return jax.nn.silu(gate) * up
    gate, up = jnp.minimum(gate, limit), jnp.clip(up, -limit, limit)
    return gate * jax.nn.sigmoid(1.702 * gate) * (up + 1)


def owners_of_rows(sizes_E: jax.Array, rows: int) -> jax.Array:
    """The expert of each row [R]; of rows that nobody owns the number of experts."""
    return (jnp.arange(rows)[:, None] >= jnp.cumsum(sizes_E)).sum(1)


def bias_of_rows(bias_EM: jax.Array, owners_R: jax.Array) -> jax.Array:
    """The bias of each row's expert [R, M]; 0 for rows that nobody owns, whose gradients may hold anything."""
    # a product of ones and zeros would keep NaN of the gradients; a lookup puts them where nobody reads
    return take(jnp.concatenate([bias_EM, jnp.zeros_like(bias_EM[:1])]), owners_R)


def _alike(*arrays: jax.Array) -> list[jax.Array]:
    """The arrays varying over the same mesh axes: a custom derivative has the type of its operand.

    The transposes of this are the sums of gradients that the operands' marks ask for.
    """
    axes = set().union(*(k.varying | k.reduced for k in (jax.typeof(a).mat for a in arrays)))

    def varying(a: jax.Array) -> jax.Array:
        if reduced := tuple(jax.typeof(a).mat.reduced):
            a = lax.pcast(a, reduced, to="varying")
        rest = tuple(axes - jax.typeof(a).mat.varying)
        return lax.pcast(a, rest, to="varying") if rest else a

    return [varying(a) for a in arrays]
