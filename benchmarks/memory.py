"""Predicted beside compiled: memory, FLOPs and bytes sent, for models from 0.1B to 405B on 8 to 512 chips.

    python benchmarks/memory.py             # compiles what is not kept from before: about a minute each
    python benchmarks/memory.py --record    # and benchmarks/results/<date>-memory.json

Needs the aot-tpu extra; with aot-gpu the GPU rows too, otherwise they are left out and that is said.
"""

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path
from statistics import mean

from jaxscale.compiled.examine import examine
from jaxscale.compiled.story import compile_one
from jaxscale.config import load_config
from jaxscale.hardware.chips import GIB
from jaxscale.hardware.topology import find_topology
from jaxscale.predict import costs
from jaxscale.predict.memory import memory
from jaxscale.predict.traffic import traffic

SYNTHETIC = ["data.kind=synthetic", "data.path=null"]
OFFLOAD = "step.remat={layer_in: offload, q: offload, k: offload, v: offload, attention_out: offload}"
DOCUMENTS = ["data.kind=tokens", "data.path=documents"]  # several a row, masked; the data need not be here
GEMMA_LIKE = ["model.vocab_size=256000", "model.num_layers=18", "model.num_heads=8", "model.num_kv_heads=1",
              "model.head_dim=256", "model.mlp_dim=16384"]  # fmt: skip
