"""Make golden.json and tokenizer.json: what transformers' apply_chat_template says of the four templates.

python tests/data/templates/make.py   (needs transformers and jinja2)
"""

import json
import sys
from pathlib import Path

import tokenizers

from jaxscale.data.examples.templates import NAMED
from jaxscale.data.tokenizer import train_bpe

HERE = Path(__file__).parent
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
TEXT = "the ship and the wind and a lamp: system user assistant tool ipython think You are helpful, 2 + 2 = 4.\n"
SYSTEM = {"role": "system", "content": "You are a helpful ship."}
ASK, ANSWER = {"role": "user", "content": "2 + 2:"}, {"role": "assistant", "content": "4"}
MORE = [{"role": "user", "content": "And the wind?\n\n  "}, {"role": "assistant", "content": "the wind, the wind 🐎 é"}]
SAME = [{"role": "user", "content": "4 ships?"}, {"role": "assistant", "content": "4 ships?"}]
TOOLS = [
    {"role": "assistant", "content": "I ask."},
    {"role": "tool", "content": '{"wind": 4}'},
    {"role": "tool", "content": '{"lamp": 2}'},
    {"role": "assistant", "content": "wind 4, lamp 2\n"},
]
THINKS = [
    {"role": "assistant", "content": "four", "reasoning_content": "\n2 and 2\n"},
    {"role": "user", "content": "why?"},
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\nso"},
]
CONVERSATIONS = {
    "chatml": [[ASK, ANSWER], [SYSTEM, ASK, ANSWER, *MORE], [ASK, *TOOLS], SAME],
    "llama3": [[ASK, ANSWER], [SYSTEM, ASK, ANSWER, *MORE], [ASK, *TOOLS], SAME],
    "qwen3": [[ASK, ANSWER], [SYSTEM, ASK, ANSWER, *MORE], [ASK, *TOOLS], [ASK, *THINKS], SAME],
    "plain": [[ASK, ANSWER], [ASK, ANSWER, *SAME]],  # nothing merges over these borders
}


def main() -> None:
    library = tokenizers.Tokenizer.from_str(train_bpe(iter([TEXT] * 20), 320).content)
    library.add_special_tokens(SPECIAL)
    (HERE / "tokenizer.json").write_text(json.dumps(json.loads(library.to_str()), ensure_ascii=False) + "\n")
    with open(HERE / "golden.json", "w", encoding="utf-8") as file:
        json.dump(by_transformers(), file, ensure_ascii=False)
        file.write("\n")


def by_transformers() -> list[dict]:
    from transformers import PreTrainedTokenizerFast

    codec = PreTrainedTokenizerFast(tokenizer_file=str(HERE / "tokenizer.json"))
    found = []
    for name, conversations in CONVERSATIONS.items():
        for messages in conversations:
            said = codec.apply_chat_template(
                messages, chat_template=NAMED[name].text, return_dict=True, return_assistant_tokens_mask=True
            )
            asked = codec.apply_chat_template(
                messages[:-1], chat_template=NAMED[name].text, return_dict=True, add_generation_prompt=True
            )
            case = {"template": name, "messages": messages, "tokens": said["input_ids"]}
            found.append(case | {"roles": said["assistant_masks"], "prompt": asked["input_ids"]})
    return found


if __name__ == "__main__":
    sys.exit(main())
