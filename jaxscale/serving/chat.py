"""How a prompt becomes tokens and where its continuation ends: as a document's beginning, or as a user's message."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from jaxscale.config import PUBLISHED
from jaxscale.data.chat import PLAIN, Chat, Message, ends, read_kept, read_published, renderer
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
    if chat is None:
        raise ValueError(
            f"{source} has no chat template; `jaxscale import` brings one along from a published chat model, and "
            "`jaxscale data prepare --chat` gives one to data; else leave --chat out"
        )
    if chat.name == PLAIN:
        if system is not None:
            raise ValueError(f"{source} was trained with the template plain, which has no system message; leave it out")
        return as_documents(codec)
    write = renderer(chat, where=source)
    before: list[Message] = [] if system is None else [{"role": "system", "content": system}]

    def encode(prompt: str) -> list[int]:
        text = write([*before, {"role": "user", "content": prompt}])
        return [int(i) for i in codec.encode_rendered_batch([text])[0]]

    return Manner(encode, ends(chat, codec, where=source))


def chat_of(source: str, codec: Tokenizer) -> Chat | None:
    """What a run or a published model says of conversations."""
    if source.startswith(PUBLISHED):
        return read_published(Path(source.removeprefix(PUBLISHED)).expanduser())
    return read_kept(Path(source), codec.fingerprint)
