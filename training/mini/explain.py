"""The explanation after the grade: how it is made for training and how it is checked.

Four lines follow the grade token, and each claims something that a rule can verify:
`intent` lists the query's content words; `match` lists those that are in the document (inflected
or not), `gaps` those that are not, or `none`; `verdict` names the grade. What counts as a word of
the query and as found is in `grounding.py`, the same as the server's.
"""

from __future__ import annotations

from mini.grounding import NONE, SECTIONS, VERDICTS, facts, form
from mini.text import words

LISTS = SECTIONS[:3]


def write(query: str, document: str, grade: int) -> str:
    """The explanation that the rules give for a pair and a grade."""
    lines = [" ".join(listed) or NONE for listed in facts(query, document)] + [VERDICTS[grade]]
    return "\n".join(f"{name}: {line}" for name, line in zip(SECTIONS, lines))


def parse(text: str) -> dict[str, str] | None:
    """Sections of an explanation, or None if it is not four lines in the right order."""
    lines = text.strip().split("\n")
    if len(lines) != len(SECTIONS):
        return None
    sections = {}
    for name, line in zip(SECTIONS, lines):
        head, colon, rest = line.strip().partition(":")
        if head != name or not colon or not rest.strip():
            return None
        sections[name] = rest.strip()
    return sections


def check(query: str, document: str, grade: int, text: str) -> dict:
    """Claims made and claims true; words that should be listed and that are; form and verdict.

    Each word listed is a claim: under `intent` that the query has it, under `match` and `gaps`
    that the query has it and the document has it, or has not. `none` claims that there is nothing
    to list. The verdict is one claim. What breaks the form makes one claim, a false one.
    `due` and `listed` count, by list, the words that should be there and those of them that are.
    """
    due = dict(zip(LISTS, facts(query, document)))
    counts = {"due": {k: len(v) for k, v in due.items()}, "listed": dict.fromkeys(LISTS, 0)}
    sections = parse(text)
    if sections is None:
        return {"well_formed": False, "claims": 1, "true": 0, "verdict": False, "whole": False, **counts}
    asked = {form(w) for w in words(query)}
    there = {form(w) for w in words(document)}
    holds = {"intent": lambda w: form(w) in asked, "match": lambda w: form(w) in asked & there,
             "gaps": lambda w: form(w) in asked - there}
    claims = true = 0
    for name in LISTS:
        said = [] if sections[name] == NONE else words(sections[name])
        claims += max(1, len(said))
        true += sum(map(holds[name], said)) if said else not due[name]
        counts["listed"][name] = sum(w in said for w in due[name])
    verdict = sections["verdict"] == VERDICTS[grade]
    return {"well_formed": True, "claims": claims + 1, "true": true + verdict, "verdict": verdict,
            "whole": counts["listed"] == counts["due"], **counts}
