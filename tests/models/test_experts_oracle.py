"""Experts against an oracle that nobody here wrote: the blocks of Hugging Face transformers on torch, in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense_experts import CUBE, layer_inputs, layer_on_mesh, moe_config
from support import assert_gradients_equal

torch = pytest.importorskip("torch", reason="torch has a CPU build for Python 3.11 only; CI runs this there")
transformers = pytest.importorskip("transformers")
torch.set_num_threads(1)

from transformers.models.deepseek_v3 import modeling_deepseek_v3 as deepseek  # noqa: E402
from transformers.models.gpt_oss import modeling_gpt_oss as gpt_oss  # noqa: E402
from transformers.models.mixtral import modeling_mixtral as mixtral  # noqa: E402
from transformers.models.qwen3_moe import modeling_qwen3_moe as qwen3  # noqa: E402

from jaxscale.models.block import Block  # noqa: E402
from jaxscale.models.experts import choose  # noqa: E402
from jaxscale.objectives.routers import balance  # noqa: E402
from jaxscale.parallel.sharding import on_mesh  # noqa: E402
from jaxscale.training.build import mesh_and_rules  # noqa: E402
from jaxscale.training.step import abstract_model  # noqa: E402

E, K, D, M = 8, 3, 32, 32
# transformers announces renamed arguments of its own; none of them is ours to mend
pytestmark = pytest.mark.filterwarnings("ignore")


def mixtral_block():
    return mixtral.MixtralSparseMoeBlock(
        transformers.MixtralConfig(
            hidden_size=D, intermediate_size=M, num_local_experts=E, num_experts_per_tok=K,
            num_attention_heads=4, num_key_value_heads=4, experts_implementation="eager",
        )
    )  # fmt: skip


def qwen3_block(normalize: bool):
    return qwen3.Qwen3MoeSparseMoeBlock(
        transformers.Qwen3MoeConfig(
            hidden_size=D, moe_intermediate_size=M, num_experts=E, num_experts_per_tok=K, norm_topk_prob=normalize,
            experts_implementation="eager",
        )
    )  # fmt: skip


def deepseek_block():
    block = deepseek.DeepseekV3MoE(
        transformers.DeepseekV3Config(
            hidden_size=D, moe_intermediate_size=M, n_routed_experts=E, num_experts_per_tok=K, n_group=4, topk_group=2,
            n_shared_experts=2, norm_topk_prob=True, routed_scaling_factor=2.5, experts_implementation="eager",
        )
    )  # fmt: skip
    block.gate.e_score_correction_bias.copy_(torch.from_numpy(BIAS))
    return block


BIAS = np.random.default_rng(5).normal(scale=0.3, size=E).astype(np.float32)
DEEPSEEK = {"score": "sigmoid", "groups": 4, "top_groups": 2, "bias": True, "scale": 2.5}
BLOCKS = {
    "mixtral": (mixtral_block, {}),
    "qwen3, normalized": (lambda: qwen3_block(True), {}),
    "qwen3, not normalized": (lambda: qwen3_block(False), {"normalize": False}),
    "deepseek-v3": (deepseek_block, DEEPSEEK),
}


def with_weights(block, params: dict):
    """The block with our parameters."""
    gate_up = np.concatenate([params["expert_gate"], params["expert_up"]], -1).swapaxes(1, 2)
    theirs = {"gate.weight": params["router"].T, "experts.gate_up_proj": gate_up}
    theirs["experts.down_proj"] = params["expert_down"].swapaxes(1, 2)
    with torch.no_grad():
        for name, parameter in block.named_parameters():
            if name in theirs:
                parameter.copy_(torch.from_numpy(np.ascontiguousarray(theirs[name])))
            else:
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
    return block.float().train()


def gradients_of(block) -> dict:
    gate, up = block.experts.gate_up_proj.grad.numpy().swapaxes(1, 2).copy().reshape(E, D, 2, M).transpose(2, 0, 1, 3)
    down = block.experts.down_proj.grad.numpy().swapaxes(1, 2)
    return {"router": block.gate.weight.grad.numpy().T, "expert_gate": gate, "expert_up": up, "expert_down": down}


@pytest.mark.parametrize("mesh", [{"data": 1}, CUBE], ids=str)
@pytest.mark.parametrize(("make", "moe"), BLOCKS.values(), ids=BLOCKS)
def test_outputs_and_gradients_of_a_block(make, moe, mesh):
    """Of the routed experts; what shared experts give, and send back, is taken off theirs."""
    config = moe_config(mesh, {"top_k": K} | moe)
    inputs = layer_inputs(config)
    inputs["counted"] = np.zeros_like(inputs["counted"])
    if "bias" in moe:
        inputs["params"]["balance_bias"] = BIAS
    y, _, grads = layer_on_mesh(config, inputs)
    block, x = with_weights(make(), inputs["params"]), torch.from_numpy(inputs["x"]).requires_grad_()
    wanted = block(x)
    wanted.backward(torch.from_numpy(inputs["gradient"]))
    wanted_grads = gradients_of(block) | {"x": x.grad.numpy().copy()}
    if hasattr(block, "shared_experts"):
        x.grad = None
        shared = block.shared_experts(x)
        shared.backward(torch.from_numpy(inputs["gradient"]))
        wanted, wanted_grads["x"] = wanted - shared, wanted_grads["x"] - x.grad.numpy()
        assert not grads.pop("balance_bias").any()
    wanted = wanted.detach().numpy()
    np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())
    assert_gradients_equal(grads, wanted_grads)


def test_experts_that_all_tokens_go_to():
    """Our block adds them, unweighted, to the routed ones."""
    moe = DEEPSEEK | {"top_k": K, "shared_mlp_dim": 2 * M}
    config = moe_config(moe=moe)
    inputs = layer_inputs(config)
    inputs["params"]["balance_bias"] = BIAS
    theirs, x = with_weights(deepseek_block(), inputs["params"]), inputs["x"]
    shared = {n: getattr(theirs.shared_experts, f"{n}_proj").weight.detach().numpy().T for n in ("gate", "up", "down")}
    setup = mesh_and_rules(config, jax.devices()[:1])
    with on_mesh(*setup):
        shapes, _, merge = abstract_model(lambda rngs: Block(config.model, config.step, rngs, experts=True))
        params = jax.tree.map(lambda s: jnp.zeros(s.shape), shapes) | {"mlp": inputs["params"], "shared": shared}
        y = jax.jit(lambda params, x: merge(params).feed_forward(x, None)[0])(params, jnp.asarray(x))
    wanted = theirs(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())


def test_the_router_of_gpt_oss():
    """Softmax over the chosen logits is softmax over all, with weights that sum to 1."""
    config = moe_config(moe={"top_k": K, "linear_bias": True})
    inputs = layer_inputs(config)
    router = gpt_oss.GptOssTopKRouter(
        transformers.GptOssConfig(hidden_size=D, num_local_experts=E, num_experts_per_tok=K)
    )
    with torch.no_grad():
        router.weight.copy_(torch.from_numpy(inputs["params"]["router"].T))
        router.bias.copy_(torch.from_numpy(inputs["params"]["router_bias"]))
    _, wanted, wanted_index = router(torch.from_numpy(inputs["x"]).reshape(-1, D))
    coefficients = np.random.default_rng(3).standard_normal(wanted.shape).astype(np.float32)
    (wanted * torch.from_numpy(coefficients)).sum().backward()

    def weights(w, b):
        _, weights, index = choose(inputs["x"].reshape(-1, D) @ w + b, config.model.moe, jnp.zeros(E))
        return (weights * coefficients).sum(), (weights, index)

    both = jax.grad(weights, (0, 1), has_aux=True)(inputs["params"]["router"], inputs["params"]["router_bias"])
    (of_w, of_b), (got, index) = both
    np.testing.assert_array_equal(index, wanted_index.numpy())
    np.testing.assert_allclose(got, wanted.detach().numpy(), rtol=1e-5, atol=1e-6)
    assert_gradients_equal(
        {"w": np.asarray(of_w), "b": np.asarray(of_b)},
        {"w": router.weight.grad.numpy().T, "b": router.bias.grad.numpy()},
    )


@pytest.mark.parametrize("padded", [False, True])
def test_the_auxiliary_loss(padded):
    """Theirs pools counts and probabilities over layers before it multiplies, and does not divide by k.

    So of one layer it is k times ours. Of several, it is k times ours of the means over layers.
    """
    rng = np.random.default_rng(0)
    L, N = 3, 40
    logits = rng.standard_normal((L, N, E)).astype(np.float32)
    mask = (rng.random(N) > 0.3 * padded).astype(np.float32)
    load, probability = np.zeros((L, E), np.float32), np.zeros((L, E), np.float32)
    for i in range(L):
        p, _, index = choose(jnp.asarray(logits[i]), moe_config(moe={"top_k": K}).model.moe, jnp.zeros(E))
        chosen = (np.asarray(index)[..., None] == np.arange(E)).any(1)
        load[i], probability[i] = ((a * mask[:, None]).sum(0) / mask.sum() for a in (chosen, np.asarray(p)))

    def theirs(logits):
        attention = torch.from_numpy(mask)[None] if padded else None
        return mixtral.load_balancing_loss_func(tuple(map(torch.from_numpy, logits)), E, K, attention).item()

    for i in range(L):
        np.testing.assert_allclose(
            theirs(logits[i : i + 1]), K * balance(load[i : i + 1], probability[i : i + 1]), rtol=1e-5
        )
    pooled = balance(load.mean(0, keepdims=True), probability.mean(0, keepdims=True))
    np.testing.assert_allclose(theirs(logits), K * pooled, rtol=1e-5)
    assert abs(pooled - balance(load, probability)) > 1e-3
