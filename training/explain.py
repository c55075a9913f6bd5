"""The explanation after the grade: how it is made for training and how it is checked.

Four lines follow the grade token. Each claims something a rule can verify in the texts:
`intent` repeats the query's content words, `match` and `gaps` split them into those whose
stem is in the document and those whose stem is not, and `verdict` names the grade.
"""

from __future__ import annotations

from text import content_words, stem, stems

VERDICTS = ("irrelevant", "related only", "partial match", "exact match")
SECTIONS = ("intent", "match", "gaps", "verdict")
MAX_TERMS = 8


def write(query: str, document: str, grade: int) -> str:
    """The explanation that the rules give for a pair and a grade."""
    terms = content_words(query)[:MAX_TERMS]
    found = set(stems(document))
    match = [t for t in terms if stem(t) in found]
    gaps = [t for t in terms if stem(t) not in found]
    return "\n".join(
        (
            "intent: " + " ".join(terms),
            "match: " + (", ".join(match) or "none"),
            "gaps: " + (", ".join(gaps) or "none"),
            "verdict: " + VERDICTS[grade],
        )
    )


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


def _terms(cell: str) -> list[str]:
    return [] if cell == "none" else [t.strip() for t in cell.split(",")]


def check(query: str, document: str, grade: int, text: str) -> dict:
    """Counts of claims made and claims true, and whether form, verdict and cover hold."""
    sections = parse(text)
    if sections is None:
        return {"well_formed": False, "claims": 1, "true": 0, "verdict": False, "complete": False}
    wanted = content_words(query)[:MAX_TERMS]
    asked, found = {stem(t) for t in wanted}, set(stems(document))
    match, gaps = _terms(sections["match"]), _terms(sections["gaps"])
    claims = [stem(t) in asked for t in sections["intent"].split()]
    claims += [stem(t) in asked and stem(t) in found for t in match]
    claims += [stem(t) in asked and stem(t) not in found for t in gaps]
    if not match:
        claims.append(not asked & found)
    if not gaps:
        claims.append(asked <= found)
    verdict = sections["verdict"] == VERDICTS[grade]
    claims.append(verdict)
    complete = {stem(t) for t in match + gaps} == asked and set(sections["intent"].split()) == set(wanted)
    return {"well_formed": True, "claims": len(claims), "true": sum(claims), "verdict": verdict,
            "complete": complete}
