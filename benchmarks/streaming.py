"""A published model in and out, with the memory that it takes, and Llama-3.1-405B's on paper.

    python benchmarks/streaming.py --gigabytes 4        # import, export by two processes, every tensor compared
    python benchmarks/streaming.py --paper              # of models/llama3.1-405b, in milliseconds

Memory is the peak of RssAnon in /proc/PID/status, looked at every 20 ms: pages that the kernel cannot drop. Pages of
mapped files are apart (RssFile), as reading maps the files. The import runs on a CPU, whose memory is the device's as
well: what it takes beyond the parameters is what a host with accelerators would need.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxscale import config as cfg
from jaxscale.config.published import as_theirs
from jaxscale.interop import tensors
from jaxscale.interop.weights import Tensors
from jaxscale.serving.export import DTYPES, files_of, write_json

GIB, POLL_SECONDS = 2**30, 0.02
LLAMA = {"name": "synthetic", "num_heads": 16, "num_kv_heads": 4, "embed_dim": 2048, "mlp_dim": 8192,
         "vocab_size": 32_000, "max_seq_len": 2048}  # fmt: skip
# bfloat16 parameters and an optimizer of small state: a run that this machine's memory holds beside the page cache
OPTIONS = ["step.param_dtype=bfloat16", "optimizer.name=adafactor", "runtime.platform=cpu", "mesh={data: 1}",
           "step.remat=full", "data.seq_len=128", "data.batch_size=1"]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--gigabytes", type=float, default=4.0, help="of the synthetic model, in bfloat16")
    parser.add_argument("--processes", type=int, default=2, help="of the export")
    parser.add_argument("--paper", action="store_true", help="only what the config of 405B says")
    parser.add_argument("--folder", type=Path, default=None, help="for three times as many bytes; by default a new one")
    options = parser.parse_args()
    if not options.paper:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            measure(Path(folder), options.gigabytes, options.processes)
    paper("models/llama3.1-405b")


# --- what is measured ---------------------------------------------------------------------------------------------


def measure(folder: Path, gigabytes: float, processes: int) -> None:
    model = synthetic(gigabytes)
    every = Tensors("llama", model)
    files = files_of(every, "bfloat16", 10**9)
    write_model(folder / "model", model, every)
    total = sum(files.bytes)
    print(f"{model.num_layers} layers, {total / 1e9:.2f} GB in {len(files.names)} files; largest tensor "
          f"{files.largest[0]}, {files.largest[1] / 1e6:.0f} MB")  # fmt: skip
    brought = watched([["import", folder / "model", *OPTIONS, "--out", folder / "run"]])[0]
    print(f"import: {brought.seconds:.0f} s, peak {brought.peak / 1e9:.2f} GB anonymous, of which {total / 1e9:.2f} "
          "are the parameters on the device")  # fmt: skip
    share = ["--max-shard", "1GB", "--processes", processes]
    given = watched([["export", folder / "run", folder / "out", *share, "--process", i] for i in range(processes)])
    for process, found in enumerate(given):
        print(
            f"export, process {process} of {processes}: {found.seconds:.0f} s, peak {found.peak / 1e9:.2f} GB anonymous"
        )
    before, after = tensors.tensors(folder / "model"), tensors.tensors(folder / "out")
    assert set(before) == set(after)
    for name, place in before.items():
        assert np.array_equal(place.read().view(np.uint16), after[name].read().view(np.uint16)), name
    print(f"{len(before)} tensors are equal bit by bit")


def synthetic(gigabytes: float) -> cfg.Model:
    """A Llama with as many layers as come nearest to that many bytes in bfloat16."""
    sizes = [sum(files_of(Tensors("llama", cfg.Model(**LLAMA, num_layers=n)), "bfloat16", 10**9).bytes) for n in (1, 2)]
    layers = round((gigabytes * 1e9 - sizes[0]) / (sizes[1] - sizes[0])) + 1
    return cfg.Model(**LLAMA, num_layers=max(1, layers))


def write_model(directory: Path, model: cfg.Model, every: Tensors) -> None:
    """Files of random numbers, a tensor at a time."""
    directory.mkdir()
    files, kind = files_of(every, "bfloat16", 10**9), DTYPES["bfloat16"]
    noise = np.random.default_rng(0).standard_normal(2**20 - 3, np.float32).astype(kind)  # no row begins alike
    for name, group in zip(files.names, files.groups, strict=True):
        shapes = {tensor: every.shapes[tensor] for tensor in group}
        arrays = (np.resize(np.roll(noise, len(tensor)), shape) for tensor, shape in shapes.items())
        tensors.write(directory / name, shapes, kind, arrays)
    if len(files.names) > 1:
        index = tensors.index_of(zip(files.names, files.groups, strict=True), sum(files.bytes))
        (directory / tensors.INDEX).write_text(index)
    write_json(directory / "config.json", as_theirs(model, dtype="bfloat16", separator=1))


@dataclass
class Watched:
    """Of one process: its wall time, and the most anonymous memory seen, in bytes."""

    seconds: float = 0.0
    peak: int = 0


def watched(commands: list[list[object]]) -> list[Watched]:
    """`jaxscale` with each of these words, all at one time. RuntimeError where one fails."""
    program = "from jaxscale.cli import main; main()"
    start = time.monotonic()
    running = [subprocess.Popen([sys.executable, "-c", program, *map(str, words)], stdout=subprocess.DEVNULL,
                                env=os.environ | {"JAX_PLATFORMS": "cpu"}) for words in commands]  # fmt: skip
    found = [Watched() for _ in running]
    while any(child.poll() is None for child in running):
        for child, one in zip(running, found, strict=True):
            if child.poll() is None:
                one.peak, one.seconds = max(one.peak, anonymous(child.pid)), time.monotonic() - start
        time.sleep(POLL_SECONDS)
    if failed := [child.returncode for child in running if child.returncode]:
        raise RuntimeError(f"a process ended with exit code {failed[0]}")
    return found


def anonymous(pid: int) -> int:
    """Bytes; 0 of a process that has just ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)


# --- on paper -----------------------------------------------------------------------------------------------------


def paper(name: str, rate: float = 1e9) -> None:
    """From the config: files, the largest tensor, and seconds of writing at so many bytes per second and process.

    Reading is not in it: import and export read each byte once.
    """
    model = cfg.load_config(name).model
    every = Tensors("llama", model)
    files = files_of(every, "bfloat16", 5 * 10**9)
    print(f"\n{name} in bfloat16: {sum(files.bytes) / 1e9:.1f} GB, {len(every.shapes)} tensors in {len(files.names)} "
          f"files of 5 GB; the largest, {files.largest[0]}, has {files.largest[1] / 1e9:.2f} GB")  # fmt: skip
    print(f"seconds to write its files, at {rate / 1e9:g} GB/s a process:")
    for processes in (1, 8, 16, 64, len(files.names)):
        print(f"  {processes:4} processes: {files.seconds(processes, rate):6.1f} s")


if __name__ == "__main__":
    main()
