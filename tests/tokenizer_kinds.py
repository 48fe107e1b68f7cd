"""One tokenizer.json of each shape that is in use, small, and texts that are hard on them."""

import json
import random

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers

WORDS = [
    "ship",
    "harbour",
    "rope",
    "mast",
    "wind",
    "tide",
    "crew",
    "chart",
    "north",
    "lamp",
    "žluťoučký",
    "Ångström",
    "naïve",
    "港の灯り",
    "الليل",
]
SPELLED = ["</s>", "<s>", "<unk>", "<|endoftext|>", "[SEP]", "<0x0A>", "<|im_start|>"]
ODD = ["\0", "\ufeff", "\u2028", "\r\n", "\t", "\x1b[0m", "🐎", "e\u0301", "\u200d", "\ufffd", "\U0010ffff", "ﬁ", "İ"]
RUNS = ["a" * 700, " " * 90, "\n" * 40, "=" * 500, "ab" * 300, "灯" * 400, "0123456789" * 60, "\n    " * 30]


def text(seed: int, length: int, *, odd: bool = True) -> str:
    """Made-up text of about ``length`` characters: words and lines, and unless not ``odd`` what breaks tokenizers."""
    r, parts, size = random.Random(seed), [], 0
    while size < length:
        kind = r.random()
        if odd and kind < 0.03:
            part = r.choice(RUNS)
        elif odd and kind < 0.08:
            part = r.choice(SPELLED)
        elif odd and kind < 0.15:
            part = r.choice(ODD)
        else:
            part = r.choice(WORDS[: 10 if not odd else None]) + r.choice([" ", " ", " ", "\n", ", ", "\n\n"])
        parts.append(part)
        size += len(part)
    return "".join(parts)


SAMPLE = [text(seed, 3000) for seed in range(4)]
SPECIAL = ["<unk>", "<s>", "</s>"]
_PIECES = ["▁ship", "▁rope", "ma", "st", "▁wi", "nd", "tide", "▁", "▁▁", "aa", "aaa"]
BYTES = [f"<0x{i:02X}>" for i in range(256)]


def finish(library: tokenizers.Tokenizer, **changes) -> str:
    values = json.loads(library.to_str())
    values["model"] |= changes
    return json.dumps(values)


def byte_level(*, prefix: bool = False) -> str:
    """GPT-2's shape; with ``prefix`` RoBERTa's, which puts a space before a text."""
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    library.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    library.train_from_iterator(SAMPLE, trainer)
    return library.to_str()


def llama3() -> str:
    """Llama-3's shape: a regular expression of its own, and whole words looked up before any merge."""
    library = tokenizers.Tokenizer(models.BPE())
    pattern = Regex(
        r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pattern, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    library.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=["<|end_of_text|>"], initial_alphabet=alphabet, show_progress=False
    )
    library.train_from_iterator(SAMPLE, trainer)
    library.add_tokens([AddedToken("    ", normalized=False), "<|im_start|>"])  # as GPT-NeoX has for indentation
    return finish(library, ignore_merges=True)


def sentencepiece_bpe() -> str:
    """Llama-2's and Mistral's shape: a space before the text, no pre-tokenizer, bytes for what is unknown."""
    library = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    library.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=[*SPECIAL, *BYTES], show_progress=False, limit_alphabet=40
    )
    library.train_from_iterator([word for sample in SAMPLE for word in sample.split("\n")], trainer)
    values = json.loads(library.to_str())
    values["added_tokens"] = [token for token in values["added_tokens"] if token["content"] not in BYTES]
    return json.dumps(values)


def unigram(scheme: str) -> str:
    """T5's shape, with bytes for what is unknown; its special tokens are pieces of the model too."""
    pieces = [("<unk>", 0.0), ("<s>", -1.0), ("</s>", -1.0), *((byte, -12.0) for byte in BYTES)]
    pieces += [
        (piece, -3.0 - i / 9)
        for i, piece in enumerate(["▁ship", "▁rope", "ma", "st", "▁wi", "nd", "tide", "▁", "▁▁", "aa", "aaa"])
    ]
    pieces += [(c, -8.0) for c in "abcdefghijklmnopqrstuvwxyzABCDEF0123456789<>/|"]
    library = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    library.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    library.add_special_tokens(SPECIAL)
    return library.to_str()


def stripped() -> str:
    """GPT-2's shape after a normalizer that takes the spaces off both ends of a text."""
    library = tokenizers.Tokenizer.from_str(byte_level())
    library.normalizer = normalizers.Strip()
    return library.to_str()


def unsplit() -> str:
    """Byte-level merges over the whole text, which no pre-tokenizer takes apart: tokens reach over spaces."""
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    library.train_from_iterator([s[i : i + 40] for s in SAMPLE for i in range(0, len(s), 40)], trainer)
    return library.to_str()


def word_piece() -> str:
    """BERT's shape: lower case, no spaces, a word with an unknown character is one unknown token."""
    library = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    library.normalizer = normalizers.BertNormalizer(lowercase=True)
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    library.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[UNK]", "[SEP]"], show_progress=False)
    library.train_from_iterator(["ship harbour rope mast wind tide crew"] * 9, trainer)
    return library.to_str()


def whitespace_bpe() -> str:
    """Neither bytes nor an unknown token: characters that it lacks vanish."""
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=80, special_tokens=["<|endoftext|>"], show_progress=False)
    library.train_from_iterator(["ship harbour rope mast wind tide crew"] * 9, trainer)
    return library.to_str()


def word_level() -> str:
    """Whole words, of which one is spelled as the separator."""
    words = ["<unk>", "</s>", *WORDS[:10]]
    library = tokenizers.Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    library.add_special_tokens(["</s>", "<unk>"])
    return library.to_str()


LOSSLESS = {
    "byte level": byte_level,
    "llama 3": llama3,
    "sentencepiece bpe": sentencepiece_bpe,
    "unigram always": lambda: unigram("always"),
    "unigram first": lambda: unigram("first"),
    "unsplit": unsplit,
}
LOSSY = {  # what their preparation must say
    "byte level with a prefix": (lambda: byte_level(prefix=True), "the tokenizer changes text"),
    "stripped": (stripped, "the tokenizer changes text"),
    "word piece": (word_piece, "are the unknown token"),
    "whitespace": (whitespace_bpe, "characters .* were dropped"),
    "word level": (word_level, "are the unknown token"),
}
