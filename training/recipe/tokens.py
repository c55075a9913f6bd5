"""Text to token ids as the server does it: a user's text never becomes a control token.

The server takes the tokenizer's added tokens out before it encodes any text, and inserts control
tokens by id alone (`src/tokenize.rs`); so does this.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer


class Tokens:
    """A checkpoint's tokenizer, without added tokens, post-processing, truncation and padding."""

    def __init__(self, text: str, origin: str):
        """From the text of a tokenizer.json; `origin`, its path, begins error messages (ValueError)."""
        whole = Tokenizer.from_str(text)
        file = json.loads(text)
        self.controls = {t["content"]: t["id"] for t in file["added_tokens"]}
        self.contextual = {t["content"] for t in file["added_tokens"]
                           if t["lstrip"] or t["rstrip"] or t["single_word"]}
        vocabulary = whole.get_vocab(True)
        self.size = max(vocabulary.values()) + 1
        self.longest_bytes = max(len(t.encode()) for t in vocabulary)
        file.update(added_tokens=[], post_processor=None, truncation=None, padding=None)
        self.plain = Tokenizer.from_str(json.dumps(file))
        file.update(normalizer=None)
        self._as_written = Tokenizer.from_str(json.dumps(file))
        self._control_ids = set(self.controls.values())
        for content, token in self.controls.items():
            if token in self.encode(content):
                raise ValueError(f"{origin}: the plain text {content!r} becomes the control token {token}: "
                                 "a user's text could forge it")

    @classmethod
    def load(cls, directory: Path) -> "Tokens":
        """From the tokenizer.json of a checkpoint's directory."""
        path = Path(directory) / "tokenizer.json"
        return cls(path.read_text(encoding="utf-8"), str(path))

    def encode(self, text: str) -> list[int]:
        """Token ids of a plain text."""
        return self.plain.encode(text, add_special_tokens=False).ids if text else []

    def encode_with_offsets(self, text: str) -> list[tuple[int, int, int]]:
        """(id, start, end) of each token, in characters of `text`."""
        if not text:
            return []
        encoding = self.plain.encode(text, add_special_tokens=False)
        return [(i, *span) for i, span in zip(encoding.ids, encoding.offsets)]

    def decode(self, ids) -> str:
        """The text of ids; control tokens and ids outside the vocabulary have none."""
        return self.plain.decode([i for i in ids if i not in self._control_ids], skip_special_tokens=False)

    def speller(self, sample: str):
        """An encoder of explanations whose ids read back as `sample` does; ValueError if there is none.

        A normalizer that tidies white space is for prompts: explanations have line breaks."""
        for candidate in (self.plain, self._as_written):
            def spell(text: str, encoder=candidate) -> list[int]:
                return encoder.encode(text, add_special_tokens=False).ids if text else []
            if self.decode(spell(sample)) == sample:
                return spell
        raise ValueError(f"the tokenizer cannot write {sample!r} such that it reads the same")
