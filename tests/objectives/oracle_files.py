"""What `oracle/make_numbers.py` has written, read for tests; arrays as float64."""

import functools
import json
from pathlib import Path

import numpy as np

from jaxscale.data.columns import DTYPES

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


# --- as rows of ours --------------------------------------------------------------------------------------------


def rows_of(batch: dict[str, np.ndarray], weights: str = "tokens") -> dict[str, np.ndarray]:
    """The columns of rows of 40 tokens, a text in each; `weights` `rows`: each row counts 1, and not each token."""
    mask = trained(batch)
    columns = {
        "tokens": batch["tokens"],
        "targets": np.roll(batch["tokens"], -1, 1),
        "weights": mask / mask.sum(1, keepdims=True) if weights == "rows" else mask,
        "segments": np.ones_like(batch["tokens"]),
        "positions": np.tile(np.arange(ROW), (len(mask), 1)),
    }
    columns |= {key: batch[key] for key in ("old", "reference") if key in batch}
    if "advantages" in batch:
        columns["advantages"] = batch["advantages"][:, None] * mask
    return typed(columns)


def pairs_of(batch: dict[str, np.ndarray], a_row: int = 1) -> dict[str, np.ndarray]:
    """The columns of rows of `a_row` pairs: a chosen text, the rejected one right after it, ..., and padding."""
    texts, lengths = rows_of(batch), batch["prompt"] + batch["completion"]
    count = len(lengths) // 2
    columns = {name: np.zeros((count // a_row, 2 * ROW * a_row)) for name in (*texts, "ends")}
    for row in range(count // a_row):
        at = 0
        for number in range(2 * a_row):
            text = row * a_row + number // 2 + count * (number % 2)
            place, sign = slice(at, at + lengths[text]), 1 - 2 * (number % 2)
            for name, values in texts.items():
                columns[name][row, place] = values[text, : lengths[text]]
            columns["segments"][row, place] = number + 1
            columns["weights"][row, place] *= sign
            columns["ends"][row, place.stop - 1] = sign
            at = place.stop
        columns["segments"][row, at:] = 2 * a_row + 1
        columns["positions"][row, at:] = np.arange(2 * ROW * a_row - at)
    return typed(columns)


def typed(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: values.astype(DTYPES.get(name, np.float32)) for name, values in columns.items()}
