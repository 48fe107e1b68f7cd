"""`jaxscale export`."""

from pathlib import Path
from typing import Annotated

import typer

PLACE = 17
EXAMPLE = "jaxscale export runs/first published/first"
UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


def verb(
    run: Annotated[Path, typer.Argument(help="The directory of a run.")],
    out: Annotated[Path, typer.Argument(help="The directory to write.")],
    step: Annotated[int | None, typer.Option(min=0, help="Step of the checkpoint; by default the newest.")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="bfloat16, float16 or float32; by default bfloat16, with --adapter float32.")
    ] = None,
    adapter: Annotated[bool, typer.Option("--adapter", help="Write only LoRA's matrices, as PEFT reads them.")] = False,
    max_shard: Annotated[str, typer.Option(help="Maximum size of a file, e.g. 5GB or 500MB.")] = "5GB",
    process: Annotated[
        int, typer.Option(min=0, help="The number of this process, from 0; process 0 finishes last.")
    ] = 0,
    processes: Annotated[
        int, typer.Option(min=1, help="Number of processes that share the files, e.g. SLURM tasks.")
    ] = 1,
    wait: Annotated[
        float, typer.Option(min=0, help="Process 0 gives up after this many seconds without progress.")
    ] = 600.0,
) -> None:
    """Write a checkpoint as config.json and safetensors. Transformers and inference engines read these files."""
    from jaxscale.serving.export import Share, export

    share = Share(process, processes, wait)
    exported = export(run, out, step=step, dtype=dtype, most=size(max_shard), share=share, only_adapter=adapter)
    more = ", averaged parameters" if exported.averaged else ""
    if not exported.finished:
        done = f"{len(exported.files)} files, {exported.bytes:,} bytes"
        print(f"process {process} of {processes}: {done}; process 0 ends it")
        return
    kind = "PEFT's adapter" if adapter else exported.family
    print(f"{out}: step {exported.step} of {run} as {kind}, {exported.bytes:,} bytes in {exported.dtype}{more}")
    if not exported.tokenizer and not adapter:
        print("without a tokenizer.json: the run has none")


def size(text: str) -> int:
    """Bytes."""
    number, unit = text[:-2], text[-2:].upper()
    if unit not in UNITS or not number.isdigit() or not int(number):
        raise ValueError(f"--max-shard {text}: give a number with KB, MB or GB, e.g. 5GB")
    return int(number) * UNITS[unit]
