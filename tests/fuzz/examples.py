"""Records of conversations, pairs and prompts, templates as Jinja, and datasets of examples, each changed."""

import contextlib
import json
import random
from pathlib import Path

from hypothesis import strategies as st
from made_examples import dataset, records_of

from fuzz import mutations as mu
from fuzz.targets import Case, Files, Target
from jaxscale.data.examples.prepare import prepare_examples
from jaxscale.data.examples.prompts import open_prompts
from jaxscale.data.examples.reading import examples_source
from jaxscale.data.examples.rows import example_rows
from jaxscale.data.examples.store import open_example_store, template_of
from jaxscale.data.examples.templates import NAMED

TOKENIZER = (Path(__file__).parents[1] / "data" / "templates" / "tokenizer.json").read_bytes()
U, A = {"role": "user", "content": "q: ž"}, {"role": "assistant", "content": "a"}
RECORDS = {
    "conversations": [
        {"messages": [{"role": "system", "content": "s"}, U, A, {"role": "tool", "content": "t"}, A], "tools": []},
        {"prompt": "p", "completion": "c"},
        {"prompt": [U], "completion": [A, U, A]},
    ],
    "pairs": [
        {"prompt": "p", "chosen": "c", "rejected": "r"},
        {"chosen": [U, A, U, A], "rejected": [U, A, U, {"role": "assistant", "content": "b"}]},
    ],
    "prompts": [{"prompt": [U, A, U], "answer": 5, "more": [None, {"x": "y"}]}, {"prompt": "p"}],
}
TEMPLATES = [*(named.text for named in NAMED.values()), "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"]
PIECES = (
    "{% if %}", "{% for m in messages %}", "{% endfor %}", "{{ messages }}", "{{ 1 / 0 }}", "{{ ''.__class__ }}",
    "{{ cycler.__init__.__globals__ }}", "{{ raise_exception('no\\nno') }}", "{{ range(10**9) | list }}", "{% break %}",
    "{{ messages[9].content }}", "{{ messages.pop() }}", "{{ 'x' * 1000 }}", "{{ '\\ud800' }}", "{{ '<|im_end|>' }}",
    "{% include 'x' %}", "{% import 'x' as y %}", "{% set ns = namespace(a=1) %}", "{{ self }}", "{{ tools | tojson }}",
    "{% generation %}", "{% endgeneration %}", "{{ strftime_now('%Y') }}", "{{ bos_token }}", "{# ", "{{ dict(a=1) }}",
)  # fmt: skip


def prepare(directory: Path, kind: str, template: str | None, tokenizer: str, skip_bad: int) -> None:
    prepare_examples(
        examples_source(kind, ["w/records.jsonl"]),  # type: ignore[arg-type]
        tokenizer,
        "w/out",
        template=template,
        skip_bad=skip_bad,
        validation_fraction=0,
        progress=lambda state: None,
    )
    read_dataset(directory / "w" / "out", "once", kind)


def read_dataset(place: Path, verify: str, kind: str) -> None:
    """All that a run or a rollout reads of it."""
    store = open_example_store(place, verify=verify)  # type: ignore[arg-type]
    template_of(place)
    if kind == "prompts":
        prompts = open_prompts(place, verify=verify)  # type: ignore[arg-type]
        for i in range(len(prompts)):
            prompts.tokens(i), prompts.record(i)
        return
    rows = example_rows(store, 300)
    for i in range(len(rows)):
        rows.row(i)


@st.composite
def record_cases(draw) -> Case:
    kind = draw(st.sampled_from(sorted(RECORDS)))
    lines = [draw(mu.json_text(draw(st.sampled_from(RECORDS[kind])))) for _ in range(draw(st.integers(1, 3)))]
    files: Files = {"w/records.jsonl": b"\n".join(lines), "w/tokenizer.json": TOKENIZER}
    template = draw(st.sampled_from([*NAMED, *NAMED, None, "own"]))
    tokenizer = draw(st.sampled_from(["byte", "w/tokenizer.json", "char"]))
    return Case(files, (kind, template, tokenizer, draw(st.sampled_from([0, 0, 2]))))


