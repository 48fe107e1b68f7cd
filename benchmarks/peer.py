"""Our ahead-of-time compile beside MaxText's: Llama-3.1-8B for 64 x v5p, fsdp=64, one sequence of 4096 a chip.

    python benchmarks/peer.py --record                                       # ours, beside MaxText's recorded figures
    python benchmarks/peer.py --record --maxtext 'COMMAND' --maxtext-hlo F   # theirs again too, in turns

COMMAND is a shell command that runs MaxText 0.2.5's `maxtext.trainers.pre_train.train_compile`, in an environment of
its own, with model_name=llama3.1-8b compile_topology=v5p-128 ici_fsdp_parallelism=64 per_device_batch_size=1
max_target_length=4096 remat_policy=full dtype=bfloat16 weight_dtype=float32 attention=flash dataset_type=synthetic
enable_checkpointing=false; F holds the text of its compiled program. Both programs are read by the same reader. Needs
the aot-tpu extra.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from jaxscale.compiled.collectives import collectives
from jaxscale.compiled.hlo import parse
from jaxscale.compiled.work import matmuls

sys.path.insert(0, str(Path(__file__).parent))
from common import HERE, machine, spread_text, write_record

OURS = ["llama3.1-8b", "--topology", "v5p:4x4x4", "data.kind=synthetic", "data.path=null", "data.batch_size=64",
        "data.seq_len=4096", "step.remat=full", "loss.chunk=512"]  # fmt: skip
# MaxText 0.2.5, jax 0.12.0.1, libtpu 0.0.51 on 2026-11-21 and 0.0.52 on 2026-11-28: the same; read by the same reader
MAXTEXT = {
    "arguments": 1_508_913_152, "temporaries": 4_507_779_072, "peak_bytes": 1_508_913_152 + 4_507_779_072,
    "matmul_flops": 226_215_927_480_320, "sent_bytes": 44_045_967_480, "asynchronous_bytes": 0,
}  # fmt: skip


def figures(hlo: str) -> dict[str, float]:
    """FLOPs and bytes sent of a device and step, loops multiplied out."""
    program = parse(hlo)
    sent = collectives(program, {"fsdp": 64})
    return {
        "matmul_flops": sum(m.flops * m.times for m in matmuls(program)),
        "sent_bytes": sum(c.bytes * c.times for c in sent),
        "asynchronous_bytes": sum(c.bytes * c.times for c in sent if c.asynchronous),
    }


def compile_ours() -> tuple[float, dict[str, Any]]:
    """From command to answer, with nothing kept from before; and what the program needs."""
    with tempfile.TemporaryDirectory() as home:
        hlo = Path(home) / "step.txt"
        program = "from jaxscale.cli import main; main()"
        command = [sys.executable, "-c", program, "compile", *OURS, "--json", "--hlo", str(hlo)]
        env, start = os.environ | {"HOME": home}, time.perf_counter()
        out = subprocess.run(command, capture_output=True, text=True, check=True, env=env).stdout
        seconds = time.perf_counter() - start
        memory = json.loads(out)["report"]["memory"]
        code = memory.pop("code")
        return seconds, figures(hlo.read_text()) | {"peak_bytes": sum(memory.values()), "code": code}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--maxtext", help="shell command of MaxText's compile, to time it in turns with ours")
    parser.add_argument("--maxtext-hlo", type=Path, help="text of its compiled program, to be read again")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    about = machine()
    theirs = MAXTEXT | (figures(options.maxtext_hlo.read_text()) if options.maxtext_hlo else {})
    seconds: dict[str, list[float]] = {"ours": [], "maxtext": []}
    for _ in range(options.rounds):
        own, ours = compile_ours()
        seconds["ours"].append(own)
        if options.maxtext:
            start = time.perf_counter()
            subprocess.run(options.maxtext, shell=True, check=True, capture_output=True)
            seconds["maxtext"].append(time.perf_counter() - start)
    for name in ("peak_bytes", "matmul_flops", "sent_bytes", "asynchronous_bytes"):
        ratio = f"{ours[name] / theirs[name]:.3f}" if theirs[name] else ""
        print(f"{name:20s} ours {ours[name]:22,.0f}  MaxText {theirs[name]:22,.0f}  {ratio}")
    if seconds["maxtext"]:
        ratios = [a / b for a, b in zip(seconds["ours"], seconds["maxtext"], strict=True)]
        print(f"command to answer, ours : MaxText {spread_text(ratios)} in {len(ratios)} rounds, {seconds}")
    if options.record:
        record = {"machine": about, "ours": ours, "maxtext": theirs, "seconds": seconds}
        print(write_record("peer", record, HERE / "results"))


if __name__ == "__main__":
    main()
