"""Templates that make text of messages: four by name, or a published tokenizer's own.

Each is Jinja, rendered in the sandbox of `data.chat`. `{% generation %}` marks what transformers counts as the
assistant's; the masks of `examples.masks` are the same.
"""

import re
from dataclasses import dataclass

from jaxscale.data.chat import OWN, PLAIN, Chat, Renderer, ends, renderer
from jaxscale.data.tokenizer import DEFAULT_SEPARATOR, Tokenizer

CHATML = r"""
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\n' }}
    {%- if message['role'] == 'assistant' %}
        {%- generation %}{{- message['content'] + '<|im_end|>' }}{%- endgeneration %}
    {%- else %}
        {{- message['content'] + '<|im_end|>' }}
    {%- endif %}
    {{- '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}
"""
LLAMA3 = r"""
{{- '<|begin_of_text|>' }}
{%- for message in messages %}
    {%- set role = 'ipython' if message['role'] == 'tool' else message['role'] %}
    {{- '<|start_header_id|>' + role + '<|end_header_id|>\n\n' }}
    {%- if role == 'assistant' %}
        {%- generation %}{{- message['content'] | trim + '<|eot_id|>' }}{%- endgeneration %}
    {%- else %}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}
"""
# Qwen3's own template drops the thoughts of earlier turns, so that a conversation is not its own beginning. Here each
# turn of the assistant keeps its thoughts, or an empty block of them, as Qwen3 answers without thinking.
QWEN3 = r"""
{%- for message in messages %}
    {%- if message['role'] == 'tool' %}
        {%- if loop.first or loop.previtem['role'] != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\n<tool_response>\n' + message['content'] + '\n</tool_response>' }}
        {%- if loop.last or loop.nextitem['role'] != 'tool' %}{{- '<|im_end|>' + '\n' }}{%- endif %}
    {%- elif message['role'] == 'assistant' %}
        {{- '<|im_start|>assistant\n' }}
        {%- generation %}
            {%- if message['reasoning_content'] is string %}
                {{- '<think>\n' + message['reasoning_content'].strip('\n') + '\n</think>\n\n' }}
                {{- message['content'].lstrip('\n') + '<|im_end|>' }}
            {%- elif message['content'].startswith('<think>') %}
                {{- message['content'] + '<|im_end|>' }}
            {%- else %}
                {{- '<think>\n\n</think>\n\n' + message['content'].lstrip('\n') + '<|im_end|>' }}
            {%- endif %}
        {%- endgeneration %}
        {{- '\n' }}
    {%- else %}
        {{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}
"""
# A document's separator, the prompt, the answer, a separator: what a model that reads documents goes on with.
PLAIN_TEXT = r"""
{{- '<|endoftext|>' }}
{%- for message in messages %}
    {%- if message['role'] != ('assistant' if loop.index0 % 2 else 'user') %}
        {{- raise_exception('plain takes turns of user and assistant, one after the other; turn ' + loop.index | string
            + ' is of ' + message['role']) }}
    {%- endif %}
    {%- if message['role'] == 'assistant' %}
        {%- generation %}{{- message['content'] + '<|endoftext|>' }}{%- endgeneration %}
    {%- else %}
        {{- message['content'] }}
    {%- endif %}
{%- endfor %}
"""


@dataclass(frozen=True)
class Named:
    """A template of our own: its Jinja, and the end of a turn as it spells it, always as a literal of its own."""

    text: str
    end: str

    @property
    def specials(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(re.findall(r"<\|\w+\|>", self.text)))


NAMED = {
    "chatml": Named(CHATML, "<|im_end|>"),
    "llama3": Named(LLAMA3, "<|eot_id|>"),
    "qwen3": Named(QWEN3, "<|im_end|>"),
    PLAIN: Named(PLAIN_TEXT, DEFAULT_SEPARATOR),
}
NAMES = (*NAMED, OWN)


