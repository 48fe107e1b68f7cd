"""The task of `demos/objectives.py`: sort four digits. What teachers wrote, and what answers are worth."""

import itertools
import json
import random
from pathlib import Path

RIGHT = 0.3  # the share of a teacher's answers that are sorted; the others hand the digits back
HELD_OUT = 512


def exact(prompts: list[str], completions: list[str], **columns: list[object]) -> list[float]:
    """1 for the digits in order, else 0: what can be checked."""
    return [float(c == answer(p)) for p, c in zip(prompts, completions, strict=True)]


def answer(prompt: str) -> str:
    return "".join(sorted(prompt.removesuffix(">")))


def write(out: Path, *, count: int = 8000) -> None:
    """`chat.jsonl` of teachers, `prompts.jsonl` to train on, `held-out.jsonl` that no run trains on."""
    rng = random.Random(0)
    every = ["".join(digits) + ">" for digits in itertools.product("0123456789", repeat=4)]
    rng.shuffle(every)
    held_out, others = every[:HELD_OUT], every[HELD_OUT:]
    taught = [
        {"prompt": p, "completion": answer(p) if rng.random() < RIGHT else p.removesuffix(">")} for p in others[:count]
    ]
    for name, records in (
        ("chat", taught),
        ("prompts", [{"prompt": p} for p in others]),
        ("held-out", [{"prompt": p} for p in held_out]),
    ):
        (out / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
