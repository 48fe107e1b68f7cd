"""What may be shown or kept of a text that people or files gave: no credentials, and in a message one plain line."""

import re
import sys
from pathlib import Path
from typing import Any

HIDDEN = "***"
LONGEST = 1500  # characters of a message: its begin and its end are kept
# the part of a URL before its @; a path has lost one of the two slashes, and a secret may hold slashes
USERINFO = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*:/{1,2})[^\s'\"]*@")
# `...token=value`, as in overrides, in environments and in the queries of signed URLs
NAMED = re.compile(
    r"((?:password|passwd|secret|api[_-]?key|access[_-]?key(?:[_-]?id)?|token|credentials?|signature)=)[^\s&,;'\"]+",
    re.IGNORECASE,
)
# `token: value`, as in headers, YAML and JSON; numbers, nothing, and a tokenizer's own tokens are no secrets
AFTER_COLON = re.compile(
    r"""((?:password|passwd|secret|api[_-]?key|access[_-]?key(?:[_-]?id)?"""
    r"""|(?<!bos_)(?<!eos_)(?<!pad_)(?<!unk_)(?<!sep_)(?<!cls_)(?<!mask_)token)['"]?:\s*['"]?)"""
    r"""(?![\d.]+(?:[\s,;'"}\])]|$)|(?:none|null|true|false)\b|[<\[({])[^\s&,;'"}]+""",
    re.IGNORECASE,
)
# `Authorization: Bearer value`, or the scheme and a value alone; as a sentence may hold "bearer", that one has a digit
HEADER = re.compile(
    r"""(authorization['"]?\s*[:=]\s*['"]?(?:bearer|basic|token)\s+|\bbearer\s+(?=[^\s\d]*\d))[^\s,;'"]+""",
    re.IGNORECASE,
)


def redact(text: str) -> str:
    """`text` without credentials: `s3://KEY:SECRET@bucket` -> `s3://***@bucket`, `api_key=X` -> `api_key=***`,
    `token: X` -> `token: ***`, `Authorization: Bearer X` -> `Authorization: Bearer ***`."""
    text = HEADER.sub(rf"\1{HIDDEN}", USERINFO.sub(rf"\1{HIDDEN}@", text))
    return AFTER_COLON.sub(rf"\1{HIDDEN}", NAMED.sub(rf"\1{HIDDEN}", text))


def one_line(message: str) -> str:
    """A message for the terminal: without credentials and line breaks, control characters spelled out, not endless."""
    most = 10 * LONGEST
    if len(message) > 2 * most:
        message = f"{message[:most]} {message[-most:]}"
    text = " ".join(redact(message).split())
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 400]} ... {text[-395:]}"


def command_line() -> list[str]:
    """The words that this process was started with, the program by its name."""
    name = Path(sys.argv[0]).name
    return ["jaxscale" if name == "__main__.py" else name, *map(redact, sys.argv[1:])]


def shown(value: Any, longest: int = 100) -> str:
    """A value as a message holds it, cut where it is long."""
    try:
        text = redact(repr(value))
    except ValueError:  # Python writes no number of more than 4300 digits
        text = "a number of thousands of digits"
    return text if len(text) <= longest else f"{text[: longest - 4]} ..."
