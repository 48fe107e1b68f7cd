"""How a prompt becomes tokens and where its continuation ends: as a document's beginning, or as a user's message."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from jaxscale.config import PUBLISHED
from jaxscale.data.chat import Chat, Message, read_kept, read_published, render
from jaxscale.data.file_tokenizer import FileTokenizer
from jaxscale.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class Manner:
    """`encode`: a prompt -> its tokens. `stops`: the tokens before which a continuation ends."""

    encode: Callable[[str], list[int]]
    stops: tuple[int, ...]


def as_documents(codec: Tokenizer) -> Manner:
    """A document's separator begins every prompt and ends every continuation."""
    return Manner(lambda prompt: [codec.separator_id, *codec.encode(prompt).tolist()], (codec.separator_id,))


def as_chat(source: str, codec: Tokenizer, system: str | None) -> Manner:
    """A prompt is the only message of a user, after `system` where that is given; an answer ends at its end of turn.

    The text is the template's, and special tokens that it spells are special, also where the prompt spells them.

    Raises:
        ValueError: the model has no template, or one with an end of turn that its tokenizer lacks.
    """
    chat = chat_of(source, codec)
    if chat is None or not isinstance(codec, FileTokenizer):
        raise ValueError(
            f"{source} has no chat template; `jaxscale import` brings one along from a published chat model; else "
            "leave --chat out"
        )
    template, file = chat, codec
    before: list[Message] = [] if system is None else [{"role": "system", "content": system}]

    def encode(prompt: str) -> list[int]:
        text = render(template, [*before, {"role": "user", "content": prompt}], where=source)
        return [int(i) for i in file.encode_rendered(text)]

    return Manner(encode, ends(source, chat, codec))


def chat_of(source: str, codec: Tokenizer) -> Chat | None:
    """What a run or a published model says of conversations."""
    if source.startswith(PUBLISHED):
        return read_published(Path(source.removeprefix(PUBLISHED)).expanduser())
    return read_kept(Path(source), codec.fingerprint)


def ends(source: str, chat: Chat, codec: FileTokenizer) -> tuple[int, ...]:
    """The separator, the end of turn, and what else generation_config.json names."""
    found = {codec.separator_id, *(i for i in chat.end_ids if i < codec.vocab_size)}
    if (token := chat.tokens.get("eos_token")) is not None:
        if (number := codec.id_of(token)) is None:
            raise ValueError(f"eos_token {token!r} of {source} is no token of its tokenizer.json")
        found.add(number)
    return tuple(sorted(found))
