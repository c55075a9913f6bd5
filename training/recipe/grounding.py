"""What an explanation may say of query and document: the rule `[explain.grounding]`, without a model.

The same as `src/grounding/` of the server: a word of the query may be listed as found only if the
document has it (inflected or not), as missing only if it has not, and the verdict is the grade's.
The rule writes explanations for training, checks a model's, and guards one while it is decoded.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import regex

WORD = regex.compile(r"[\p{Alphabetic}\p{N}]+")  # vowel signs are letters of their words
WHOLE = frozenset("bedding canning earring evening herring inning morning outing wedding".split())
SAYS = ("asked", "found", "missing", "grade")


def words(text: str) -> list[str]:
    """Lower-case words of a text: its longest runs of letters and digits, as `src/grounding/words.rs` has them."""
    return [word.lower() for word in WORD.findall(text)]


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


@dataclass(frozen=True)
class Rule:
    """A profile's rule: names of sections in the explanation's order, and what each says."""

    sections: tuple[str, ...]
    says: tuple[str, ...]  # one of SAYS for each section
    verdicts: tuple[str, ...]  # one for each grade
    none: str
    max_words: int
    skip: frozenset[str]

    @classmethod
    def from_table(cls, table: dict, sections, grades: int) -> "Rule":
        """From `[explain.grounding]`; ValueError if it does not fit the sections and grades."""
        named = {table[says]: says for says in SAYS}
        if len(named) < len(SAYS) or set(named) != set(sections):
            raise ValueError(f"explain.grounding: asked, found, missing and grade must name each of "
                             f"explain.sections {list(sections)} once, not {[table[s] for s in SAYS]}")
        if len(table["grades"]) != grades:
            raise ValueError(f"explain.grounding.grades: {len(table['grades'])} texts for {grades} grades")
        return cls(tuple(sections), tuple(named[s] for s in sections), tuple(table["grades"]), table["none"],
                   table["max_words"], frozenset(w.lower() for w in table.get("skip", ())))

    @property
    def lists(self) -> tuple[str, ...]:
        """The sections that list words."""
        return tuple(name for name, says in zip(self.sections, self.says) if says != "grade")

    def sample(self) -> str:
        """A text of the explanation's form, with everything that a tokenizer must be able to write."""
        said = [" ".join(self.verdicts) if says == "grade" else self.none for says in self.says]
        return "\n".join(f"{name}: {text}" for name, text in zip(self.sections, said))

    def facts(self, query: str, document: str) -> dict[str, list[str]]:
        """The query's words that count (`asked`), those in the document (`found`), and the others."""
        asked = [w for w in dict.fromkeys(words(query)) if w != self.none.lower()]
        asked = ([w for w in asked if w not in self.skip] or asked)[: self.max_words]
        there = {form(w) for w in words(document)}
        return {"asked": asked, "found": [w for w in asked if form(w) in there],
                "missing": [w for w in asked if form(w) not in there]}

    def write(self, query: str, document: str, grade: int) -> str:
        """The complete true explanation of a grade, which is named by its place."""
        facts = self.facts(query, document)
        said = [self.verdicts[grade] if s == "grade" else " ".join(facts[s]) or self.none for s in self.says]
        return "\n".join(f"{name}: {text}" for name, text in zip(self.sections, said))

    def parse(self, text: str) -> dict[str, str] | None:
        """Sections of an explanation, or None if it is not one line for each, in order, none empty."""
        lines = text.strip().split("\n")
        read = [section(name, line) for name, line in zip(self.sections, lines)]
        if len(lines) != len(self.sections) or None in read:
            return None
        return dict(zip(self.sections, read))

    def claims(self, name: str, said: str | None, query: str, document: str, grade: int) -> "Claims":
        """What one section claims, and what is true of it; `said` is None where its form is broken.

        Each listed word is a claim; `none` claims that there is nothing to list; so is the verdict."""
        says = self.says[self.sections.index(name)]
        if says == "grade":
            return Claims(1, int(said == self.verdicts[grade]), 0, 0)
        due = self.facts(query, document)[says]
        if said is None:
            return Claims(1, 0, len(due), 0)
        listed = [] if said == self.none else words(said)
        asked, there = ({form(w) for w in words(text)} for text in (query, document))
        may = {"asked": asked, "found": asked & there, "missing": asked - there}[says]
        true = sum(form(w) in may for w in listed) if listed else int(not due)
        return Claims(max(1, len(listed)), true, len(due), sum(w in listed for w in due))

    def check(self, query: str, document: str, grade: int, text: str) -> dict:
        """Claims made and claims true; words that should be listed and that are; form and verdict.

        What breaks the form makes one claim, a false one. `due` and `listed` count, by list, the words
        that should be there and those of them that are."""
        read = self.parse(text)
        found = {n: self.claims(n, (read or {}).get(n), query, document, grade) for n in self.sections}
        due, listed = ({n: getattr(found[n], k) for n in self.lists} for k in ("due", "listed"))
        if read is None:
            return {"well_formed": False, "claims": 1, "true": 0, "verdict": False, "whole": False,
                    "due": due, "listed": listed}
        verdict = self.sections[self.says.index("grade")]
        return {"well_formed": True, "claims": sum(c.made for c in found.values()),
                "true": sum(c.true for c in found.values()), "verdict": bool(found[verdict].true),
                "whole": due == listed, "due": due, "listed": listed}


@dataclass(frozen=True)
class Claims:
    """Of one section: claims made, those that are true, words due, and those of them listed."""

    made: int
    true: int
    due: int
    listed: int


def section(name: str, line: str) -> str | None:
    """What stands after `name:` in a line, or None."""
    head, colon, rest = line.strip().partition(":")
    return rest.strip() if head == name and colon and rest.strip() else None


class Guard:
    """Watches one explanation, token by token: see `take`."""

    def __init__(self, rule: Rule, spell, stop: int, query: str, document: str, grade: int):
        """`spell` gives the token ids of a part of an explanation."""
        facts = rule.facts(query, document)
        self.end, self.verdict, self.none = stop, spell(f" {rule.verdicts[grade]}"), spell(f" {rule.none}")
        self.openings = [spell(f"{name}:" if i == 0 else f"\n{name}:") for i, name in enumerate(rule.sections)]
        self.lists = [None if s == "grade" else [spell(f" {w}") for w in facts[s]] for s in rule.says]
        self.opened, self.listed, self.said, self.written = 0, set(), True, 0
        self.open = self._choices()

    def _choices(self) -> list[tuple[object, list[int]]]:
        """What may come next, the rule's own choice first: ("word", place), "whole" or "next"."""
        now = self.lists[self.opened - 1] if 0 < self.opened <= len(self.lists) else []
        choices: list[tuple[object, list[int]]] = [(("word", i), ids) for i, ids in enumerate(now or []) if i not in self.listed]
        if not choices and not self.said:
            choices = [("whole", self.verdict if now is None else self.none)]
        if self.said:
            choices.append(("next", self.openings[self.opened] if self.opened < len(self.lists) else [self.end]))
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
