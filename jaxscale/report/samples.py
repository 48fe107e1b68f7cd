"""What the models of runs wrote: the newest lines of `samples.jsonl` in a run's directory."""

import json
from typing import Any

from jaxscale.files.redact import redact
from jaxscale.report.inputs import SAMPLES, Run
from jaxscale.report.plots import Section, Text, finite

MOST_TEXTS, MOST_CHARACTERS = 12, 4000  # of a run; of a text


def samples_sections(runs: list[Run], names: list[str]) -> list[Section]:
    """A section where any run has samples; none otherwise. Source i is run i."""
    section = Section("samples", "Samples")
    for i, (run, name) in enumerate(zip(runs, names, strict=True)):
        texts = [text for record in reversed(run.samples) for text in texts_of(record, i)]
        section.texts += texts[:MOST_TEXTS]
        if len(texts) > MOST_TEXTS:
            left = len(texts) - MOST_TEXTS
            section.about.append(f"{name}: the newest {MOST_TEXTS} samples; {left} more are in {run.path / SAMPLES}.")
    return [section] if section.texts else []


def texts_of(record: dict[str, Any], source: int) -> list[Text]:
    """A record's samples; what has no text is left out."""
    samples, prompt = record.get("samples"), record.get("prompt")
    prompt_text = prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False)
    texts = []
    for one in samples if isinstance(samples, list) else []:
        if isinstance(one, dict) and isinstance(text := one.get("text"), str):
            reward, step = finite(one.get("reward")), finite(record.get("step"))
            about = [f"step {step:,}"] if step is not None else []
            about += [f"reward {reward:.4g}"] if reward is not None else []
            kept = text[:MOST_CHARACTERS]
            texts.append(Text(source, redact(prompt_text), redact(kept), ", ".join(about), len(text) - len(kept)))
    return texts
