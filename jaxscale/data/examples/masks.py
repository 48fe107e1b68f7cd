"""Messages -> tokens, and which of them are the assistant's: by position, never found again from token values.

The text up to each answer, as a sampler would be given it, and the text up to the answer's end must both be token
prefixes of the whole conversation. What lies between is trained, up to the token that ends the turn.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jaxscale.data.chat import PLAIN, Chat, Message, renderer
from jaxscale.data.examples.records import Example
from jaxscale.data.examples.templates import NAMED, OWN, Named, Template
from jaxscale.data.text_changes import TextChanges
from jaxscale.data.tokenizer import DEFAULT_SEPARATOR

CONTEXT, TRAINED, REJECTED = 0, 1, 2
READ = ("role", "content", "reasoning_content")  # of a message, by the templates of our own


class Marked(NamedTuple):
    """A document: its token ids, int32[n], and their roles, uint8[n]."""

    ids: np.ndarray
    roles: np.ndarray


class Request(NamedTuple):
    """A document to make: `answer` is trained, with a `role`; none of a prompt."""

    prompt: list[Message]
    answer: list[Message]
    role: int
    tools: list | None


def encode_examples(
    template: Template, examples: Sequence[Example], changes: TextChanges | None = None
) -> Iterator[list[Marked] | ValueError]:
    """The documents of each example, or why there are none; ``changes`` counts what the tokenizer cannot say."""
    plans = [_planned(template, example) for example in examples]
    texts = [text for plan in plans if not isinstance(plan, ValueError) for _, parts in plan for text in parts]
    places = {text: i for i, text in enumerate(dict.fromkeys(texts))}  # chosen and rejected begin alike
    encode = template.codec.encode_batch if template.apart else template.codec.encode_rendered_batch
    ids = encode(list(places))
    for example, plan in zip(examples, plans, strict=True):
        if isinstance(plan, ValueError):
            yield plan
            continue
        encoded = [(request, [ids[places[text]] for text in parts]) for request, parts in plan]
        if changes is not None:
            _count(template, plan, encoded, changes)
        mark = _joined if template.apart else _marked
        try:
            yield [mark(template, request, parts) for request, parts in encoded]
        except ValueError as error:
            yield ValueError(f"{example.where}: {error}")


def texts_to_train_on(named: Named) -> Callable[[Example], list[str]]:
    """What a tokenizer is trained on: examples as the template writes them, without the ends of turns."""
    render = renderer(Chat({"chat_template": named.text}, {}), where="the examples")

    def texts(example: Example) -> list[str]:
        answers = example.answers or [[]]
        if named == NAMED[PLAIN]:
            return [message["content"] for part in (example.prompt, *answers) for message in part]
        whole = [[{key: m[key] for key in READ if key in m} for m in (*example.prompt, *answer)] for answer in answers]
        return [part for messages in whole for part in render(messages, prompt=False).split(named.end)]

    return texts


Planned = list[tuple[Request, list[str]]]


def _planned(template: Template, example: Example) -> Planned | ValueError:
    try:
        tools = example.other.get("tools")
        if tools is not None and not isinstance(tools, list):
            raise ValueError("tools is no list")
        for message in (m for part in (example.prompt, *example.answers) for m in part):
            _check_message(template, message)
        made = [
            Request(example.prompt, answer, role, tools)
            for answer, role in zip(example.answers, (TRAINED, REJECTED), strict=False)
        ] or [Request(example.prompt, [], CONTEXT, tools)]
        return [(request, _texts(template, request)) for request in made]
    except ValueError as error:
        return ValueError(f"{example.where}: {error}")


def _count(
    template: Template, plan: Planned, encoded: list[tuple[Request, list[np.ndarray]]], changes: TextChanges
) -> None:
    separator = template.codec.separator or DEFAULT_SEPARATOR
    for (_, texts), (_, parts) in zip(plan, encoded, strict=True):
        for text, ids in zip(texts, parts, strict=True) if template.apart else [(texts[0], parts[0])]:
            changes.add(text if template.apart else text.replace(separator, ""), ids, begins=True)


def _check_message(template: Template, message: Message) -> None:
    if template.name != OWN and message.get("tool_calls"):
        raise ValueError(f"the template {template.name} has no place for tool_calls; use --template own")
    if template.spelled is None:
        return
    for name in READ[1:]:
        text = message.get(name)
        if isinstance(text, str) and (match := template.spelled.search(text)):
            raise ValueError(f"a {message['role']} message spells the special token {match[0]!r}, and would become it")


def _texts(template: Template, request: Request) -> list[str]:
    """The whole conversation; then, for each turn that is trained, it up to that turn, and up to the turn's end."""
    messages = [*request.prompt, *request.answer]
    if template.apart:
        template.renderer(messages)  # which refuses what it has no place for
        return [message["content"] for message in messages]
    if template.name != OWN:
        messages = [{key: message[key] for key in READ if key in message} for message in messages]
    render, tools = template.renderer, request.tools
    if not request.answer:
        return [render(messages, tools=tools)]
    texts = [render(messages, prompt=False, tools=tools)]
    for i in _turns(request):
        texts += [render(messages[:i], tools=tools), render(messages[: i + 1], prompt=False, tools=tools)]
    return texts


