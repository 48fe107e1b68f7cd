"""Special tokens that are pieces of a tokenizer's model too: hidden from it, so that text cannot become one.

The library takes text that spells a special token for text. But the model of such a file (T5's ``</s>``) has the
same spelling among its pieces, and would find it again.
"""

import json
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tokenizers


SPELLED_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


def hide_special_tokens(content: str, library: "tokenizers.Tokenizer", separator: str) -> str:
    """``tokenizer.json`` for encoding, in which all other tokens keep their ids; ``content`` itself if none is hidden.

    The unknown token stays where the model names it, and so does what is one character or one byte.
    """
    values = json.loads(content)
    model = values["model"]
    special = {token.content for token in library.get_added_tokens_decoder().values() if token.special}
    spelled = {name for name in {*special, separator} if len(name) > 1 and not _is_byte(name)}
    pieces = _pieces(model)
    hidden = (spelled & pieces) - {model.get("unk_token")}
    if not hidden:
        return content
    names = {name: f"\ufdd0{i}\ufdd1" for i, name in enumerate(sorted(hidden))}  # noncharacters, never in a text
    if isinstance(model["vocab"], dict):
        model["vocab"] = {names.get(piece, piece): i for piece, i in model["vocab"].items()}
    else:
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in model["vocab"]]
    if model.get("merges"):
        model["merges"] = [merge for merge in model["merges"] if not hidden & _parts(merge)]
    values["added_tokens"] = [token for token in values.get("added_tokens") or [] if token["content"] not in hidden]
    values["post_processor"] = None  # it names special tokens, and a corpus wants none
    return json.dumps(values) if _same_ids(values, library, hidden) else content


def without_spelled_bytes(content: str) -> str | None:
    """``tokenizer.json`` for texts that spell a byte token (``<0x0A>``); None for files that never take it for one.

    A Unigram model finds byte tokens in text as it finds any piece. Here their scores lie below those of their
    characters, which changes what unknown characters cost: so this is for such texts only.
    """
    values = json.loads(content)
    model = values["model"]
    if not model.get("byte_fallback") or isinstance(model.get("vocab"), dict):
        return None
    lowest = min((score for piece, score in model["vocab"] if not _is_byte(piece)), default=0.0)
    below = 7 * min(lowest, 0.0) - 100
    model["vocab"] = [[piece, below if _is_byte(piece) else score] for piece, score in model["vocab"]]
    return json.dumps(values)


def _pieces(model: dict[str, Any]) -> set[str]:
    vocab = model.get("vocab") or {}
    return set(vocab) if isinstance(vocab, dict) else {piece for piece, _ in vocab}


def _is_byte(name: str) -> bool:
    return bool(SPELLED_BYTE.fullmatch(name))


def _parts(merge: str | list[str]) -> set[str]:
    """Both sides of a merge and what they make."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return {left, right, left + right}


def _same_ids(values: dict[str, Any], library: "tokenizers.Tokenizer", hidden: set[str]) -> bool:
    import tokenizers

    other = tokenizers.Tokenizer.from_str(json.dumps(values))
    return all(other.token_to_id(token) == i for token, i in library.get_vocab().items() if token not in hidden)
