"""Published runs with their sources: what `published.py` predicts, fits and holds out. Data only.

A row says what ran, not how fast it should be. `software` names what made its kernels, because most GPU rows are of
PyTorch and jaxscale's own step is compiled by XLA: see `predict.timing.SOFTWARE`. `chip` holds figures that the
source states in place of the datasheet's (bandwidth of its network, of its memory).
"""

from dataclasses import dataclass, field
from typing import Any

RECIPES = "AI-Hypercomputer/tpu-recipes, training/..., log lines in the READMEs"
IRONWOOD = "AI-Hypercomputer/tpu-recipes, training/ironwood/README.md"
MAXTEXT = "AI-Hypercomputer/maxtext, configs/{}/README.md and its scripts"
FOUNDRY = "mosaicml/llm-foundry, scripts/train/benchmarking/README.md"
TITAN = "pytorch/torchtitan, benchmarks/llama3_h100_202412_torchtitan.md"
TITAN_A100 = "pytorch/torchtitan, docs/performance.md of 2024 (64 A100)"
IBM = "pytorch.org/blog/maximizing-training, 2024-03 (IBM)"
IBM_COMPILED = "foundation-model-stack/fms-fsdp, README"
NEMO = "NVIDIA NeMo 24.07, performance_summary.md"
TRILLIUM = "AI-Hypercomputer/tpu-recipes, training/trillium/Mixtral-8x{}-MaxText/README.md"
AUTOMODEL = "NVIDIA-NeMo/Automodel, docs/performance-summary.mdx and qwen3_moe_30b_te_deepep.yaml"
AXLEARN = "apple/axlearn, experiments/text/gpt/fuji.py (undated comments)"
AO = "pytorch/ao, torchao/float8/README.md"

# --- models -------------------------------------------------------------------------------------------------------

Model = dict[str, Any]
GPT: Model = {"mlp": "gelu", "norm": "layernorm", "position": "learned", "max_seq_len": 2048, "tie_embeddings": True}


def gpt(name: str, layers: int, embed: int, heads: int, vocab: int = 50304, **others: Any) -> Model:
    return GPT | {"name": name, "vocab_size": vocab, "num_layers": layers, "embed_dim": embed, "num_heads": heads,
                  "mlp_dim": 4 * embed} | others  # fmt: skip


def llama2(size: str, layers: int, embed: int, heads: int, mlp: int, kv: int | None = None) -> Model:
    return {"name": f"llama2-{size}", "vocab_size": 32000, "num_layers": layers, "embed_dim": embed, "num_heads": heads,
            "num_kv_heads": kv or heads, "mlp_dim": mlp, "max_seq_len": 32768}  # fmt: skip


GPT3, GPT3_5B = gpt("gpt3-175b", 96, 12288, 96), gpt("gpt3-5b", 24, 4096, 32)
GPT3_20B = gpt("gpt3-20b", 44, 6144, 48)
LLAMA2_7B, LLAMA2_13B = llama2("7b", 32, 4096, 32, 11008), llama2("13b", 40, 5120, 40, 13824)
LLAMA2_34B, LLAMA2_70B = llama2("34b", 48, 8192, 64, 22016, 8), llama2("70b", 80, 8192, 64, 28672, 8)
LLAMA8, LLAMA70, LLAMA405 = "llama3.1-8b", "llama3.1-70b", "llama3.1-405b"
MPT_SHAPES = {"125m": (12, 768, 12), "350m": (24, 1024, 16), "760m": (24, 1536, 12), "1b": (24, 2048, 16),
              "3b": (32, 2560, 20), "7b": (32, 4096, 32), "13b": (40, 5120, 40), "30b": (48, 7168, 56),
              "70b": (80, 8192, 64)}  # fmt: skip


def maxtext(scale: int, embed: int, heads: int, mlp: int, layers: int) -> Model:
    """MaxText's models by `global_parameter_scale`: heads of 128, swiglu, more heads than the residual is wide."""
    return {"name": f"maxtext-{scale}b", "vocab_size": 32000, "num_layers": layers, "embed_dim": embed,
            "num_heads": heads, "head_dim": 128, "mlp_dim": mlp, "max_seq_len": 2048}  # fmt: skip


MAXTEXT_MODELS = {
    16: maxtext(16, 4096, 64, 28672, 32), 32: maxtext(32, 8192, 64, 28672, 32), 64: maxtext(64, 8192, 64, 28672, 64),
    128: maxtext(128, 8192, 128, 57344, 64), 256: maxtext(256, 16384, 128, 57344, 64),
    512: maxtext(512, 16384, 128, 57344, 128),
}  # fmt: skip
RELU = {"mlp": "gelu", "head_dim": 256, "vocab_size": 32000, "max_seq_len": 2048}
MAXTEXT_22B = RELU | {"name": "maxtext-22b", "num_layers": 48, "embed_dim": 6144, "num_heads": 24, "mlp_dim": 24576}
MAXTEXT_52B = RELU | {"name": "maxtext-52b", "num_layers": 32, "embed_dim": 12288, "num_heads": 32, "mlp_dim": 49152}

