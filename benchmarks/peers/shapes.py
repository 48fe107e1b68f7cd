"""What both sides of the comparison compute: two families, full size on a GPU and small on a CPU."""

from jaxscale import config as cfg

FAMILIES = ("gpt2", "llama")
SMALL = {
    "gpt2": cfg.Model(
        vocab_size=8192, num_layers=6, embed_dim=384, num_heads=6, mlp_dim=1536, max_seq_len=256, norm="layernorm",
        position="learned", mlp="gelu", attention_bias=True, mlp_bias=True, tie_embeddings=True,
    ),
    "llama": cfg.Model(
        vocab_size=4096, num_layers=6, embed_dim=384, num_heads=6, num_kv_heads=2, mlp_dim=1024, max_seq_len=256
    ),
}  # fmt: skip
FULL = {
    "gpt2": cfg.Model(
        vocab_size=50257, num_layers=12, embed_dim=768, num_heads=12, mlp_dim=3072, max_seq_len=1024, norm="layernorm",
        position="learned", mlp="gelu", attention_bias=True, mlp_bias=True, tie_embeddings=True,
    ),
    "llama": cfg.Model(
        vocab_size=128256, num_layers=16, embed_dim=2048, num_heads=32, num_kv_heads=8, head_dim=64, mlp_dim=8192,
        max_seq_len=4096, rope_theta=500_000.0,
    ),
}  # fmt: skip
ROWS = {("gpt2", "cuda"): 16, ("llama", "cuda"): 2, ("gpt2", "cpu"): 8, ("llama", "cpu"): 8}


def run_config(family: str, device: str) -> cfg.Config:
    """float32 on a CPU; on a GPU bf16 matmuls with float32 parameters and state. Nothing is computed twice."""
    model = (SMALL if device == "cpu" else FULL)[family]
    return cfg.Config(
        name=f"{family}-{device}",
        steps=100_000,
        model=model,
        mesh=cfg.Mesh(data=1),
        runtime=cfg.Runtime(platform="cpu" if device == "cpu" else "auto"),
        data=cfg.Data(kind="synthetic", batch_size=ROWS[family, device], seq_len=model.max_seq_len),
        step=cfg.Step(remat="none", compute_dtype="float32" if device == "cpu" else "bfloat16"),
        optimizer=cfg.Optimizer(schedule="constant", no_decay=[], clip_norm=None),
    )
