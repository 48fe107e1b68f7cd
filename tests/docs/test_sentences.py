"""Sentences of the pages are short: 18 words on average, none much longer than 45."""

import re
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "benchmarks/README.md")),
    *sorted(DOCS.rglob("*.md")),
]
MEAN = 18
LONGEST = 46
FEW = 5  # a page with fewer sentences has no mean worth holding

GLOSSARY = re.compile(r"^```\{glossary\}\n(.*?)^```$", re.MULTILINE | re.DOTALL)  # prose in a fence
FENCE = re.compile(r"^( *)(```+|~~~+|:::+).*?^\1\2 *$", re.MULTILINE | re.DOTALL)
COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
NO_PROSE = re.compile(r"^( {4}\S| *(#|\||!\[|:\w+:|\(\w+\)=|\$\$))")  # code, heading, table, picture ...
ITEM = re.compile(r"^ *(?:[-*+:]|\d+\.) +")
LINK = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")
CODE = re.compile(r"(`+)(?!`).+?\1", re.DOTALL)
URL = re.compile(r"<?https?://[^\s>)]*[^\s>).,;]>?")
SHORT_FORM = re.compile(r"\b(e\.g|i\.e|etc|cf|vs|No|Fig|et al|approx)\.")
END = re.compile(r"(?<=[.!?])[\"'*_)\]]*\s+(?=[\"'*_(\[]*[A-Z0-9`])")
WORD = re.compile(r"\w")


def paragraphs(markdown: str) -> list[str]:
    """The page's prose: paragraphs and list items, without code blocks, tables and headings."""
    parts = [""]
    text = FENCE.sub("\n", GLOSSARY.sub(r"\1", markdown))
    for line in COMMENT.sub("", text).splitlines():
        if not line.strip() or NO_PROSE.match(line):
            parts.append("")
            continue
        if ITEM.match(line):
            parts.append("")
        parts[-1] += ITEM.sub("", line).strip() + " "
    return [part.strip() for part in parts if part.strip()]


def sentences(markdown: str) -> list[str]:
    """Each sentence of the page. Code between backticks is one word, and so is a link's address with its text."""
    found = []
    for text in paragraphs(markdown):
        plain = SHORT_FORM.sub(r"\1", URL.sub("URL", LINK.sub(r"\1", CODE.sub("CODE", text))))
        found += [s for s in END.split(plain) if WORD.search(s)]
    return found


def words(sentence: str) -> int:
    return sum(bool(WORD.search(word)) for word in sentence.split())


def mean(markdown: str) -> float:
    lengths = [words(s) for s in sentences(markdown)]
    return sum(lengths) / max(1, len(lengths))


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_sentences_are_short(page):
    text = page.read_text(encoding="utf-8")
    if len(sentences(text)) >= FEW:
        assert mean(text) < MEAN
    assert [s for s in sentences(text) if words(s) >= LONGEST] == []


EXAMPLE = """# A heading is no sentence. Nor this

Two words. A sentence with `code of four words` and [a link](page.md) has
eleven words, and 1.5 is one. See e.g. https://example.org/a.b. `jaxscale` starts this one.

| a table | is none |
|-|-|

- An item without a stop
- Another one. **It has two.** (Or three.)

```python
x = 1  # Not read. At all.
```

```{glossary}
A term
: Its meaning.
```
"""


def test_the_splitter():
    assert sentences(EXAMPLE) == [
        "Two words.",
        "A sentence with CODE and a link has eleven words, and 1.5 is one.",
        "See e.g URL.",
        "CODE starts this one.",
        "An item without a stop",
        "Another one.",
        "**It has two.",
        "(Or three.)",
        "A term",
        "Its meaning.",
    ]


def test_a_long_sentence_is_seen():
    long = "It " + "goes on and " * 20 + "ends."
    assert [words(s) for s in sentences(f"Short.\n\n- {long}\n- {long}")] == [1, 62, 62]
    assert mean(f"Short.\n\n{long}") == 31.5


def test_one_paragraph_more_is_not_one_sentence_more():
    lengths = [len(sentences("One. Two.\n\n" * n)) for n in range(4)]
    assert [b - a for a, b in pairwise(lengths)] == [2, 2, 2]
