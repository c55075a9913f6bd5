"""The bundled model's rule of explanations: its sections and words. The rule itself is `recipe.grounding`."""

from __future__ import annotations

from mini.text import STOP
from recipe import grounding
from recipe.grounding import Rule, form  # noqa: F401

SECTIONS = ("intent", "match", "gaps", "verdict")
VERDICTS = ("irrelevant", "related only", "partial match", "exact match")
NONE = "none"
MAX_WORDS = 10
RULE = Rule(SECTIONS, grounding.SAYS, VERDICTS, NONE, MAX_WORDS, STOP)


def facts(query: str, document: str) -> tuple[list[str], list[str], list[str]]:
    """The query's words that count, those found in the document, and those not found."""
    found = RULE.facts(query, document)
    return found["asked"], found["found"], found["missing"]


class Guard(grounding.Guard):
    """Watches one explanation of this model, token by token."""

    def __init__(self, encoder, query: str, document: str, grade: int):
        spell = lambda text: encoder.lines.encode(text, add_special_tokens=False).ids
        super().__init__(RULE, spell, encoder.end, query, document, grade)
