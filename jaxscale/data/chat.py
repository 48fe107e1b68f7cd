"""What a published tokenizer says beside tokenizer.json: special tokens, and a template that makes text of messages.

It is read from published files, kept by a run in one file, rendered as transformers renders it, and written back.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from jaxscale.data.tokenizer import Tokenizer
from jaxscale.files.reading import parse_json

CONFIG, TEMPLATE, GENERATION = "tokenizer_config.json", "chat_template.jinja", "generation_config.json"
PIECES = "tokenizer.model"  # SentencePiece's file, which may stand beside tokenizer.json
KEPT = "chat.json"  # of a run
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
CODE = ("auto_map", "name_or_path")  # keys of a tokenizer's config that lead to files or code elsewhere
OWN = "own"  # the template is a published tokenizer's
PLAIN = "plain"  # the template of our own that encodes each message by itself, as a document's text
LEAST_JINJA = (3, 1, 6)  # older ones let templates out of the sandbox

Message = dict[str, Any]  # role, content, and what else a template reads


@dataclass(frozen=True)
class Chat:
    """A published tokenizer's configuration.

    Attributes:
        config: the values of tokenizer_config.json, with the template of chat_template.jinja where that is there.
        generation: those of generation_config.json; ids that only config.json has are among them.
        name: of a template of jaxscale's own (`data.examples.templates`); None: a published one.
    """

    config: dict[str, Any]
    generation: dict[str, Any]
    name: str | None = None

    @property
    def tokens(self) -> dict[str, str]:
        """Name -> spelling of the special tokens, as a template knows them."""
        more = self.config.get("extra_special_tokens")
        given = {name: self.config.get(name) for name in NAMED} | (more if isinstance(more, dict) else {})
        spelled = {k: v.get("content") if isinstance(v, dict) else v for k, v in given.items()}
        return {name: value for name, value in spelled.items() if isinstance(value, str)}

    @property
    def template(self) -> str | None:
        """The only one, or of several the one named default; None where there is none."""
        template = self.config.get("chat_template")
        if isinstance(template, list):
            template = {one["name"]: one["template"] for one in template if isinstance(one, dict) and len(one) >= 2}
        if isinstance(template, dict):
            template = template.get("default")
        return template if isinstance(template, str) else None

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The ids of generation_config.json that end a text."""
        ids = self.generation.get("eos_token_id")
        return tuple(i for i in (ids if isinstance(ids, list) else [ids]) if isinstance(i, int))


def read_published(directory: Path) -> Chat | None:
    """What stands beside a published tokenizer; None where there is none of it. ValueError for a damaged file."""
    names = (CONFIG, "special_tokens_map.json", GENERATION, "config.json")
    config, older, generation, model = (read_table(directory / name) for name in names)
    if "added_tokens_decoder" not in config:  # as older versions of transformers wrote them
        config |= {name: value for name, value in older.items() if name in NAMED}
    if (path := directory / TEMPLATE).is_file():
        config["chat_template"] = read_text(path)
    generation = {name: model[name] for name in IDS if model.get(name) is not None} | generation
    config = {name: value for name, value in config.items() if name not in CODE}
    return Chat(config, generation) if config else None


def read_kept(directory: Path, fingerprint: str) -> Chat | None:
    """What a run keeps for the tokenizer of this fingerprint; None where it keeps none, or another one's."""
    values = read_table(directory / KEPT)
    if values.get("fingerprint") != fingerprint:
        return None
    config, generation = values.get("tokenizer_config"), values.get("generation_config")
    name = values.get("template")
    if not isinstance(config, dict) or not isinstance(generation, dict) or not isinstance(name, str | None):
        raise ValueError(f"{directory / KEPT} is damaged; import the model or prepare the data again")
    return Chat(config, generation, name)


def kept_text(chat: Chat, fingerprint: str) -> str:
    """The content of a run's file."""
    values = {"fingerprint": fingerprint, "tokenizer_config": chat.config, "generation_config": chat.generation}
    values |= {} if chat.name is None else {"template": chat.name}
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"


def ends(chat: Chat, codec: Tokenizer, *, where: str) -> tuple[int, ...]:
    """The tokens that end a text: the separator, the end of turn, and what else generation_config.json names."""
    ids = {codec.separator_id, *(i for i in chat.end_ids if 0 <= i < codec.vocab_size)}
    if (token := chat.tokens.get("eos_token")) is not None:
        if (number := codec.id_of(token)) is None:
            raise ValueError(f"eos_token {token!r} of {where} is no token of its tokenizer.json")
        ids.add(number)
    return tuple(sorted(ids))


def read_table(path: Path) -> dict[str, Any]:
    """A JSON object; an empty one where there is no file."""
    if not path.is_file():
        return {}
    try:
        values = parse_json(read_text(path))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} is damaged: it holds a {type(values).__name__}, not an object")
    return values


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {path}: {error}") from None


# --- rendering --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Renderer:
    """A chat template, compiled once. ``where`` is what messages call the model."""

    template: Any
    tokens: dict[str, str]
    where: str

    def __call__(self, messages: Sequence[Message], *, prompt: bool = True, tools: Any = None) -> str:
        """The text of a conversation; with ``prompt`` up to where the assistant's next answer begins.

        Raises ValueError for what the template itself refuses.
        """
        plain = [dict(message) for message in messages]
        try:
            text = str(
                self.template.render(
                    messages=plain, tools=tools, documents=None, add_generation_prompt=prompt, **self.tokens
                )
            )
            text.encode()  # half a surrogate pair is no text
        except Exception as error:  # a template is a program of the model's makers
            raise ValueError(f"the chat template of {self.where} refuses this conversation: {said(error)}") from None
        return text


def renderer(chat: Chat, *, where: str) -> Renderer:
    """The template of a model. Raises ValueError where there is none, one that is no Jinja, or no jinja2."""
    if chat.template is None:
        raise ValueError(f"{where} has no chat template; leave --chat out, or use a model that was made for chat")
    environment = sandbox()
    try:
        template = environment.from_string(chat.template)
    except Exception as error:
        raise ValueError(f"the chat template of {where} cannot be read: {said(error)}") from None
    return Renderer(template, chat.tokens, where)


def render(chat: Chat, messages: Sequence[Message], *, where: str) -> str:
    """The text of a conversation up to where the assistant's answer begins."""
    return renderer(chat, where=where)(messages)


def said(error: Exception) -> str:
    """An error in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def sandbox() -> Any:
    """The environment that transformers gives to templates: no attribute of Python's own, nothing is changed."""
    try:
        import jinja2
        from jinja2 import nodes
        from jinja2.ext import Extension
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError:
        raise ValueError("chat templates need jinja2: pip install 'jaxscale[chat]'") from None
    if tuple(int(n) for n in jinja2.__version__.split(".")[:3] if n.isdecimal()) < LEAST_JINJA:
        least = ".".join(map(str, LEAST_JINJA))
        raise ValueError(f"chat templates need jinja2 {least} or newer, and there is {jinja2.__version__}; update it")

    class Generation(Extension):
        """`{% generation %}` marks the assistant's tokens for training; here its body stands as it is."""

        tags = {"generation"}  # noqa: RUF012  jinja's own way

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body).set_lineno(line)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = as_json
    environment.globals |= {
        "raise_exception": raise_exception,
        "strftime_now": lambda form: datetime.now().strftime(form),
        "dict": dict_of,
    }
    return environment


def dict_of(*arguments: Any, **values: Any) -> dict[Any, Any]:
    """A dict without `dict` itself, whose attributes lead on."""
    return dict(*arguments, **values)


def as_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Jinja's own filter would escape what HTML knows."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