@dataclass(frozen=True)
class Template:
    """A template with the tokenizer that reads its texts.

    Attributes:
        chat: as it is kept beside a dataset and a run.
        stop_ids: the tokens that end an answer, the separator among them.
        spelled: finds special tokens in a message's text, which would become them; None: none would.
        lacking: special tokens of the template that the tokenizer reads as text.
        apart: each message is encoded by itself, as text.
    """

    name: str
    chat: Chat
    codec: Tokenizer
    renderer: Renderer
    stop_ids: tuple[int, ...]
    spelled: re.Pattern[str] | None
    lacking: tuple[str, ...] = ()
    apart: bool = False


def make_template(name: str, codec: Tokenizer, published: Chat | None, *, where: str) -> Template:
    """The template of this name.

    Args:
        published: what stands beside the tokenizer, of `own`.
        where: what messages call the tokenizer.

    Raises:
        ValueError: no such template, or one that does not go with the tokenizer.
    """
    if name == OWN:
        return _published_template(codec, published, where)
    if name not in NAMED:
        raise ValueError(f"template {name!r} is not one of {', '.join(NAMES)}")
    named = NAMED[name]
    end, number = named.end, codec.id_of(named.end)
    if name == PLAIN or number is None or codec.encode_rendered_batch([end])[0].tolist() != [number]:
        end, number = codec.separator or DEFAULT_SEPARATOR, codec.separator_id
    text = named.text.replace(f"'{named.end}'", repr(end))
    chat = Chat({"chat_template": text, "eos_token": end}, {"eos_token_id": [number]}, name)
    lacking = tuple(one for one in named.specials if codec.id_of(one) is None) if name != PLAIN else ()
    spelled = None if name == PLAIN else one_of((*named.specials, *codec.special_tokens))
    stops = ends(chat, codec, where=where)
    return Template(name, chat, codec, renderer(chat, where=name), stops, spelled, lacking, apart=name == PLAIN)


def kept_template(chat: Chat, codec: Tokenizer, *, where: str) -> Template:
    """The template that a run keeps, with the text that its data was prepared with. ValueError where it has none."""
    name = chat.name if chat.name in NAMED else OWN
    special = NAMED[name].specials if name in NAMED else tuple(chat.tokens.values())
    spelled = None if name == PLAIN else one_of((*special, *codec.special_tokens))
    render = renderer(chat, where=where)
    return Template(name, chat, codec, render, ends(chat, codec, where=where), spelled, apart=name == PLAIN)


def _published_template(codec: Tokenizer, published: Chat | None, where: str) -> Template:
    if published is None or published.template is None:
        raise ValueError(
            f"{where} has no template of its own; give --tokenizer DIR/tokenizer.json of a published chat model, or "
            f"--template with one of {', '.join(NAMED)}"
        )
    render = renderer(published, where=where)
    end = _end_of_turn(render, published, codec, where)
    ids = published.generation.get("eos_token_id")
    given = ids if isinstance(ids, list) else [] if ids is None else [ids]
    generation = published.generation | {"eos_token_id": list(dict.fromkeys([*given, end]))}
    chat = Chat(published.config, generation, OWN)
    stops = ends(chat, codec, where=where)
    return Template(OWN, chat, codec, render, stops, one_of((*codec.special_tokens, *published.tokens.values())))


def _end_of_turn(render: Renderer, published: Chat, codec: Tokenizer, where: str) -> int:
    """The first special token after an answer, as the template writes it."""
    answer = "jaxscale"
    text = render([{"role": "user", "content": "1"}, {"role": "assistant", "content": answer}], prompt=False)
    special = {codec.id_of(token) for token in (*codec.special_tokens, *published.tokens.values())}
    special |= set(published.end_ids)
    after = codec.encode_rendered_batch([text[text.rfind(answer) + len(answer) :] if answer in text else ""])[0]
    for number in after.tolist():
        if number in special:
            return int(number)
    raise ValueError(
        f"the template of {where} writes no special token after an answer, so that nothing would end it; give "
        f"--template with one of {', '.join(NAMED)}"
    )


def one_of(tokens: tuple[str, ...]) -> re.Pattern[str] | None:
    """Finds any of these, the longest first."""
    longest_first = sorted({token for token in tokens if token}, key=lambda token: (-len(token), token))
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None
