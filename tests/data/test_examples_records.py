"""What a record must be: every way of being none is told in one line with its place, and counted."""

import gzip
import json
import re

import pytest
from made_examples import dataset, records_of, write_records

from jaxscale.data.examples.prepare import prepare_examples
from jaxscale.data.examples.reading import examples_source, read_examples
from jaxscale.data.examples.records import to_example
from jaxscale.data.progress import Progress

U, A = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
S, T = {"role": "system", "content": "s"}, {"role": "tool", "content": "t"}
OTHER = {"role": "assistant", "content": "b"}
EMPTY = {"role": "assistant", "content": " \n"}


def refusal(kind, record):
    with pytest.raises(ValueError, match=r"^/x/f:3: [^\n]*$") as error:
        to_example(kind, record, "f:3", "/x/f:3")
    return str(error.value)


BAD = [
    ("conversations", {"messages": [U]}, "messages ends in a user turn"),
    ("conversations", {"messages": [U, A, T]}, "messages ends in a tool turn"),
    ("conversations", {"messages": [U, EMPTY]}, r"the assistant's turn messages\[1\] is empty"),
    ("conversations", {"messages": [U, {"role": "assistant"}]}, r"messages\[1\] is empty"),
    ("conversations", {"messages": [U, EMPTY, U, A]}, r"messages\[1\] is empty"),
    ("conversations", {"messages": []}, "messages holds no message"),
    ("conversations", {"messages": 5}, "messages is a number, not text or a list"),
    ("conversations", {"messages": [U, "a"]}, r"messages\[1\] is text, not an object"),
    ("conversations", {"messages": [{"role": "human", "content": "q"}, A]}, "'human'; a role is one of system, user"),
    ("conversations", {"messages": [{"content": "q"}, A]}, "role 'None'"),
    ("conversations", {"messages": [U, {"role": "assistant", "content": [{"type": "text"}]}]}, "is a list, not text"),
    ("conversations", {"messages": [U, {"role": "assistant", "content": "\ud800"}]}, "half a surrogate pair"),
    ("conversations", {"prompt": "q", "completion": ""}, r"completion\[0\] is empty"),
    ("conversations", {"prompt": "q", "completion": [U, A]}, "completion begins with a user turn"),
    ("conversations", {"prompt": [U, A], "completion": "a"}, "prompt ends in an assistant turn"),
    ("conversations", {"prompt": "q"}, "has messages, or prompt and completion; this one has 'prompt'"),
    ("conversations", {}, "this one has nothing"),
    ("pairs", {"prompt": "q", "chosen": "a", "rejected": "a"}, "chosen equals rejected"),
    ("pairs", {"chosen": [U, A], "rejected": [U, A]}, "chosen equals rejected"),
    ("pairs", {"chosen": [U, A], "rejected": [S, A]}, "share no first message"),
    ("pairs", {"chosen": "a", "rejected": "b"}, "it has no prompt"),
    ("pairs", {"prompt": "q", "chosen": "a", "rejected": ""}, r"rejected\[0\] is empty"),
    ("pairs", {"prompt": "q", "chosen": [A, U], "rejected": "b"}, "chosen ends in a user turn"),
    ("pairs", {"chosen": [U, A, U, A], "rejected": [U, A, T, A]}, "chosen begins with a user turn"),
    ("pairs", {"prompt": "q", "chosen": "a"}, "a record of pairs has chosen and rejected"),
    ("prompts", {"prompt": [U, A]}, "prompt ends in an assistant turn"),
    ("prompts", {"text": "q"}, "a record of prompts has prompt; this one has 'text'"),
    ("prompts", {"prompt": "q", "answer": "\udfff"}, "half a surrogate pair"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "record", "said"), BAD)
def test_a_bad_record(kind, record, said):
    assert re.search(said, refusal(kind, record))


def test_forms_of_conversations():
    whole = to_example("conversations", {"messages": [S, U, A], "prompt": "ignored", "id": 4}, "f:1", "f:1")
    assert (whole.prompt, whole.answers) == ([], [[S, U, A]])
    texts = to_example("conversations", {"prompt": "q", "completion": "a"}, "f:1", "f:1")
    lists = to_example("conversations", {"prompt": [U], "completion": [A]}, "f:1", "f:1")
    assert texts == lists
    assert texts.prompt == [U]
    assert texts.answers == [[A]]


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"prompt": [U], "chosen": [A], "rejected": "b"},
        {"chosen": [U, A], "rejected": [U, OTHER]},
        {"prompt": None, "chosen": [U, A], "rejected": [U, OTHER]},
        {"prompt": "q", "chosen": [U, A], "rejected": [U, OTHER]},  # both repeat it
    ],
)
def test_forms_of_pairs(record):
    example = to_example("pairs", record, "f:1", "f:1")
    assert example.prompt == [U]
    assert example.answers == [[A], [OTHER]]


