"""The explanation after the grade: how it is made for training and how it is checked.

Four lines follow the grade token, and each claims something that a rule can verify:
`intent` lists the query's content words; `match` lists those that are in the document (by their
stems), `gaps` those that are not, or `none`; `verdict` names the grade. Words are those of
`text.content_words`, in the query's order, the first `MAX_WORDS` of them.
"""

from __future__ import annotations

from text import content_words, stem, stems, words

VERDICTS = ("irrelevant", "related only", "partial match", "exact match")
SECTIONS = ("intent", "match", "gaps", "verdict")
MAX_WORDS = 10
NONE = "none"


def facts(query: str, document: str) -> tuple[list[str], list[str], list[str]]:
    """The query's content words, those found in the document, and those not found."""
    found = set(stems(document))
    asked = content_words(query)[:MAX_WORDS]
    return asked, [w for w in asked if stem(w) in found], [w for w in asked if stem(w) not in found]


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
    """Counts of claims made and claims true, and whether form, intent, lists and verdict hold.

    The claims are: the intent; each query word, which must be listed under the right one of
    `match` and `gaps` and not under the other; any other word listed, which is false; the verdict.
    """
    asked, found, missing = facts(query, document)
    sections = parse(text)
    if sections is None:
        claims = len(asked) + 2
        return {"well_formed": False, "claims": claims, "true": 0,
                "intent": False, "match": False, "gaps": False, "verdict": False}
    intent = words(sections["intent"]) == (asked or [NONE])
    verdict = sections["verdict"] == VERDICTS[grade]
    listed = [[] if sections[name] == NONE else words(sections[name]) for name in ("match", "gaps")]
    right = sum(w in listed[0] and w not in listed[1] for w in found)
    right += sum(w in listed[1] and w not in listed[0] for w in missing)
    strange = sum(w not in asked for w in listed[0] + listed[1])
    return {"well_formed": True, "claims": len(asked) + strange + 2, "true": right + intent + verdict,
            "intent": intent, "match": listed[0] == found, "gaps": listed[1] == missing, "verdict": verdict}
