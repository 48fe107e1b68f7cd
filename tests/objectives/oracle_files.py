"""What `oracle/make_numbers.py` has written, read for tests; arrays as float64."""

import functools
import json
from pathlib import Path

import numpy as np

ORACLE = Path(__file__).parent / "oracle"
LLAMA = ORACLE / "llama"
ABOUT = json.loads((ORACLE / "cases.json").read_text())
CASES, MAX_COMPLETION = ABOUT["cases"], ABOUT["max_completion"]
ROW = 40  # tokens of a row


@functools.cache
def arrays(file: str) -> dict[str, np.ndarray]:
    with np.load(ORACLE / file) as found:
        return dict(found)


def batch_of(name: str) -> dict[str, np.ndarray]:
    """`tokens` [rows, 40], `prompt` and `completion` (their lengths), and what TRL says of each target."""
    own = {
        key.removeprefix(f"{name}/"): value
        for key, value in arrays("batches.npz").items()
        if key.startswith(f"{name}/")
    }
    return {key: value.astype(np.float64) if value.dtype == np.float32 else value for key, value in own.items()}


def trained(batch: dict[str, np.ndarray], *, prompt: bool = False) -> np.ndarray:
    """Where the target is of a completion, or of the prompt too; the first token is no target."""
    place, start, end = (
        np.arange(ROW),
        batch["prompt"][:, None] - 1,
        (batch["prompt"] + batch["completion"])[:, None] - 1,
    )
    return (place < end) & ((place >= start) | prompt)


def chosen_and_rejected(name: str, *, reference: bool, prompt: bool = False) -> tuple[dict, dict]:
    """The two halves of a batch of pairs, for `formulas.preference`; `prompt`: its tokens count in orpo's nll."""
    batch = batch_of(name)
    columns = {"log_p": batch["log_p"], "mask": trained(batch), "nll_mask": trained(batch, prompt=prompt)}
    if reference:
        columns["reference"] = batch["reference"]
    halves = {key: np.split(value, 2) for key, value in columns.items()}
    chosen, rejected = ({key: value[i] for key, value in halves.items()} for i in (0, 1))
    return chosen, rejected