ROWS = (
    ("gpt2-124m", "v5e:2x4", ["data.validation_path=null", "mesh.data=8", "step.remat=full"]),
    ("llama3.2-1b", "v6e:4x4", ["mesh.data=1", "mesh.fsdp=16", "data.batch_size=32", "data.seq_len=4096",
                                "step.microbatches=1", "step.remat=dots", "loss.chunk=512"]),
    ("llama3.2-1b", "v6e:4x4", [*GEMMA_LIKE, "mesh.fsdp=16", "data.batch_size=32", "data.seq_len=4096",
                                "step.remat=dots", "loss.chunk=512"]),
    ("llama3.2-1b", "v6e:2x4", ["mesh.data=2", "mesh.fsdp=4", "data.batch_size=32", "data.seq_len=4096",
                                "step.microbatches=2", "step.remat=full", "loss.chunk=null"]),
    ("llama3.2-1b", "v6e:2x4", ["mesh.fsdp=8", "data.batch_size=16", "data.seq_len=2048", "step.remat=none",
                                "loss.chunk=512"]),
    ("mistral-7b", "v5e:8x8", ["mesh.fsdp=64", "data.batch_size=64", "data.seq_len=8192", "step.microbatches=1",
                               "step.remat=full", "loss.chunk=null"]),
    ("qwen3-8b", "v5p:4x4x4", [*DOCUMENTS, "mesh.fsdp=64", "data.batch_size=64", "data.seq_len=8192",
                               "step.remat=dots"]),
    ("llama3.1-8b", "v5p:4x4x4", ["data.batch_size=64", "data.seq_len=4096", "step.remat=full", "loss.chunk=512"]),
    ("llama3.1-8b", "v5p:4x4x4", DOCUMENTS),
    ("llama3.1-8b", "v5p:4x4x4", ["data.batch_size=128", "mesh.data=4", "mesh.fsdp=16", "step.remat=full"]),
    ("llama3.1-8b", "v6e:8x8", ["data.batch_size=320", OFFLOAD]),
    ("llama3.1-70b", "v5p:4x8x8", ["data.batch_size=256", "data.seq_len=4096", "mesh.fsdp=256", "mesh.tensor=1",
                                   "step.microbatches=1", "loss.chunk=512"]),
    ("llama3.1-70b", "v5p:8x8x8", ["data.batch_size=256", "mesh.fsdp=64", "mesh.tensor=8", "step.microbatches=1"]),
    ("llama3.1-405b", "v5p:8x8x8", ["data.batch_size=512", "data.seq_len=4096", "mesh.fsdp=512", "mesh.tensor=1",
                                    "step.microbatches=1", "loss.chunk=512"]),
    ("llama3.1-405b", "v5p:8x8x8", ["data.batch_size=128", "mesh.fsdp=64", "step.microbatches=1"]),
    ("llama3.1-8b-128k", "v5p:4x4x4", ["data.batch_size=8", "step.remat=full"]),
    ("llama3.1-8b-128k", "v5p:4x4x4", ["mesh.fsdp=16", "mesh.context=4", "data.batch_size=16"]),
    ("llama3.1-8b-128k", "v6e:8x8", ["data.batch_size=8", "step.remat=full"]),
    ("llama3.1-8b-128k", "tpu7x:4x4x4", ["mesh.fsdp=16", "data.batch_size=16"]),
    ("llama3.1-8b", "tpu7x:4x4x4", ["data.batch_size=512", "step.remat=full"]),
    ("llama3.1-8b-1m", "v5p:4x4x4", []),
    ("mistral-7b", "v5p:4x4x4", ["mesh.data=1", "mesh.fsdp=16", "mesh.context=4", "data.seq_len=32768",
                                 "data.batch_size=16", "step.microbatches=1", "step.remat=full", "loss.chunk=4096"]),
    ("mixtral-8x7b", "v5p:4x4x4", ["data.batch_size=128"]),
    ("mixtral-8x7b", "tpu7x:4x4x4", ["data.batch_size=128"]),
    ("qwen3-30b-a3b", "v6e:8x8", ["mesh.fsdp=16", "mesh.expert=4", "data.batch_size=128"]),
    ("qwen3-30b-a3b", "v5p:4x4x4", ["step.expert_exchange=all_to_all"]),
    ("llama3.1-8b-64k", "h100:8", []),
    ("gpt2-124m", "h100:8", ["data.validation_path=null", "mesh.data=8", "step.remat=full"]),
    ("gpt2-124m", "h100:8", ["data.validation_path=null", "mesh.data=8", "step.remat=none", "step.microbatches=1"]),
    ("llama3.2-1b", "h100:8", ["mesh.fsdp=8", "data.batch_size=16", "data.seq_len=2048", "step.remat=none",
                               "loss.chunk=512"]),
    ("llama3.2-1b", "h100:8", ["mesh.fsdp=8", "data.batch_size=16", "data.seq_len=2048", "step.remat=full",
                               "loss.chunk=null"]),
    ("llama3.2-1b", "h100:8", ["mesh.data=8", "mesh.fsdp=1", "data.batch_size=32", "data.seq_len=4096",
                               "step.remat=dots", "loss.chunk=512"]),
    ("llama3.2-1b", "h100:2x8", ["mesh.data=2", "mesh.fsdp=8", "data.batch_size=128", "data.seq_len=4096",
                                 "step.microbatches=4", "step.remat=full", "loss.chunk=null"]),
    ("mistral-7b", "h100:8x8", ["mesh.fsdp=64", "data.batch_size=128", "data.seq_len=4096", "step.microbatches=1",
                                "step.remat=dots", "loss.chunk=512"]),
    ("qwen3-8b", "h100:4x8", ["mesh.fsdp=32", "data.batch_size=64", "data.seq_len=4096", "step.remat=none",
                              "loss.chunk=512"]),
    ("qwen3-8b", "h100:64x8", ["mesh.data=8", "mesh.fsdp=64", "data.batch_size=512", "data.seq_len=4096",
                               "step.remat=full"]),
    ("llama3.1-8b", "h100:8", [*DOCUMENTS, "mesh.fsdp=8", "data.batch_size=8"]),
    ("llama3.1-8b", "h100:8", ["mesh.fsdp=8", "data.batch_size=16", "data.seq_len=4096", "step.remat=full",
                               "loss.chunk=null"]),
    ("llama3.1-8b", "h100:16x8", ["step.remat=full"]),
    ("llama3.1-8b", "h100:16x8", []),
    ("llama3.1-8b", "h100:4x8", ["data.batch_size=16", "data.seq_len=4096", "mesh.fsdp=4", "mesh.tensor=8",
                                 "step.remat=full"]),
    ("llama3.1-8b", "h100:4x8", ["data.batch_size=16", "data.seq_len=4096", "mesh.fsdp=8", "mesh.tensor=4",
                                 "step.remat=none", "loss.chunk=512"]),
    ("llama3.1-8b", "a100:8x8", ["data.batch_size=32", "data.seq_len=4096", "mesh.fsdp=8", "mesh.tensor=8",
                                 "step.remat=dots", "loss.chunk=512"]),
    ("llama3.1-70b", "h100:32x8", ["mesh.fsdp=32", "mesh.tensor=8"]),
    ("llama3.1-70b", "h100:32x8", ["data.batch_size=256", "mesh.fsdp=256", "mesh.tensor=1", "step.microbatches=1",
                                   "step.remat=full"]),
    ("llama3.1-70b", "h200:8x8", ["data.batch_size=64", "data.seq_len=4096", "mesh.fsdp=16", "mesh.tensor=4",
                                  "step.microbatches=1"]),
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", action="store_true", help="write benchmarks/results/<date>-memory.json")
    parser.add_argument("--only", default="", help="rows whose topology begins so, e.g. v or h100,h200")
    parser.add_argument("--split", action="store_true", help="only rows whose sequences are split")
    options = parser.parse_args()
    gpu, rows = find_spec("jax_cuda13_plugin") is not None, []
    for name, where, overrides in ROWS:
        topology = find_topology(where)
        if not where.startswith(tuple(options.only.split(","))):
            continue
        if topology.chip.node and not gpu:
            print(f"left out: {name} on {where} (pip install 'jaxscale[aot-gpu]')")
            continue
        config = load_config(name, SYNTHETIC + overrides)
        if options.split and config.mesh.context == 1:
            continue
        kept, _ = compile_one(config, topology)
        documents, platform = costs.packs_documents(config), topology.chip.platform
        report = examine(config, topology, kept)
        predicted = memory(config, kept.mesh, documents=documents, chip=topology.chip)
        flops = sum(m.step_flops for m in costs.matmuls(config, kept.mesh))
        sent = sum(t.step_bytes for t in traffic(config, kept.mesh, platform=platform))
        row = {
            "config": name, "topology": where, "overrides": overrides, "mesh": kept.mesh,
            "predicted_bytes": predicted.peak, "compiled_bytes": report.memory_needed,
            "memory_error": predicted.peak / report.memory_needed - 1,
            "flops_error": flops / report.matmul_flops - 1,
            "sent_error": sent / sum(s.bytes for s in report.sent) - 1,
            "step_seconds_from_compiled": report.time.best, "compile_seconds": kept.compile_seconds,
        }  # fmt: skip
        rows.append(row)
        print(
            f"{name:14s} {where:10s} {kept.mesh!s:28s} HBM predicted {predicted.peak / GIB:6.2f} compiled "
            f"{report.memory_needed / GIB:6.2f} GiB {row['memory_error']:+6.1%}   FLOPs {row['flops_error']:+.2%}   "
            f"bytes sent {row['sent_error']:+.1%}", flush=True,
        )  # fmt: skip
    errors = [abs(row["memory_error"]) for row in rows]
    print(f"memory: mean error {mean(errors):.1%}, largest {max(errors):.1%}")
    if options.record:
        sys.path.insert(0, str(Path(__file__).parent))
        from common import HERE, write_record

        print(write_record("memory", {"rows": rows}, HERE / "results"))


if __name__ == "__main__":
    main()
