"""The explanation after the grade: how it is made for training and how it is checked.

Four lines follow the grade token, and each claims something that a rule can verify:
`intent` repeats the query; `match` says whether all, some or none of its content words (by their
stems) are in the document; `gaps` says whether none, some or all are missing; `verdict` names the
grade. Words are those of `text.content_words`.
"""

from __future__ import annotations

from text import content_words, stem, stems, words

VERDICTS = ("irrelevant", "related only", "partial match", "exact match")
SECTIONS = ("intent", "match", "gaps", "verdict")
MAX_WORDS = 24
MISSING = {"all": "none", "some": "some", "none": "all"}


def coverage(query: str, document: str) -> str:
    """Whether all, some or none of the query's content words are in the document."""
    found = set(stems(document))
    hits = [stem(w) in found for w in content_words(query)]
    return "all" if all(hits) else "some" if any(hits) else "none"


def write(query: str, document: str, grade: int) -> str:
    """The explanation that the rules give for a pair and a grade."""
    match = coverage(query, document)
    lines = (" ".join(query.lower().split()[:MAX_WORDS]), match, MISSING[match], VERDICTS[grade])
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
    """Counts of claims made and claims true, and whether form, verdict and intent hold."""
    sections = parse(text)
    if sections is None:
        return {"well_formed": False, "claims": 4, "true": 0, "verdict": False, "intent": False}
    match = coverage(query, document)
    asked = words(" ".join(query.split()[:MAX_WORDS]))
    intent = words(sections["intent"]) == asked
    verdict = sections["verdict"] == VERDICTS[grade]
    true = [intent, sections["match"] == match, sections["gaps"] == MISSING[match], verdict]
    return {"well_formed": True, "claims": 4, "true": sum(true), "verdict": verdict, "intent": intent}