@st.composite
def template_cases(draw) -> Case:
    text = draw(st.sampled_from(TEMPLATES))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(text)))
        kind = draw(st.sampled_from(["piece", "piece", "cut", "drop", "text"]))
        if kind == "piece":
            text = text[:at] + draw(st.sampled_from(PIECES)) + text[at:]
        elif kind == "cut":
            text = text[:at]
        elif kind == "drop":
            text = text[:at] + text[at + draw(st.integers(1, 30)) :]
        else:
            text = text[:at] + draw(st.text(max_size=9)) + text[at:]
    config: object = {"chat_template": text, "eos_token": "<|im_end|>", "bos_token": "<|begin_of_text|>"}
    if draw(st.integers(0, 3)) == 0:
        config = draw(mu.changed(config))
    kind = draw(st.sampled_from(sorted(RECORDS)))
    records = b"\n".join(json.dumps(record).encode() for record in RECORDS[kind])
    files: Files = {
        "w/records.jsonl": records,
        "w/tokenizer.json": TOKENIZER,
        "w/tokenizer_config.json": json.dumps(config).replace(f'"{mu.DEEP}"', "[" * 200 + "]" * 200).encode(),
    }
    return Case(files, (kind, "own", "w/tokenizer.json", 0))


def examples_datasets(folder: Path) -> dict[str, dict[str, bytes]]:
    random.seed(0)
    for kind in RECORDS:
        dataset(folder / kind, kind, records_of(kind, 8), validation_fraction=0, shard_tokens=90)
    return {
        kind: {f"data/{p.name}": p.read_bytes() for p in sorted((folder / kind / "data").iterdir())} for kind in RECORDS
    }


@st.composite
def dataset_cases(draw, datasets: dict[str, dict[str, bytes]]) -> Case:
    kind = draw(st.sampled_from(sorted(datasets)))
    files: Files = dict(datasets[kind])
    index = json.loads(files["data/index.json"])  # type: ignore[arg-type]
    how = draw(st.sampled_from(["index", "index", "file", "file", "names", "link", "gone"]))
    if how == "index":
        index["examples"] = draw(mu.changed(index["examples"]))
        files["data/index.json"] = json.dumps(index).replace(f'"{mu.DEEP}"', "[" * 200 + "]" * 200).encode()
    elif how == "names":
        beside = draw(st.sampled_from(["roles", "lengths"]))
        name = draw(st.sampled_from([*mu.STRINGS, "../../outside/canary.json", ".verified.json", "index.json"]))
        index["examples"]["splits"]["train"][beside][0]["file"] = name
        files["data/index.json"] = json.dumps(index).encode()
    else:
        name = draw(st.sampled_from(sorted(name for name in files if not name.endswith(".bin"))))
        if how == "gone":
            del files[name]
        elif how == "link":
            files[name] = Path(draw(st.sampled_from(["../../outside/canary.json", "/etc/passwd", "nowhere", ".."])))
        else:
            files[name] = draw(mu.damaged(files[name]))  # type: ignore[arg-type]
    return Case(files, (draw(st.sampled_from(["always", "once", "size"])), kind))


def read_changed(directory: Path, verify: str, kind: str) -> None:
    read_dataset(Path("data"), verify, kind)


def of_datasets(folder: Path) -> st.SearchStrategy[Case]:
    with contextlib.chdir("/"):
        return dataset_cases(examples_datasets(folder))


OUT = ("w/out", "w/.out.")
TARGETS = [
    Target("records", 800, lambda folder: record_cases(), prepare, OUT),
    Target("templates", 800, lambda folder: template_cases(), prepare, OUT),
    Target("examples", 800, of_datasets, read_changed, ("data/.verified.json",)),
]
