"""The texts of the batches: random tokens, lengths from 1 to 30, and what a policy's rows need beside them."""

import numpy as np

END, PAD, ROW = 59, 60, 40  # random tokens are below END: a reward's place is the last token that is not PAD
Rows = list[tuple[list[int], list[int]]]  # prompt and completion


def rows(seed: int, prompts: list[int], completions: list[int]) -> Rows:
    """Random tokens; every completion ends with END."""
    rng = np.random.default_rng(seed)
    return [
        (rng.integers(0, END, p).tolist(), [*rng.integers(0, END, c - 1).tolist(), END])
        for p, c in zip(prompts, completions, strict=True)
    ]


PROMPTS = [1, 10, 3, 7, 2, 5, 10, 4]
SFT = rows(1, PROMPTS, [12, 9, 17, 11, 20, 15, 8, 13])
LENGTHS = rows(2, PROMPTS, [1, 30, 2, 29, 1, 3, 30, 1])
CHOSEN = rows(3, PROMPTS, [1, 30, 12, 5, 17, 2, 8, 21])
REJECTED = rows(4, PROMPTS, [9, 4, 30, 1, 11, 19, 3, 14])
REJECTED = [(prompt, answer) for (prompt, _), (_, answer) in zip(CHOSEN, REJECTED, strict=True)]
# A mean over tokens is one over pairs where all chosen completions are equally long; no token predicts a prompt of one
EVEN = rows(6, [1] * 8, [9] * 8)
UNLIKE = [(prompt, answer) for (prompt, _), (_, answer) in zip(EVEN, REJECTED, strict=True)]
GROUPS = rows(5, [4, 4, 4, 4, 9, 9, 9, 9], [1, 30, 7, 16, 3, 22, 11, 2])
GROUPS = [(GROUPS[4 * (i // 4)][0], answer) for i, (_, answer) in enumerate(GROUPS)]
ADVANTAGES = np.array([1.2, -0.8, 0.5, -0.9, -1.4, 0.7, 0.0, 0.7], np.float32)
# Of a row's mean log-ratio: two rows are beyond each clip, of which it bites where the advantage has the same sign
SHIFTS = np.array([-0.4, 0.4, 0.0, -0.1, -0.4, 0.4, 0.2, 0.1], np.float32)


def padded(examples: Rows) -> dict[str, np.ndarray]:
    tokens = np.full((len(examples), ROW), PAD, np.int32)
    for row, (prompt, answer) in zip(tokens, examples, strict=True):
        row[: len(prompt) + len(answer)] = prompt + answer
    prompts, answers = zip(*examples, strict=True)
    return {"tokens": tokens, "prompt": np.array([*map(len, prompts)]), "completion": np.array([*map(len, answers)])}
