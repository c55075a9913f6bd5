"""The rule that keeps explanations true, as the server applies it while it decodes.

The same as `src/grounding/` of the server, so that what is measured here is what is served: a word
of the query may be listed under `match` only if the document has it (inflected or not), under
`gaps` only if it has not, and the verdict is that of the grade. A token that breaks this gives way
to the rule's own.
"""

from __future__ import annotations

from functools import lru_cache

from mini.text import STOP, words

SECTIONS = ("intent", "match", "gaps", "verdict")
VERDICTS = ("irrelevant", "related only", "partial match", "exact match")
NONE = "none"
MAX_WORDS = 10
WHOLE = frozenset("bedding canning earring evening herring inning morning outing wedding".split())


@lru_cache(maxsize=400_000)
def form(word: str) -> str:
    """A lower-case word without English inflection (-s, -es, -ed, -ing, a final e)."""
    if not (word.isascii() and word.isalpha()):
        return word
    word = _singular(word)
    word = word if word in WHOLE else _present(word)
    return word[:-1] if word.endswith("e") and len(word) > 3 else word


def _singular(word: str) -> str:
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith("es") and word[:-2].endswith(("s", "x", "z", "ch", "sh")):
        return word[:-2]
    if word.endswith("s") and not word.endswith(("ss", "us", "is")) and len(word) > 3:
        return word[:-1]
    return word


def _present(word: str) -> str:
    if word.endswith("ied") and len(word) > 4:
        return word[:-3] + "y"
    stem = word[:-3] if word.endswith("ing") else word[:-2] if word.endswith("ed") else ""
    if len(stem) < 3 or stem.endswith("e") or not set(stem) & set("aeiouy"):
        return word
    doubled = stem[-1] == stem[-2] and stem[-1] not in "aeioulsz"
    return stem[:-1] if doubled else stem


def facts(query: str, document: str) -> tuple[list[str], list[str], list[str]]:
    """The query's words that count, those found in the document, and those not found."""
    asked = [w for w in dict.fromkeys(words(query)) if w != NONE]
    asked = ([w for w in asked if w not in STOP] or asked)[:MAX_WORDS]
    there = {form(w) for w in words(document)}
    return asked, [w for w in asked if form(w) in there], [w for w in asked if form(w) not in there]


class Guard:
    """Watches one explanation, token by token: see `take`."""

    def __init__(self, encoder, query: str, document: str, grade: int):
        spell = lambda text: encoder.lines.encode(text, add_special_tokens=False).ids
        self.end, self.verdict = encoder.end, spell(f" {VERDICTS[grade]}")
        self.none = spell(f" {NONE}")
        self.openings = [spell(f"{name}:" if i == 0 else f"\n{name}:") for i, name in enumerate(SECTIONS)]
        self.lists = [[spell(f" {w}") for w in listed] for listed in facts(query, document)]
        self.opened, self.listed, self.said, self.written = 0, set(), True, 0
        self.open = self._choices()

    def _choices(self) -> list[tuple[object, list[int]]]:
        """What may come next, the rule's own choice first: ("word", place), "whole" or "next"."""
        choices: list[tuple[object, list[int]]] = []
        if 0 < self.opened < len(SECTIONS):
            words = enumerate(self.lists[self.opened - 1])
            choices = [(("word", i), ids) for i, ids in words if i not in self.listed]
        if not choices and not self.said:
            choices = [("whole", self.verdict if self.opened == len(SECTIONS) else self.none)]
        if self.said:
            choices.append(("next", self.openings[self.opened] if self.opened < len(SECTIONS) else [self.end]))
        return choices

    def take(self, token: int) -> int:
        """The token that is written when the model's is `token`."""
        at = self.written
        fits = any(ids[at : at + 1] == [token] for _, ids in self.open)
        whole = [piece for piece, ids in self.open if len(ids) == at]
        if not fits and whole:
            self._complete(whole[0])
            return self.take(token)
        if not fits:
            token = next(ids[at] for _, ids in self.open if len(ids) > at)
        self.open = [(piece, ids) for piece, ids in self.open if ids[at : at + 1] == [token]]
        self.written += 1
        if len(self.open) == 1 and len(self.open[0][1]) == self.written:
            self._complete(self.open[0][0])
        return token

    def _complete(self, piece) -> None:
        if piece == "next":
            self.opened, self.listed, self.said = self.opened + 1, set(), False
        else:
            self.said = True
            if piece != "whole":
                self.listed.add(piece[1])
        self.written = 0
        self.open = self._choices()
