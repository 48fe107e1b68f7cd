"""Step times predicted from configs alone, beside published ones: how far the predictions are to be believed.

    python benchmarks/published.py             # the table
    python benchmarks/published.py --record    # and benchmarks/results/<date>-published.json

No jax, no compile: `analysis.forecast` answers in milliseconds. The fractions in `analysis/timing.py` are the only
fitted numbers, a few for each chip; rows marked `fit` are what they were chosen by.
"""

import argparse
import sys
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

from jaxscale.analysis.forecast import Forecast, forecast
from jaxscale.config import Config, read_model, shipped_configs, validate
from jaxscale.topology import find_topology

RECIPES = "AI-Hypercomputer/tpu-recipes, training/..., log lines in the READMEs"
GPT3 = {"name": "gpt3-175b", "vocab_size": 50304, "num_layers": 96, "embed_dim": 12288, "num_heads": 96,
        "mlp_dim": 49152, "max_seq_len": 2048, "mlp": "gelu", "norm": "layernorm", "position": "learned",
        "tie_embeddings": True}  # fmt: skip
LLAMA2_70B = {"name": "llama2-70b", "vocab_size": 32000, "num_layers": 80, "embed_dim": 8192, "num_heads": 64,
              "num_kv_heads": 8, "mlp_dim": 28672, "max_seq_len": 4096}  # fmt: skip
LLAMA2_7B = {"name": "llama2-7b", "vocab_size": 32000, "num_layers": 32, "embed_dim": 4096, "num_heads": 32,
             "mlp_dim": 11008, "max_seq_len": 4096}  # fmt: skip
MPT_7B = {"name": "mpt-7b", "vocab_size": 50368, "num_layers": 32, "embed_dim": 4096, "num_heads": 32, "mlp_dim": 16384,
          "mlp": "gelu", "norm": "layernorm", "position": "learned", "max_seq_len": 2048,
          "tie_embeddings": True}  # fmt: skip
MPT_1B = MPT_7B | {"name": "mpt-1b", "num_layers": 24, "embed_dim": 2048, "num_heads": 16, "mlp_dim": 8192}
OFFLOAD_8B = {"layer_in": "offload", "q": "offload", "k": "offload", "v": "offload", "attention_out": "offload"}
OFFLOAD_70B = {"layer_in": "offload", "q": "offload", "k": "offload", "v": "offload"}
KEEP_QKV_CONTEXT = {"q": "save", "k": "save", "v": "save", "attention_context": "save"}
LLAMA8, LLAMA70, LLAMA405 = "llama3.1-8b", "llama3.1-70b", "llama3.1-405b"


@dataclass(frozen=True)
class Run:
    """One published run. `mesh` holds whole sizes, `over` how much of them is over slices (DCN)."""

    what: str
    model: str | dict[str, Any]
    topology: str
    seq_len: int
    tokens_per_chip: int
    mesh: dict[str, int]
    remat: str | dict[str, str]
    seconds: float
    source: str
    slices: int = 1
    over: dict[str, int] = field(default_factory=dict)
    quantized: bool = False
    power: float = 1.0
    figures: bool = False  # is it in the list that the fractions were fitted on
    note: str = ""


def from_rate(tokens_per_chip: int, rate: float) -> float:
    return tokens_per_chip / rate


