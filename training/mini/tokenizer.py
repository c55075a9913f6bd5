"""The model's own tokenizer: byte-level BPE, lower case, one digit a token."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

CONTROL = ["<|pad|>", "<|end|>", "<|rubric|>", "<|query|>", "<|document|>", "<|answer|>"]
GRADES = ["<|0|>", "<|1|>", "<|2|>", "<|3|>"]
SPLIT = r" ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+"


def _normalizer(plain_text: bool):
    steps = [normalizers.NFC(), normalizers.Lowercase()]
    if plain_text:  # one space between words and one before the first: "x" and " x" are one token
        steps += [normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip(), normalizers.Prepend(" ")]
    return normalizers.Sequence(steps)


def _pre_tokenizer():
    split = pre_tokenizers.Split(Regex(SPLIT), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def train(texts, vocab_size: int) -> Tokenizer:
    """Train on an iterator of texts; the result reads plain text (see `raw` for line breaks)."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = _normalizer(plain_text=False)
    tokenizer.pre_tokenizer = _pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=CONTROL + GRADES, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.normalizer = _normalizer(plain_text=True)
    return tokenizer


def raw(tokenizer: Tokenizer) -> Tokenizer:
    """The same vocabulary without space handling, for explanations with their line breaks."""
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.normalizer = _normalizer(plain_text=False)
    return copy


class Encoder:
    """Builds prompts and targets as token ids; user text never becomes a control token."""

    def __init__(self, tokenizer: Tokenizer):
        self.plain, self.lines = tokenizer, raw(tokenizer)
        self.plain.encode_special_tokens = True
        self.lines.encode_special_tokens = True
        ids = {t: tokenizer.token_to_id(t) for t in CONTROL + GRADES}
        self.pad, self.end, self.rubric, self.query, self.document, self.answer = (ids[t] for t in CONTROL)
        self.grades = [ids[t] for t in GRADES]
        self._cache: dict[str, list[int]] = {}

    @classmethod
    def load(cls, path: Path) -> "Encoder":
        """From a directory with tokenizer.json."""
        return cls(Tokenizer.from_file(str(Path(path) / "tokenizer.json")))

    def text(self, text: str) -> list[int]:
        """Token ids of one piece of plain text; short pieces are remembered."""
        ids = self._cache.get(text)
        if ids is None:
            ids = self.plain.encode(text, add_special_tokens=False).ids
            if len(self._cache) < 300_000:
                self._cache[text] = ids
        return ids

    def prompt(self, instruction: str, query: str, document: str, max_tokens: int = 512) -> list[int]:
        """The prompt of one pair; only the document is cut to fit."""
        asked = self.text(query)
        head = [self.rubric, *self.text(instruction), self.query, *asked, self.document]
        tail = [self.query, *asked, self.answer]
        return head + self.text(document)[: max(0, max_tokens - len(head) - len(tail))] + tail

    def explanation(self, text: str) -> list[int]:
        """Token ids of an explanation with its end token."""
        return self.lines.encode(text, add_special_tokens=False).ids + [self.end]