def _turns(request: Request) -> list[int]:
    """The turns that are trained, by their place in the whole conversation."""
    first = len(request.prompt)
    return [first + i for i, message in enumerate(request.answer) if message["role"] == "assistant"]


def _marked(template: Template, request: Request, parts: list[np.ndarray]) -> Marked:
    whole, rest = parts[0], parts[1:]
    roles = np.zeros(len(whole), np.uint8)
    turns = _turns(request)
    for turn, before, after in zip(turns, rest[::2], rest[1::2], strict=True):
        _check_prefix(template, before, whole, f"up to turn {turn + 1}")
        _check_prefix(template, after, whole, f"with turn {turn + 1}")
        start, end = len(before), len(after)
        stops = np.flatnonzero((whole[start:end, None] == np.array(template.stop_ids)).any(1))
        if stops.size:
            end = start + int(stops[-1]) + 1  # not the newline that some templates write after it
        elif turn == turns[-1]:
            raise ValueError(f"the template writes no end of turn after turn {turn + 1}")
        roles[start:end] = request.role
    if not len(whole) or (turns and not roles.any()):
        raise ValueError("the template writes nothing of it")
    return Marked(whole, roles)


def _check_prefix(template: Template, part: np.ndarray, whole: np.ndarray, what: str) -> None:
    """ValueError, with the first tokens that differ, where `part` does not begin `whole`."""
    if len(part) <= len(whole) and np.array_equal(part, whole[: len(part)]):
        return
    short = min(len(part), len(whole))
    differing = np.flatnonzero(part[:short] != whole[:short])
    at = int(differing[0]) if differing.size else short
    here, there = (_spelled(template, ids, at) for ids in (part, whole))
    raise ValueError(
        f"the tokens of the conversation {what} do not begin those of the whole: token {at} is {here}, and in the "
        f"whole {there}; so what is trained would not be what is sampled"
    )


def _spelled(template: Template, ids: np.ndarray, at: int) -> str:
    return f"{int(ids[at])} {template.codec.decode([int(ids[at])])!r}" if at < len(ids) else "missing"


def _joined(template: Template, request: Request, parts: list[np.ndarray]) -> Marked:
    """A separator, then the messages' own tokens; a separator ends each turn of the assistant, and is trained as it."""
    separator = template.codec.separator_id
    if any((ids == separator).any() for ids in parts):
        raise ValueError(f"its text becomes the separator (id {separator}); pass --separator with another token")
    ids, roles = [np.array([separator], np.int32)], [np.zeros(1, np.uint8)]
    for i, (message, part) in enumerate(zip([*request.prompt, *request.answer], parts, strict=True)):
        answers = message["role"] == "assistant"
        role = request.role if answers and i >= len(request.prompt) else CONTEXT
        ids.append(np.append(part, np.int32(separator)) if answers else part)
        roles.append(np.full(len(ids[-1]), role, np.uint8))
    return Marked(np.concatenate(ids).astype(np.int32), np.concatenate(roles))