RUNS = (
    Run("8B, 8 x v6e", LLAMA8, "v6e:2x4", 8192, 24576, {"fsdp": 8}, OFFLOAD_8B, 3.443, RECIPES, figures=True),
    Run("8B, 64 x v6e", LLAMA8, "v6e:8x8", 8192, 40960, {"fsdp": 64}, OFFLOAD_8B, 5.652, RECIPES, figures=True),
    Run("8B, 256 x v6e", LLAMA8, "v6e:16x16", 8192, 32768, {"fsdp": 256}, OFFLOAD_8B, 4.546, RECIPES, figures=True),
    Run("70B, 128 x v6e", LLAMA70, "v6e:8x16", 8192, 32768, {"fsdp": 128}, OFFLOAD_70B, 34.786, RECIPES, figures=True),
    Run("GPT-3 175B, 512 x v5p", GPT3, "v5p:8x8x8", 2048, 8192, {"fsdp": 64, "tensor": 8}, "full", 22.197, RECIPES,
        quantized=True, figures=True, note="the recipe quantizes matmuls to int8 (quantization=int8)"),
    Run("70B, 64 x TPU7x", LLAMA70, "tpu7x:4x4x4", 8192, 32768, {"fsdp": 128}, KEEP_QKV_CONTEXT, 12.20, RECIPES,
        figures=True),
    Run("8B, 8 x H100", LLAMA8, "h100:8", 8192, 16384, {"fsdp": 8}, "dots", from_rate(16384, 6667),
        "torchtitan, docs/performance.md (2024-12)", figures=True, power=500 / 700,
        note="selective recompute, compiled; its H100s are capped at 500 W of 700, as the source says"),
    Run("8B, 8 x H200", LLAMA8, "h200:8", 8192, 8192, {"fsdp": 8}, "none", from_rate(8192, 461e12 / 51.47e9),
        "ml-engineering: 461 TFLOP/s, causal", figures=True, note="ZeRO-2, no recompute"),
    Run("7B, 8 x H100", MPT_7B, "h100:8", 2048, 12288, {"fsdp": 8}, "none", from_rate(12288, 10643),
        "llm-foundry, scripts/train/benchmarking", figures=True),
    Run("1B, 8 x H100", MPT_1B, "h100:8", 2048, 28672, {"fsdp": 8}, "none", from_rate(28672, 45455),
        "llm-foundry, scripts/train/benchmarking", figures=True),
    Run("GPT-2 124M, 8 x H100", "gpt2-124m", "h100:8", 1024, 65536, {"data": 8}, "none", from_rate(65536, 468e3),
        "llm.c, discussion 481", figures=True),
    # --- others: other sizes, chip counts, slices over DCN, 128k sequences
    Run("8B, 16 x v6e", LLAMA8, "v6e:4x4", 8192, 24576, {"fsdp": 16}, OFFLOAD_8B, 3.393, RECIPES),
    Run("8B, 128 x v6e", LLAMA8, "v6e:8x16", 8192, 32768, {"fsdp": 128}, OFFLOAD_8B, 4.602, RECIPES),
    Run("70B, 64 x v6e", LLAMA70, "v6e:8x8", 8192, 16384, {"fsdp": 64}, OFFLOAD_70B, 18.688, RECIPES),
    Run("70B, 256 x v6e", LLAMA70, "v6e:16x16", 8192, 40960, {"fsdp": 256}, OFFLOAD_70B, 42.656, RECIPES),
    Run("405B, 2 slices of 256 x v6e", LLAMA405, "v6e:16x16", 8192, 8192, {"fsdp": 512}, {"layer_in": "offload"},
        54.803, RECIPES, slices=2, over={"fsdp": 2}),
    Run("Llama-2-70B, 256 x v6e", LLAMA2_70B, "v6e:16x16", 4096, 8192, {"fsdp": 256},
        {"q": "offload", "k": "offload", "v": "offload"}, 9.052, RECIPES),
    Run("Mistral-7B, 8 x v6e", {"file": "mistral-7b", "sliding_window": None}, "v6e:2x4", 8192, 49152, {"fsdp": 8},
        OFFLOAD_8B, 6.320, RECIPES, note="no window in the recipe"),
    Run("GPT-3 175B bf16, 256 x v6e", GPT3, "v6e:16x16", 2048, 6144, {"fsdp": 256}, "full", 17.182, RECIPES),
    Run("405B, 512 x v5p", LLAMA405, "v5p:8x8x8", 8192, 16384, {"fsdp": 512},
        {"layer_in": "save", "attention_context": "offload", "mlp_out": "offload"}, 131.474, RECIPES),
    Run("70B, 256 x TPU7x", LLAMA70, "tpu7x:4x8x8", 8192, 32768, {"fsdp": 512}, KEEP_QKV_CONTEXT, 12.27, RECIPES),
    Run("70B 128k, 256 x TPU7x", LLAMA70, "tpu7x:4x8x8", 131072, 32768, {"fsdp": 64, "context": 8},
        KEEP_QKV_CONTEXT | {"mlp_out": "save"}, 34.02, RECIPES),
    Run("405B, 256 x TPU7x", LLAMA405, "tpu7x:4x8x8", 8192, 49152, {"fsdp": 512},
        {"layer_in": "offload", "mlp_out": "offload", "k": "save", "v": "save"}, 98.34, RECIPES),
    Run("70B, 4 slices of 256 x v6e", LLAMA2_70B, "v6e:16x16", 4096, 4096, {"data": 4, "fsdp": 256},
        {"layer_in": "offload", "q": "offload", "k": "offload", "v": "offload"}, 4.9,
        "axlearn, fuji.py (undated comment)", slices=4, over={"data": 4}),
    Run("70B, 4 slices of 256 x v5e", LLAMA2_70B, "v5e:16x16", 4096, 4096, {"data": 4, "fsdp": 256}, "dots", 14.3736,
        "axlearn, fuji.py (undated comment)", slices=4, over={"data": 4}, note="all dots offloaded in the source"),
    Run("70B, 128 x H100", LLAMA70, "h100:16x8", 8192, 16384, {"fsdp": 128},
        {"layer_in": "save", "q": "save", "k": "save", "v": "save"}, 15.563, "NVIDIA/dgxc-benchmarking, MaxText"),
    Run("Llama-2-70B, 64 x H100", LLAMA2_70B, "h100:8x8", 4096, 8192, {"fsdp": 64},
        {"q": "save", "k": "save", "v": "save", "attention_out": "save", "mlp_out": "save"}, 6.999,
        "NVIDIA/dgxc-benchmarking, MaxText"),
    Run("Llama-2-7B, 8 x H100", LLAMA2_7B, "h100:8", 4096, 8192, {"fsdp": 8}, "dots", 0.721, "MaxText GPU recipe"),
)  # fmt: skip


