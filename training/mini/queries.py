"""Queries as people ask about things: made of names and common words, without any judged query.

What they ask for need not make sense: the teacher says what each means."""

from __future__ import annotations

import random

FORMS = (
    "{name} {noun}", "{name} {noun}", "{noun} {name}", "{noun} of {name}", "{noun} in {name}", "{name} {noun} {other}",
    "{noun} {other}", "{noun} {other} {third}", "{noun} for {other}", "{noun} by {name}", "{name} and {second}",
    "{name} {second}", "{name} {second} {noun}", "{nouns} and {noun} in {name}", "{nouns} of {name}", "list of {nouns} in {name}",
    "all {nouns} of {name}", "give me all {nouns} of {name}", "{nouns} that {verb} {noun}", "{nouns} who {verb} {name}",
    "who is {name}", "who is the {noun} of {name}", "who {verb}s {name}", "who was the first {noun} in {name}",
    "what is {name}", "what is the {noun} of {name}", "what {noun} does {name} {verb}", "what {nouns} did {name} {verb}",
    "which {nouns} are in {name}", "which {noun} has the most {nouns}", "in which {noun} is {name}", "where is {name}",
    "where did {name} {verb} the {noun}", "when was the {noun} of {name}", "when did {name} {verb}", "how many {nouns} does {name} have",
    "how did {name} {verb} {noun}", "how is {noun} {other} used", "why did {name} {verb} {noun}", "is {name} a {noun}",
    "did {name} {verb} a {noun}", "{name} {noun} 20{number}", "19{number} {noun} {name}", "best {nouns} in {name}",
    "{name} {noun} {other} {verb} {third}", "{name} {second} {noun} {other}", "{noun} {other} {name} {third} {second}",
)


class Words:
    """Common nouns and verbs, and names of up to three words, to make queries of."""

    def __init__(self, synsets: list[dict], names: list[str], common):
        known = lambda s: [w for w in s["words"] if w.isalpha() and w.islower() and common(w)]
        verb = lambda s: s["gloss"].startswith(("make ", "be ", "cause ", "become ", "have ", "give ", "take ", "move "))
        self.verbs = sorted({w for s in synsets if verb(s) for w in known(s)})
        self.nouns = sorted({w for s in synsets for w in known(s)} - set(self.verbs))
        self.names = [n for n in names if n.count(" ") < 3] or self.nouns

    def query(self, rng: random.Random, name: str | None = None) -> str:
        """A query, about `name` or about any other."""
        noun = rng.choice(self.nouns)
        plural = noun[:-1] + "ies" if noun.endswith("y") else noun + "s"
        parts = {"noun": noun, "nouns": plural, "other": rng.choice(self.nouns), "third": rng.choice(self.nouns),
                 "name": name or rng.choice(self.names), "second": rng.choice(self.names), "verb": rng.choice(self.verbs),
                 "number": rng.randrange(10, 100)}
        forms = [form for form in FORMS if "{name}" in form] if name else FORMS
        return rng.choice(forms).format(**parts)
