"""A round of samples in a run's directory, for a run that is stopped between two steps on it."""

import io
import zipfile
from pathlib import Path

import jax
import numpy as np

from jaxscale.files.whole import write_whole
from jaxscale.rollouts.round import Round

NAME = "round.npz"


def keep_round(out: Path, round_: Round) -> None:
    """Write it whole, by process 0, in place of the one before."""
    if jax.process_index():
        return
    lengths = np.array([len(p) for p in round_.prompts])
    judged = round_.judged if round_.judged is not None else np.zeros(0)
    buffer = io.BytesIO()
    np.savez(
        buffer,
        number=round_.number,
        prompts=np.concatenate([np.asarray(p, np.int32) for p in round_.prompts]),
        prompt_lengths=lengths,
        tokens=round_.tokens,
        log_probs=round_.log_probs,
        lengths=round_.lengths,
        stopped=round_.stopped,
        rewards=round_.rewards,
        judged=judged,
    )
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / NAME, buffer.getvalue())


def kept_round(out: Path, number: int) -> Round | None:
    """The round of this number, if it is the one that is kept and can be read."""
    try:
        with np.load(io.BytesIO((out / NAME).read_bytes())) as file:
            saved = {name: file[name] for name in file.files}
        if int(saved["number"]) != number:
            return None
        ends = np.cumsum(saved["prompt_lengths"])
        prompts = [p.tolist() for p in np.split(saved["prompts"], ends[:-1])]
        arrays = {name: saved[name] for name in ("tokens", "log_probs", "lengths", "stopped", "rewards")}
        return Round(number, prompts, **arrays, judged=saved["judged"] if saved["judged"].size else None)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
