"""Small files of conversations, pairs and prompts, and datasets of them."""

import json
import random
from pathlib import Path

from jaxscale.data.examples.prepare import prepare_examples
from jaxscale.data.examples.reading import examples_source


def words(r: random.Random, most: int = 30) -> str:
    return "".join(r.choice("abcdé \n") for _ in range(r.randint(0, most))).strip() + r.choice("xyz")


def conversation(r: random.Random) -> dict:
    turns = [{"role": role, "content": words(r)} for _ in range(r.randint(1, 3)) for role in ("user", "assistant")]
    return {"messages": [*([{"role": "system", "content": words(r)}] if r.random() < 0.3 else []), *turns]}


def pair(r: random.Random) -> dict:
    return {"prompt": words(r), "chosen": words(r) + "!", "rejected": words(r)}


def prompt(r: random.Random) -> dict:
    return {"prompt": words(r), "answer": r.randint(0, 9), "more": {"é": [None, words(r)]}}


MAKE = {"conversations": conversation, "pairs": pair, "prompts": prompt}


def write_records(path: Path, records: list) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def records_of(kind: str, count: int, seed: int = 0) -> list[dict]:
    r = random.Random(seed)
    return [MAKE[kind](r) for _ in range(count)]


def dataset(place: Path, kind: str, records: list, name: str = "data", **options):
    """The records as a dataset, and the summary of its preparation."""
    place.mkdir(parents=True, exist_ok=True)
    source = examples_source(kind, [write_records(place / f"{name}.jsonl", records)])
    options = {"tokenizer": "byte", "template": "plain" if kind == "pairs" else "chatml"} | options
    return prepare_examples(source, out=place / name, progress=lambda state: None, **options)