# --- what is kept for the backward pass ----------------------------------------------------------------------------

Remat = str | dict[str, str]
OFFLOAD_8B: Remat = dict.fromkeys(("layer_in", "q", "k", "v", "attention_out"), "offload")
OFFLOAD_70B: Remat = dict.fromkeys(("layer_in", "q", "k", "v"), "offload")
OFFLOAD_QKV: Remat = dict.fromkeys(("q", "k", "v"), "offload")
OFFLOAD_DOTS: Remat = dict.fromkeys(("q", "k", "v", "attention_out", "mlp_gate", "mlp_up", "mlp_out"), "offload")
KEEP_QKV_CONTEXT: Remat = dict.fromkeys(("q", "k", "v", "attended"), "save")
# torchtitan's "selective op": the attention kernel's output and every second matmul's, so k, out and up run again
SELECTIVE_OP: Remat = dict.fromkeys(("q", "v", "attended", "mlp_gate", "mlp_out"), "save")
# every second layer recomputed: as many FLOPs as running q, k, v, out and attention again in all of them
HALF_OF_LAYERS: Remat = dict.fromkeys(("mlp_gate", "mlp_up"), "save")


# a word of a GPU row's source, the chip it begins with -> what the source's runs used unless the row says otherwise
SOURCES = (
    ("llm-foundry", "", "torch 2023"), ("torchtitan", "a100", "torch eager"), ("torchtitan", "", "torch compiled"),
    ("pytorch/ao", "", "torch compiled"), ("fms-fsdp", "", "torch compiled"), ("IBM", "", "torch eager"),
    ("ml-engineering", "", "torch compiled"),
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One published run. `mesh` holds whole sizes, `over` how much of them is over slices (DCN).

    Attributes:
        seconds: of a step of `tokens_per_chip` * chips tokens, all microbatches.
        quantized: matmuls in 8 bits.
        power: share of a GPU's power limit that its machine allows.
        software: what compiled or ran the step, a key of `timing.SOFTWARE`; empty: what its source used (`made_by`).
        capacity: of experts that drop tokens, the rows of each over an even share, sorted by masks of matmuls; 0: no
            token is dropped. What that takes is in `published.masked`.
        chip: figures that the source states in place of the table's, e.g. {"network_bandwidth": 12.5e9}.
    """

    what: str
    model: str | Model
    topology: str
    seq_len: int
    tokens_per_chip: int
    mesh: dict[str, int]
    remat: Remat
    seconds: float
    source: str
    slices: int = 1
    over: dict[str, int] = field(default_factory=dict)
    quantized: bool = False
    power: float = 1.0
    note: str = ""
    software: str = ""
    microbatches: int = 1
    capacity: float = 0.0
    chip: dict[str, float] = field(default_factory=dict)

    @property
    def made_by(self) -> str:
        """Its software, or what its source used on that chip."""
        if self.software or not self.topology.startswith(("a100", "h100", "h200", "b200")):
            return self.software or "xla"
        found = (s for name, chip, s in SOURCES if name in self.source and self.topology.startswith(chip))
        return next(found, "xla")


def from_rate(tokens_per_chip: int, rate: float) -> float:
    return tokens_per_chip / rate


# --- TPUs ---------------------------------------------------------------------------------------------------------

TPU_RUNS = (
    Run("8B, 8 x v6e", LLAMA8, "v6e:2x4", 8192, 24576, {"fsdp": 8}, OFFLOAD_8B, 3.443, RECIPES),
    Run("8B, 16 x v6e", LLAMA8, "v6e:4x4", 8192, 24576, {"fsdp": 16}, OFFLOAD_8B, 3.393, RECIPES),
    Run("8B, 32 x v6e", LLAMA8, "v6e:4x8", 8192, 24576, {"fsdp": 32}, OFFLOAD_8B, 3.495, RECIPES),
    Run("8B, 64 x v6e", LLAMA8, "v6e:8x8", 8192, 40960, {"fsdp": 64}, OFFLOAD_8B, 5.652, RECIPES),
    Run("8B, 128 x v6e", LLAMA8, "v6e:8x16", 8192, 32768, {"fsdp": 128}, OFFLOAD_8B, 4.602, RECIPES),
    Run("8B, 256 x v6e", LLAMA8, "v6e:16x16", 8192, 32768, {"fsdp": 256}, OFFLOAD_8B, 4.546, RECIPES),
    Run("70B, 32 x v6e", LLAMA70, "v6e:4x8", 8192, 16384, {"fsdp": 32}, OFFLOAD_70B, 17.790, RECIPES),
    Run("70B, 64 x v6e", LLAMA70, "v6e:8x8", 8192, 16384, {"fsdp": 64}, OFFLOAD_70B, 18.688, RECIPES),
    Run("70B, 128 x v6e", LLAMA70, "v6e:8x16", 8192, 32768, {"fsdp": 128}, OFFLOAD_70B, 34.786, RECIPES),
    Run("70B, 256 x v6e", LLAMA70, "v6e:16x16", 8192, 40960, {"fsdp": 256}, OFFLOAD_70B, 42.656, RECIPES),
    Run("405B, 2 slices of 256 x v6e", LLAMA405, "v6e:16x16", 8192, 8192, {"fsdp": 512}, {"layer_in": "offload"},
        54.803, RECIPES, slices=2, over={"fsdp": 2}),
    Run("Llama-2-70B, 256 x v6e", LLAMA2_70B, "v6e:16x16", 4096, 8192, {"fsdp": 256}, OFFLOAD_QKV, 9.052, RECIPES),
    Run("Mistral-7B, 8 x v6e", {"file": "mistral-7b", "sliding_window": None}, "v6e:2x4", 8192, 49152, {"fsdp": 8},
        OFFLOAD_8B, 6.320, RECIPES, note="no window in the recipe"),
    Run("GPT-3 175B bf16, 256 x v6e", GPT3, "v6e:16x16", 2048, 6144, {"fsdp": 256}, "full", 17.182, RECIPES),
    Run("70B, 4 slices of 256 x v6e", LLAMA2_70B, "v6e:16x16", 4096, 4096, {"data": 4, "fsdp": 256},
        OFFLOAD_70B, 4.9, AXLEARN, slices=4, over={"data": 4}),
    Run("70B in 4 microbatches, 256 x v6e", LLAMA2_70B, "v6e:16x16", 4096, 16384, {"fsdp": 256}, OFFLOAD_QKV, 19.5,
        AXLEARN, microbatches=4),
    Run("GPT-3 175B, 512 x v5p", GPT3, "v5p:8x8x8", 2048, 8192, {"fsdp": 64, "tensor": 8}, "full", 22.197, RECIPES,
        quantized=True, note="the recipe quantizes matmuls to int8 (quantization=int8)"),
    Run("405B, 512 x v5p", LLAMA405, "v5p:8x8x8", 8192, 16384, {"fsdp": 512},
        {"layer_in": "save", "attended": "offload", "mlp_out": "offload"}, 131.474, RECIPES),
    Run("7B, 4 slices of 256 x v5e", LLAMA2_7B, "v5e:16x16", 4096, 4096, {"data": 4, "fsdp": 256}, OFFLOAD_DOTS, 2.21,
        AXLEARN, slices=4, over={"data": 4}),
    Run("70B, 4 slices of 256 x v5e", LLAMA2_70B, "v5e:16x16", 4096, 4096, {"data": 4, "fsdp": 256}, OFFLOAD_DOTS,
        14.3736, AXLEARN, slices=4, over={"data": 4}),
    Run("70B, 64 x TPU7x", LLAMA70, "tpu7x:4x4x4", 8192, 32768, {"fsdp": 128}, KEEP_QKV_CONTEXT, 12.20, IRONWOOD),
    Run("70B, 256 x TPU7x", LLAMA70, "tpu7x:4x8x8", 8192, 32768, {"fsdp": 512}, KEEP_QKV_CONTEXT, 12.27, IRONWOOD),
    Run("70B 128k, 256 x TPU7x", LLAMA70, "tpu7x:4x8x8", 131072, 32768, {"fsdp": 64, "context": 8},
        KEEP_QKV_CONTEXT | {"mlp_out": "save"}, 34.02, IRONWOOD),
    Run("405B, 256 x TPU7x", LLAMA405, "tpu7x:4x8x8", 8192, 49152, {"fsdp": 512},
        {"layer_in": "offload", "mlp_out": "offload", "k": "save", "v": "save"}, 98.34, IRONWOOD),
    Run("70B fp8, 64 x TPU7x", LLAMA70, "tpu7x:4x4x4", 8192, 32768, {"fsdp": 128}, KEEP_QKV_CONTEXT, 7.93, IRONWOOD,
        quantized=True),
    Run("70B fp8, 256 x TPU7x", LLAMA70, "tpu7x:4x8x8", 8192, 32768, {"fsdp": 512}, KEEP_QKV_CONTEXT, 7.95, IRONWOOD,
        quantized=True),
    Run("70B 128k fp8, 256 x TPU7x", LLAMA70, "tpu7x:4x8x8", 131072, 32768, {"fsdp": 64, "context": 8},
        KEEP_QKV_CONTEXT | {"mlp_out": "save"}, 30.11, IRONWOOD, quantized=True),
    Run("405B fp8, 256 x TPU7x", LLAMA405, "tpu7x:4x8x8", 8192, 49152, {"fsdp": 512},
        {"layer_in": "offload", "mlp_out": "offload", "k": "save", "v": "save"}, 64.37, IRONWOOD, quantized=True),
)  # fmt: skip


def palm_seconds(model: Model, tokens_per_chip: int, tflops: float) -> float:
    """Seconds of a step from MaxText's TFLOP/s of 2023: 6 N with both tables, 12 L H N T over the whole square."""
    D, L, wide = model["embed_dim"], model["num_layers"], model["num_heads"] * model["head_dim"]
    matrices = 3 if model.get("mlp", "swiglu") == "swiglu" else 2
    parameters = L * (4 * D * wide + matrices * D * model["mlp_dim"]) + 2 * D * model["vocab_size"]
    return tokens_per_chip * (6 * parameters + 12 * L * wide * 2048) / (tflops * 1e12)


def on_slices(
    model: Model, what: str, topology: str, tokens: int, mesh: dict[str, int], remat: Remat, tflops: dict[int, float]
) -> tuple[Run, ...]:
    """A line of MaxText's tables: the same step on 1, 2, ... slices, data parallel over them."""
    chip = topology.partition(":")[0]
    return tuple(
        Run(f"{what}, {n} x {topology}", model, topology, 2048, tokens, {"data": n} | mesh if n > 1 else mesh, remat,
            palm_seconds(model, tokens, t), MAXTEXT.format(chip), slices=n, over={"data": n} if n > 1 else {})
        for n, t in tflops.items()
    )  # fmt: skip


MAXTEXT_RUNS = (
    *on_slices(MAXTEXT_22B, "22B", "v4:4x4x4", 26624, {"fsdp": 64}, "full",
               {1: 156, 2: 152, 4: 149, 8: 146}),
    *on_slices(MAXTEXT_52B, "52B", "v4:4x4x12", 14336, {"fsdp": 192}, "full",
               {1: 154, 2: 162}),
    *on_slices(MAXTEXT_MODELS[16], "16B", "v5e:16x16", 12288, {"fsdp": 256}, "full",
               {1: 120, 2: 117, 4: 117, 8: 115, 16: 111, 32: 108}),
    *on_slices(MAXTEXT_MODELS[32], "32B", "v5e:16x16", 8192, {"fsdp": 256}, "full",
               {1: 132, 2: 128, 4: 126, 8: 125, 16: 123, 32: 119}),
    *on_slices(MAXTEXT_MODELS[64], "64B", "v5e:16x16", 4096, {"fsdp": 256}, "full",
               {1: 118, 2: 112, 4: 110, 8: 108, 16: 105, 32: 99}),
    *on_slices(MAXTEXT_MODELS[128], "128B", "v5e:16x16", 2048, {"fsdp": 16, "tensor": 16}, OFFLOAD_QKV,
               {1: 110, 2: 110, 4: 108, 8: 104, 16: 100, 32: 91}),
    *on_slices(MAXTEXT_MODELS[32], "32B", "v5p:4x4x4", 12288, {"fsdp": 16, "tensor": 4}, "dots",
               {1: 328, 2: 319}),
    *on_slices(MAXTEXT_MODELS[64], "64B", "v5p:4x4x4", 6144, {"fsdp": 16, "tensor": 4}, "dots",
               {1: 323, 2: 309}),
    *on_slices(MAXTEXT_MODELS[128], "128B", "v5p:4x4x8", 2048, {"fsdp": 16, "tensor": 8}, "dots",
               {1: 315, 2: 305}),
    *on_slices(MAXTEXT_MODELS[128], "128B", "v5p:4x8x8", 2048, {"fsdp": 32, "tensor": 8}, "dots",
               {1: 316, 2: 274}),
    *on_slices(MAXTEXT_MODELS[256], "256B", "v5p:8x8x8", 2048, {"fsdp": 64, "tensor": 8}, "dots",
               {1: 308, 2: 289}),
    *on_slices(MAXTEXT_MODELS[512], "512B", "v5p:8x8x8", 4096, {"fsdp": 64, "tensor": 8}, "full",
               {1: 294, 2: 282}),
)  # fmt: skip

# --- GPUs: llm-foundry, one line of its tables each -----------------------------------------------------------------


def mpt(size: str, chip: str, gpus: int, seq: int, rows: int, accumulated: int, rate: float, recompute: str = "none", *,
        fp8: bool = False) -> Run:  # fmt: skip
    """Eager PyTorch FSDP: `rows` a GPU and microbatch, `accumulated` microbatches, tokens/s a GPU."""
    layers, embed, heads = MPT_SHAPES[size]
    model = gpt(f"mpt-{size}", layers, embed, heads, 50368, max_seq_len=max(2048, seq))
    tokens = rows * accumulated * seq
    topology = f"{chip}:{gpus}" if gpus <= 8 else f"{chip}:{gpus // 8}x8"
    what = f"MPT {size} {'fp8 ' if fp8 else ''}seq {seq}, {gpus} x {chip.upper()}"
    return Run(what, model, topology, seq, tokens, {"fsdp": gpus}, recompute, from_rate(tokens, rate), FOUNDRY,
               microbatches=accumulated, quantized=fp8)  # fmt: skip


FOUNDRY_RUNS = (
    mpt("70b", "h100", 64, 2048, 8, 4, 1039, "full"), mpt("70b", "h100", 32, 2048, 2, 16, 882, "full"),
    mpt("30b", "h100", 8, 8192, 1, 21, 1384, "full"), mpt("30b", "h100", 8, 4096, 1, 21, 1802, "full"),
    mpt("30b", "h100", 32, 2048, 14, 3, 2308, "full"), mpt("30b", "h100", 8, 2048, 3, 21, 2002, "full"),
    mpt("13b", "h100", 8, 32768, 1, 3, 1976, "full"), mpt("13b", "h100", 8, 16384, 3, 3, 2985, "full"),
    mpt("13b", "h100", 8, 4096, 10, 3, 4717, "full"), mpt("13b", "h100", 64, 2048, 2, 1, 4800),
    mpt("13b", "h100", 8, 2048, 2, 1, 4792), mpt("13b", "h100", 8, 1024, 40, 3, 5502, "full"),
    mpt("7b", "h100", 8, 65536, 1, 2, 1956, "full"), mpt("7b", "h100", 8, 32768, 2, 2, 3318, "full"),
    mpt("7b", "h100", 8, 8192, 8, 2, 6935, "full"), mpt("7b", "h100", 8, 4096, 16, 2, 8611, "full"),
    mpt("7b", "h100", 8, 2048, 6, 1, 10643), mpt("7b", "h100", 8, 1024, 64, 2, 10203, "full"),
    mpt("3b", "h100", 8, 65536, 1, 2, 3262, "full"), mpt("3b", "h100", 8, 16384, 1, 6, 11152),
    mpt("3b", "h100", 8, 8192, 3, 6, 16578), mpt("3b", "h100", 8, 4096, 5, 6, 20964),
    mpt("3b", "h100", 64, 2048, 6, 3, 22525), mpt("3b", "h100", 16, 2048, 10, 3, 24142),
    mpt("3b", "h100", 8, 512, 40, 6, 27965), mpt("1b", "h100", 8, 65536, 1, 2, 5506, "full"),
    mpt("1b", "h100", 8, 16384, 2, 4, 19649), mpt("1b", "h100", 8, 4096, 7, 4, 38535),
    mpt("1b", "h100", 64, 2048, 20, 1, 44402), mpt("1b", "h100", 8, 2048, 14, 1, 45455),
    mpt("1b", "h100", 8, 512, 56, 4, 52275), mpt("760m", "h100", 8, 32768, 1, 2, 16291),
    mpt("760m", "h100", 8, 8192, 6, 2, 41825), mpt("760m", "h100", 16, 2048, 24, 1, 68551),
    mpt("760m", "h100", 8, 2048, 24, 2, 63147), mpt("760m", "h100", 8, 512, 96, 2, 83749),
    mpt("3b", "h100", 8, 8192, 3, 6, 19146, fp8=True), mpt("3b", "h100", 8, 2048, 10, 6, 30586, fp8=True),
    mpt("3b", "h100", 8, 512, 40, 6, 36527, fp8=True), mpt("1b", "h100", 8, 8192, 2, 4, 32010, fp8=True),
    mpt("70b", "a100", 64, 2048, 8, 4, 410, "full"), mpt("30b", "a100", 8, 8192, 1, 21, 574, "full"),
    mpt("30b", "a100", 8, 2048, 3, 21, 916, "full"), mpt("13b", "a100", 8, 32768, 1, 3, 1016, "full"),
    mpt("13b", "a100", 8, 8192, 5, 3, 1795, "full"), mpt("13b", "a100", 8, 2048, 2, 3, 2262),
    mpt("7b", "a100", 8, 65536, 1, 2, 1013, "full"), mpt("7b", "a100", 8, 16384, 4, 2, 2453, "full"),
    mpt("7b", "a100", 8, 4096, 16, 2, 3684, "full"), mpt("7b", "a100", 8, 2048, 6, 2, 4641),
    mpt("3b", "a100", 8, 65536, 1, 2, 1767, "full"), mpt("3b", "a100", 8, 16384, 1, 6, 5529),
    mpt("3b", "a100", 8, 4096, 5, 6, 9457), mpt("3b", "a100", 8, 2048, 10, 2, 10811),
    mpt("3b", "a100", 8, 512, 40, 6, 12127), mpt("1b", "a100", 8, 32768, 1, 4, 6275),
    mpt("1b", "a100", 8, 8192, 3, 4, 13814), mpt("1b", "a100", 8, 2048, 14, 4, 20513),
    mpt("760m", "a100", 8, 65536, 1, 2, 4143, "full"), mpt("760m", "a100", 8, 8192, 6, 2, 20933),
    mpt("760m", "a100", 8, 2048, 24, 2, 32434), mpt("350m", "a100", 8, 32768, 2, 2, 13652),
    mpt("350m", "a100", 8, 8192, 8, 2, 36569), mpt("350m", "a100", 8, 2048, 32, 2, 58782),
    mpt("125m", "a100", 8, 16384, 4, 2, 60040), mpt("125m", "a100", 8, 2048, 40, 2, 142830),
    mpt("125m", "a100", 8, 512, 128, 2, 165681),
)  # fmt: skip

# --- GPUs: others ---------------------------------------------------------------------------------------------------

TITAN_H100 = {"hbm_bandwidth": 2.4e12}  # its source: HBM2e, and 500 W of 700
IBM_A100, IBM_H100 = {"network_bandwidth": 50e9 / 8}, {"network_bandwidth": 100e9 / 8}  # 400 and 800 Gb/s a node


def titan(what: str, chips: int, rate: float, software: str, *, fp8: bool = False) -> Run:
    topology = "h100:8" if chips == 8 else f"h100:{chips // 8}x8"
    return Run(what, LLAMA8, topology, 8192, 16384, {"fsdp": chips}, SELECTIVE_OP, from_rate(16384, rate), TITAN,
               power=500 / 700, software=software, quantized=fp8, chip=TITAN_H100,
               note="selective recompute by operation; H100s capped at 500 W of 700")  # fmt: skip


def ibm(size: str, model: Model, chip: str, remat: Remat, rate: float, compiled: bool, mesh: dict[str, int]) -> Run:
    software = "torch compiled" if compiled else "torch eager"
    return Run(f"Llama-2 {size} {'compiled' if compiled else 'eager'}, {chip.upper()}", model,
               "a100:16x8" if chip == "a100" else "h100:12x8", 4096, 8192, mesh, remat, from_rate(8192, rate),
               IBM_COMPILED if compiled else IBM, software=software, chip=IBM_A100 if chip == "a100" else IBM_H100,
               note="400 Gb/s a node" if chip == "a100" else "800 Gb/s a node")  # fmt: skip


A_FSDP, H_FSDP, A_HSDP, H_HSDP = {"fsdp": 128}, {"fsdp": 96}, {"data": 16, "fsdp": 8}, {"data": 12, "fsdp": 8}
GPU_RUNS = (
    titan("8B eager, 8 x H100", 8, 5762, "torch eager"), titan("8B, 8 x H100", 8, 6667, "torch compiled"),
    titan("8B fp8, 8 x H100", 8, 8532, "torch compiled", fp8=True),
    titan("8B eager, 128 x H100", 128, 5605, "torch eager"), titan("8B, 128 x H100", 128, 6514, "torch compiled"),
    titan("8B fp8, 128 x H100", 128, 8380, "torch compiled", fp8=True),
    Run("8B batch 1, 8 x H100", LLAMA8, "h100:8", 8192, 8192, {"fsdp": 8}, SELECTIVE_OP, from_rate(8192, 6150), AO,
        power=500 / 700, software="torch compiled", chip=TITAN_H100),
    Run("8B batch 1 fp8, 8 x H100", LLAMA8, "h100:8", 8192, 8192, {"fsdp": 8}, SELECTIVE_OP, from_rate(8192, 7689.5),
        AO, power=500 / 700, software="torch compiled", chip=TITAN_H100, quantized=True),
    Run("70B fp8, 256 x H100, tensor=8", LLAMA70, "h100:32x8", 8192, 16384, {"fsdp": 32, "tensor": 8}, "full",
        from_rate(16384, 829), TITAN, power=500 / 700, software="torch compiled", quantized=True, chip=TITAN_H100),
    Run("8B, 64 x A100", LLAMA8, "a100:8x8", 8192, 8192, {"fsdp": 64}, SELECTIVE_OP, from_rate(8192, 2973), TITAN_A100,
        software="torch eager"),
    Run("70B, 64 x A100", LLAMA70, "a100:8x8", 8192, 8192, {"fsdp": 64}, "full", from_rate(8192, 331), TITAN_A100,
        software="torch eager"),
    Run("Llama-2 13B, 64 x A100", LLAMA2_13B, "a100:8x8", 4096, 8192, {"fsdp": 64}, "none", from_rate(8192, 2162),
        TITAN_A100, software="torch eager"),
    Run("Llama-2 13B selective, 64 x A100", LLAMA2_13B, "a100:8x8", 4096, 8192, {"fsdp": 64}, SELECTIVE_OP,
        from_rate(8192, 1904), TITAN_A100, software="torch eager"),
    Run("Llama-2 70B, 64 x A100", LLAMA2_70B, "a100:8x8", 4096, 8192, {"fsdp": 64}, "full", from_rate(8192, 353),
        TITAN_A100, software="torch eager"),
    ibm("7B", LLAMA2_7B, "a100", "none", 3700, False, A_FSDP),
    ibm("7B", LLAMA2_7B, "h100", "none", 7500, False, H_FSDP),
    ibm("13B", LLAMA2_13B, "a100", HALF_OF_LAYERS, 1800, False, A_FSDP),
    ibm("13B", LLAMA2_13B, "h100", HALF_OF_LAYERS, 3800, False, H_FSDP),
    ibm("34B", LLAMA2_34B, "a100", "full", 700, False, A_FSDP),
    ibm("34B", LLAMA2_34B, "h100", "full", 1550, False, H_FSDP),
    ibm("70B", LLAMA2_70B, "a100", "full", 370, False, A_FSDP),
    ibm("70B", LLAMA2_70B, "h100", "full", 800, False, H_FSDP),
    ibm("7B", LLAMA2_7B, "a100", "none", 4550, True, A_HSDP),
    ibm("7B", LLAMA2_7B, "h100", "none", 9600, True, H_HSDP),
    ibm("13B", LLAMA2_13B, "a100", HALF_OF_LAYERS, 2150, True, A_FSDP),
    ibm("13B", LLAMA2_13B, "h100", HALF_OF_LAYERS, 4850, True, H_FSDP),
    ibm("34B", LLAMA2_34B, "a100", "full", 820, True, A_FSDP),
    ibm("34B", LLAMA2_34B, "h100", "full", 1830, True, H_FSDP),
    ibm("70B", LLAMA2_70B, "a100", "full", 410, True, A_FSDP),
    ibm("70B", LLAMA2_70B, "h100", "full", 890, True, H_FSDP),
    Run("8B, 8 x H200", LLAMA8, "h200:8", 8192, 8192, {"fsdp": 8}, "none", from_rate(8192, 461e12 / 51.47e9),
        "ml-engineering: 461 TFLOP/s, causal", note="ZeRO-2, no recompute", software="torch compiled"),
    Run("8B fp8, 32 x H200", LLAMA8, "h200:4x8", 8192, 16384, {"fsdp": 32}, SELECTIVE_OP, from_rate(16384, 10938),
        "pytorch/torchtitan, benchmarks/llama3-8b_h200_202506_trainy-whitefiber.md", software="torch compiled",
        quantized=True),
    Run("8B fp8, 64 x H200", LLAMA8, "h200:8x8", 8192, 16384, {"fsdp": 64}, SELECTIVE_OP, from_rate(16384, 10753),
        "pytorch/torchtitan, benchmarks/llama3-8b_h200_202506_trainy-whitefiber.md", software="torch compiled",
        quantized=True),
    Run("GPT-2 124M, 8 x H100", "gpt2-124m", "h100:8", 1024, 65536, {"data": 8}, "none", from_rate(65536, 468e3),
        "llm.c, discussion 481", note="its own CUDA kernels, fused as a compiler would"),
    Run("70B, 128 x H100", LLAMA70, "h100:16x8", 8192, 16384, {"fsdp": 128},
        {"layer_in": "save", "q": "save", "k": "save", "v": "save"}, 15.563, "NVIDIA/dgxc-benchmarking, MaxText"),
    Run("Llama-2-70B, 64 x H100", LLAMA2_70B, "h100:8x8", 4096, 8192, {"fsdp": 64},
        {"q": "save", "k": "save", "v": "save", "attention_out": "save", "mlp_out": "save"}, 6.999,
        "NVIDIA/dgxc-benchmarking, MaxText"),
    Run("Llama-2-7B, 8 x H100", LLAMA2_7B, "h100:8", 4096, 8192, {"fsdp": 8}, "dots", 0.721,
        "NVIDIA/JAX-Toolbox, docs/frameworks/maxtext/README.md"),
    Run("GPT-3 5B fp8, 64 x H100", GPT3_5B, "h100:8x8", 2048, 65536, {"data": 64}, "none", from_rate(65536, 23574),
        NEMO, quantized=True),
    Run("GPT-3 20B fp8, 64 x H100, tensor=2", GPT3_20B, "h100:8x8", 2048, 8192, {"data": 32, "tensor": 2}, "none",
        from_rate(8192, 5851), NEMO, quantized=True),
    Run("Llama-2-7B fp8, 8 x H100", LLAMA2_7B, "h100:8", 4096, 65536, {"data": 8}, "none", from_rate(65536, 16847),
        NEMO, quantized=True),
    Run("8B fp8, 8 x H100, FSDP of Megatron-Bridge", LLAMA8, "h100:8", 8192, 131072, {"fsdp": 8}, "none",
        from_rate(131072, 14451), "NVIDIA-NeMo/Megatron-Bridge, performance summary 25.11", quantized=True,
        microbatches=16),
    Run("8B fp8, 8 x B200", LLAMA8, "b200:8", 8192, 131072, {"data": 8}, "none", from_rate(131072, 30624),
        "NVIDIA-NeMo/Megatron-Bridge, performance summary 25.11", quantized=True),
)  # fmt: skip

# --- added after the fractions in `jaxscale/hardware` were chosen: none of these was used for them -------------------

LATER_RUNS = (
    mpt("70b", "a100", 32, 2048, 2, 16, 373, "full"), mpt("30b", "a100", 8, 4096, 1, 21, 814, "full"),
    mpt("30b", "a100", 8, 512, 12, 21, 967, "full"), mpt("13b", "a100", 8, 16384, 3, 3, 1431, "full"),
    mpt("13b", "a100", 8, 1024, 40, 3, 2330, "full"), mpt("7b", "a100", 8, 32768, 2, 2, 1672, "full"),
    mpt("3b", "a100", 8, 32768, 3, 6, 3029, "full"), mpt("3b", "a100", 8, 8192, 3, 6, 7695),
    mpt("3b", "a100", 8, 1024, 20, 6, 11580), mpt("1b", "a100", 8, 16384, 2, 4, 9956),
    mpt("1b", "a100", 8, 4096, 7, 4, 17807), mpt("1b", "a100", 8, 512, 56, 4, 23148),
    mpt("760m", "a100", 8, 16384, 3, 2, 14274), mpt("760m", "a100", 8, 4096, 12, 2, 27351),
    mpt("350m", "a100", 8, 16384, 4, 2, 23559), mpt("350m", "a100", 8, 4096, 16, 2, 49555),
    mpt("350m", "a100", 8, 512, 128, 2, 69330), mpt("125m", "a100", 8, 65536, 1, 2, 20368),
    mpt("125m", "a100", 8, 4096, 16, 2, 118396), mpt("30b", "h100", 16, 2048, 10, 3, 2263, "full"),
    mpt("30b", "h100", 8, 1024, 6, 21, 2084, "full"), mpt("13b", "h100", 16, 2048, 2, 1, 4767),
    mpt("13b", "h100", 32, 2048, 2, 1, 4811), mpt("3b", "h100", 8, 32768, 3, 6, 5873, "full"),
    mpt("3b", "h100", 8, 1024, 20, 6, 27046), mpt("3b", "h100", 32, 2048, 6, 3, 23021),
    mpt("1b", "h100", 8, 32768, 1, 4, 12025), mpt("1b", "h100", 8, 8192, 3, 4, 29157),
    mpt("1b", "h100", 16, 2048, 20, 1, 46037), mpt("1b", "h100", 8, 1024, 18, 4, 48910),
    mpt("760m", "h100", 8, 16384, 3, 2, 27815), mpt("760m", "h100", 8, 4096, 12, 2, 55459),
    mpt("760m", "h100", 32, 2048, 24, 1, 67971), mpt("760m", "h100", 8, 1024, 48, 2, 78581),
    mpt("3b", "h100", 8, 32768, 3, 6, 5856, "full", fp8=True), mpt("1b", "h100", 8, 512, 56, 4, 70315, fp8=True),
    Run("8B 32k fp8, 8 x H100", LLAMA8, "h100:8", 32768, 32768, {"fsdp": 8}, "full", from_rate(32768, 3890), TITAN,
        power=500 / 700, quantized=True, chip=TITAN_H100),
    Run("8B fp8, 8 x H100, context=2", LLAMA8, "h100:8", 8192, 131072, {"data": 4, "context": 2}, "none",
        from_rate(131072, 12036), NEMO, quantized=True),
    Run("8B fp8, 8 x H100, Megatron-Bridge 25.09", LLAMA8, "h100:8", 8192, 131072, {"fsdp": 8}, "none",
        from_rate(131072, 14079), "NVIDIA-NeMo/Megatron-Bridge, performance summary 25.09", quantized=True,
        microbatches=16),
    Run("8B, 256 x v6e, recipe of 2024", LLAMA8, "v6e:16x16", 8192, 32768, {"fsdp": 256}, OFFLOAD_8B, 4.225,
        "AI-Hypercomputer/tpu-recipes of 2024-12"),
    Run("Llama-2-70B, 256 x v6e, recipe of 2024", LLAMA2_70B, "v6e:16x16", 4096, 16384, {"fsdp": 256}, OFFLOAD_70B,
        17.373, "AI-Hypercomputer/tpu-recipes of 2024-10"),
)  # fmt: skip

RUNS = (*TPU_RUNS, *MAXTEXT_RUNS, *FOUNDRY_RUNS, *GPU_RUNS, *LATER_RUNS)
# Mixtures of experts: shown apart, as four are too few for intervals. DeepSeek-V3 and gpt-oss-120b are published too
# (27.02 s on 128, 17.10 s on 64 TPU7x), but their attention cannot be said yet.
EXPERT_RUNS = (
    Run("Mixtral-8x7B, 256 x v6e", "mixtral-8x7b", "v6e:16x16", 4096, 49152, {"fsdp": 256}, OFFLOAD_8B, 13.484,
        TRILLIUM.format("7B"), capacity=1.25, note="drops tokens"),
    Run("Mixtral-8x22B, 256 x v6e", "mixtral-8x22b", "v6e:16x16", 4096, 32768, {"fsdp": 256}, OFFLOAD_8B, 24.706,
        TRILLIUM.format("22B"), capacity=1.25, note="drops tokens; its remat is not in the source: as 8x7B's"),
    Run("Qwen3-30B-A3B, 8 x H100", "qwen3-30b-a3b", "h100:8", 4096, 262144, {"expert": 8}, "full", 21.773, AUTOMODEL,
        microbatches=16, note="even loads, Transformer Engine and DeepEP"),
    Run("Qwen3-235B-A22B, 256 x TPU7x", "qwen3-235b-a22b", "tpu7x:4x8x8", 4096, 131072, {"fsdp": 512},
        {"layer_in": "offload"}, 30.87, IRONWOOD, note="random routing"),
)  # fmt: skip