def test_a_prompt_that_all_messages_share_ends_before_the_last_turn():
    example = to_example("pairs", {"chosen": [U, A], "rejected": [U, A, U, OTHER]}, "f:1", "f:1")
    assert example.prompt == [U]
    assert example.answers == [[A], [A, U, OTHER]]


def test_other_columns_of_a_prompt_are_kept():
    example = to_example("prompts", {"prompt": "q", "answer": 5, "prompts": None}, "f:1", "f:1")
    assert example.other == {"answer": 5, "prompts": None}


# --- files ----------------------------------------------------------------------------------------------------


def read(paths, kind="conversations", skip_bad=0):
    source = examples_source(kind, paths)
    progress = Progress("", 0)
    progress.bad.allowed = skip_bad
    return list(read_examples(source, progress)), progress.bad.reasons


def test_lines_compressed_or_not(tmp_path):
    records = records_of("conversations", 5)
    plain = write_records(tmp_path / "a.jsonl", records)
    with gzip.open(tmp_path / "b.jsonl.gz", "wb") as file:
        file.write(b"\xef\xbb\xbf" + plain.read_bytes().replace(b"\n", b"\n\n"))
    found, _ = read([plain])
    again, _ = read([tmp_path / "b.jsonl.gz"])
    assert [e.answers for e in found] == [e.answers for e in again] == [[r["messages"]] for r in records]
    assert [e.name for e in found] == [f"a.jsonl:{i}" for i in range(1, 6)]
    assert [e.name for e in again] == [f"b.jsonl.gz:{i}" for i in range(1, 11, 2)]


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    records = [{"messages": [{**U, "name": "x"}, A], "n": 1}, {"messages": [S, U, OTHER], "n": 2}]
    parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "a.parquet")
    found, _ = read([tmp_path])
    assert [e.answers for e in found] == [[r["messages"]] for r in records]  # without the keys that are null
    assert [e.where for e in found] == [f"{tmp_path}/a.parquet: row {i}" for i in range(2)]


def test_parquet_with_text_that_is_not_utf8(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    bad = pyarrow.array([b"\xff", b"b"], pyarrow.binary()).view(pyarrow.string())
    parquet.write_table(pyarrow.table({"prompt": ["p", "q"], "completion": bad}), tmp_path / "a.parquet")
    found, reasons = read([tmp_path / "a.parquet"], skip_bad=1)
    assert [e.answers for e in found] == [[[OTHER]]]
    assert "a.parquet: row 0 is not UTF-8" in reasons[0]


def test_bad_records_are_counted_wherever_they_are_found(tmp_path):
    lines = ["{", "[]", json.dumps({"messages": [U]}), json.dumps({"messages": [U, {**A, "content": "<|im_end|>"}]})]
    (tmp_path / "a.jsonl").write_text("\n".join([*lines, json.dumps({"messages": [U, A]})]))
    source = examples_source("conversations", [tmp_path / "a.jsonl"])
    with pytest.raises(ValueError, match=r"a\.jsonl:1 is not JSON: .*skip such records with --skip-bad N"):
        prepare_examples(source, "byte", tmp_path / "out", progress=lambda p: None)
    with pytest.raises(ValueError, match=r"a\.jsonl:4: .* spells the special token .*; 3 bad records were skipped"):
        prepare_examples(source, "byte", tmp_path / "out", skip_bad=3, progress=lambda p: None)
    assert not (tmp_path / "out").exists()
    summary = prepare_examples(source, "byte", tmp_path / "out", skip_bad=4, progress=lambda p: None)
    assert summary.documents == 1
    assert summary.notes[0].startswith("4 bad records were skipped (--skip-bad 4): ")
    assert all(f"a.jsonl:{n}" in summary.notes[0] for n in range(1, 5))


def test_what_parquet_holds_and_json_cannot_is_a_bad_record(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pyarrow.table({"prompt": ["p", "q"], "at": pyarrow.array([None, 5], pyarrow.timestamp("s"))})
    parquet.write_table(table, tmp_path / "a.parquet")
    source = examples_source("prompts", [tmp_path / "a.parquet"])
    with pytest.raises(ValueError, match=r"row 1: a column is no plain value: .*datetime"):
        prepare_examples(source, "byte", tmp_path / "out", progress=lambda p: None)


def test_nothing_in_the_files(tmp_path):
    with pytest.raises(ValueError, match="no conversations in 1 files; give at least one"):
        dataset(tmp_path, "conversations", [])
