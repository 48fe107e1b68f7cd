"""What a step should cost, by arithmetic alone: parameters and FLOPs. No jax here: it answers at once."""

from jaxscale import config as cfg

CONVENTIONS = {
    "causal": "matmuls 6 FLOPs a parameter and token, attention over the tokens that the causal mask shows",
    "palm": "matmuls 6 FLOPs a parameter and token, attention over the whole sequence (PaLM, arXiv:2204.02311, app. B)",
}


def parameter_counts(model: cfg.Model) -> dict[str, int]:
    """Parameters by part, without the padding of the vocabulary; their sum is the published size."""
    L, D, F = model.num_layers, model.embed_dim, model.mlp_dim
    N, K, H = model.num_heads, model.kv_heads, model.head_size
    attention = 2 * D * N * H + 2 * D * K * H
    if model.attention_bias:
        attention += N * H + 2 * K * H + D
    mlp = (3 if model.mlp == "swiglu" else 2) * D * F
    if model.mlp_bias:
        mlp += (2 if model.mlp == "swiglu" else 1) * F + D
    norm = D * (2 if model.norm == "layernorm" else 1)
    return {
        "embedding": model.vocab_size * D,
        "position_embedding": model.max_seq_len * D if model.position == "learned" else 0,
        "attention": L * attention,
        "mlp": L * mlp,
        "norms": L * (2 * norm + (2 * H if model.qk_norm else 0)) + norm,
        "unembedding": 0 if model.tie_embeddings else model.vocab_size * D,
    }


def matmul_parameters(model: cfg.Model) -> int:
    """Parameters that a token is multiplied by: all matrices of the layers, and the unembedding (tied or not)."""
    D, N, K, H = model.embed_dim, model.num_heads, model.kv_heads, model.head_size
    layer = 2 * D * N * H + 2 * D * K * H + (3 if model.mlp == "swiglu" else 2) * D * model.mlp_dim
    return model.num_layers * layer + model.vocab_size * D


def train_flops_per_token(model: cfg.Model, seq_len: int, *, convention: str = "causal") -> float:
    """Model FLOPs of one token, forward and backward: 6 * matmul parameters + 12 * L * N * H * keys.

    `keys` is how many tokens a query meets: T in PaLM's convention (arXiv:2204.02311, appendix B); on average half of
    T counted causally, or W * (1 - W / 2T) under a sliding window W < T. Recompute is not counted.
    """
    keys = float(seq_len)
    if convention == "causal":
        window = min(model.sliding_window or seq_len, seq_len)
        keys = window * (1 - window / (2 * seq_len))
    attention = 12 * model.num_layers * model.num_heads * model.head_size * keys
    return 6 * matmul_parameters(model) + attention