def config_of(run: Run) -> Config:
    model = run.model if isinstance(run.model, dict) and "file" not in run.model else read_model(
        run.model, beside=shipped_configs())  # fmt: skip
    chips = find_topology(run.topology, run.slices).chips
    batch = run.tokens_per_chip * chips // run.seq_len
    values = {
        "name": run.what, "steps": 1, "model": model, "step": {"remat": run.remat},
        "data": {"kind": "synthetic", "batch_size": batch, "seq_len": run.seq_len},
    }  # fmt: skip
    return validate(values, source=run.what)


def predict(run: Run) -> Forecast:
    topology = find_topology(run.topology, run.slices)
    return forecast(config_of(run), topology, run.mesh, run.over, quantized=run.quantized, power=run.power)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", action="store_true", help="write benchmarks/results/<date>-published.json")
    parser.add_argument("--parts", action="store_true", help="where each prediction's seconds go")
    options = parser.parse_args()
    rows = []
    for run in RUNS:
        found = predict(run)
        error = found.time.best / run.seconds - 1
        rows.append({"run": run.what, "topology": run.topology, "slices": run.slices, "published_seconds": run.seconds,
                     "predicted_seconds": found.time.best, "error": error, "listed": run.figures, "source": run.source,
                     "bounds": [found.time.overlapped, found.time.nothing_overlapped], "binds": found.time.binds,
                     "note": run.note})  # fmt: skip
        where = f"{'fit ' if run.figures else '    '}{run.what:30s} {run.topology:12s} x{run.slices}"
        print(f"{where}  published {run.seconds:8.3f}  predicted {found.time.best:8.3f}  {error:+7.1%}")
        if options.parts:
            print(
                "       ",
                "  ".join(f"{k} {v:.3f}" for k, v in found.time.parts.items()),
                f" exposed {found.time.exposed:.3f}",
            )
    for name, own in (
        ("listed", [r for r in rows if r["listed"]]),
        ("others", [r for r in rows if not r["listed"]]),
    ):
        errors = [abs(r["error"]) for r in own]
        print(f"{name}: mean error {mean(errors):.1%}, largest {max(errors):.1%}, {len(own)} runs")
    if options.record:
        sys.path.insert(0, str(Path(__file__).parent))
        from common import HERE, write_record

        print(write_record("published", {"rows": rows}, HERE / "results"))


if __name__ == "__main__":
    main()
