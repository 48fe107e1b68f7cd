"""Special tokens that are pieces of a tokenizer's model too: hidden from it, so that text cannot become one.

The library takes text that spells a special token for text. But the model of such a file (T5's ``</s>``) has the
same spelling among its pieces, and would find it again.
"""

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tokenizers


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


def _pieces(model: dict[str, Any]) -> set[str]:
    vocab = model.get("vocab") or {}
    return set(vocab) if isinstance(vocab, dict) else {piece for piece, _ in vocab}


def _is_byte(name: str) -> bool:
    return len(name) == 6 and name.startswith("<0x")


def _parts(merge: str | list[str]) -> set[str]:
    """Both sides of a merge and what they make."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return {left, right, left + right}


def _same_ids(values: dict[str, Any], library: "tokenizers.Tokenizer", hidden: set[str]) -> bool:
    import tokenizers

    other = tokenizers.Tokenizer.from_str(json.dumps(values))
    return all(other.token_to_id(token) == i for token, i in library.get_vocab().items() if token not in hidden)
