"""A model's relevance.toml: how it is asked and what its grades are.

The one source of prompt and scale, in training as in serving. What the server refuses is refused
here too, where it matters for training.
"""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass, field, replace
from pathlib import Path

from recipe.document import DocumentTemplate
from recipe.grounding import Rule
from recipe.prompt import Prompt, Template
from recipe.tokens import Tokens

DEFAULT_MAX_TOKENS = 8192


@dataclass(frozen=True)
class Grade:
    """One grade: its name, value on the scale, and the id of its one token."""

    name: str
    value: float
    token: int


@dataclass
class Profile:
    """What relevance.toml says, checked against the tokenizer."""

    origin: str
    tokens: Tokens
    template: Template
    document: DocumentTemplate
    instruction: str
    max_tokens: int
    grades: list[Grade]
    stop: int | None = None  # ends an explanation; None: the model does not explain
    sections: list[str] = field(default_factory=list)
    explain_tokens: int = 0  # most tokens of an explanation
    rule: Rule | None = None
    temperature: float = 1.0  # divides the logits of what is served
    points: list[list[float]] = field(default_factory=list)  # then a rising map of the score; none if empty
    _spell: object = None  # the rule's way to write; without a rule each text finds its own

    @classmethod
    def load(cls, checkpoint: str | Path, file: str | Path | None = None) -> "Profile":
        """From a checkpoint's directory and its relevance.toml, or another one.

        ValueError, beginning with the path, if it is not sound."""
        directory = Path(checkpoint)
        path = Path(file) if file else directory / "relevance.toml"
        with open(path, "rb") as opened, open(directory / "config.json", "rb") as described:
            table, config = _parsed(path, tomllib.load, opened), _parsed(described.name, json.load, described)
        try:
            return _profile(str(path), table, Tokens.load(directory), config)
        except KeyError as missing:
            raise ValueError(f"{path}: {missing.args[0]} is missing") from missing
        except ValueError as problem:
            raise ValueError(f"{path}: {problem}") from problem

    @property
    def values(self) -> list[float]:
        """The grades' values, in their order."""
        return [g.value for g in self.grades]

    @property
    def grade_ids(self) -> list[int]:
        """The grades' tokens, in their order."""
        return [g.token for g in self.grades]

    def place(self, name: str) -> int:
        """A grade's place by its name; ValueError naming the known ones."""
        names = [g.name for g in self.grades]
        if name not in names:
            raise ValueError(f"grade {name!r} is none of the model's grades {names}")
        return names.index(name)

    def render_document(self, document: str | dict) -> str:
        """A document as text: as it is, or its fields put into the profile's template."""
        return document if isinstance(document, str) else self.document.render(document)

    def prompt(self, query: str, document: str | dict, instruction: str | None = None,
               max_tokens: int | None = None) -> Prompt:
        """The prompt of a pair; TooLong if the query leaves no room for a document."""
        asked = self.instruction if instruction is None else instruction
        most = min(max_tokens or self.max_tokens, self.max_tokens)
        return self.template.for_query(asked, query, most).render(self.render_document(document))

    def explanation(self, text: str) -> list[int]:
        """Token ids of an explanation and of what ends it; ValueError if the model does not explain."""
        if self.stop is None:
            raise ValueError(f"{self.origin}: has no [explain] table")
        return self.spell(text) + [self.stop]

    def spell(self, text: str) -> list[int]:
        """Token ids of (a part of) an explanation, as the server's rule would write it."""
        return (self._spell or self.tokens.speller(text))(text)


def _parsed(path, load, file) -> dict:
    try:
        return load(file)
    except ValueError as problem:
        raise ValueError(f"{path}: {problem}") from None


def _profile(origin: str, table: dict, tokens: Tokens, config: dict) -> Profile:
    if "profile" in table:
        raise ValueError("profile: built-in profiles are for serving; write the profile out for training")
    prompt = table.get("prompt", {})
    if "template" not in prompt:
        raise KeyError("prompt.template")
    template = Template(prompt["template"], tokens, prompt.get("instruction_format", "{instruction}"))
    most = config.get("max_position_embeddings", DEFAULT_MAX_TOKENS)
    max_tokens = prompt.get("max_tokens", min(most, DEFAULT_MAX_TOKENS))
    if not 0 < max_tokens <= most:
        raise ValueError(f"prompt.max_tokens {max_tokens} is not in 1 to the checkpoint's "
                         f"max_position_embeddings of {most}")
    calibration = table.get("calibration", {})
    profile = Profile(origin, tokens, template, DocumentTemplate(prompt.get("document", "{title} {text}")),
                      prompt.get("instruction", ""), max_tokens,
                      _read(_grades(table["grades"], template, tokens), table.get("score", {})),
                      temperature=calibration.get("temperature", 1.0), points=calibration.get("points", []))
    if "explain" in table:
        _explain(profile, table["explain"])
    return profile


def _grades(rows: list[dict], template: Template, tokens: Tokens) -> list[Grade]:
    grades = [Grade(row.get("name", row["token"].strip()), float(row.get("value", i)),
                    _grade_token(i, row["token"], template, tokens)) for i, row in enumerate(rows)]
    for what, known in (("token", {g.token for g in grades}), ("name", {g.name for g in grades})):
        if len(known) < len(grades):
            raise ValueError(f"grades: two grades have the same {what}")
    if len({g.value for g in grades}) < 2:
        raise ValueError("grades: at least two grades of different value are needed")
    return grades


def _read(grades: list[Grade], score: dict) -> list[Grade]:
    """The grades with the values that the score is read by: of a softmax, 0 and 1 whatever theirs are."""
    if score.get("read", "expected") != "softmax":
        return grades
    values = {score[end]: value for end, value in (("negative", 0.0), ("positive", 1.0)) if end in score}
    if len(values) < 2 or set(values) != {g.name for g in grades}:
        raise ValueError(f'score: read = "softmax" can be trained where positive and negative are the two grades; '
                         f"they are {list(values)}, and the grades {[g.name for g in grades]}")
    return [replace(g, value=values[g.name]) for g in grades]


def _grade_token(place: int, text: str, template: Template, tokens: Tokens) -> int:
    """The one token of a grade: a control token, or a text that is one token alone and after the prompt."""
    if text in tokens.controls:
        return tokens.controls[text]
    alone = tokens.encode(text)
    if len(alone) != 1:
        raise ValueError(f"grades[{place}].token {text!r} is {len(alone)} tokens, {alone}; it must be exactly one")
    last = template.last_text()
    before, after = tokens.encode(last), tokens.encode(last + text)
    if after != before + alone:
        raise ValueError(f"grades[{place}].token {text!r} is not the same one token after the prompt")
    return alone[0]


def _explain(profile: Profile, table: dict) -> None:
    stop, tokens = table["stop"][0], profile.tokens
    ids = [tokens.controls[stop]] if stop in tokens.controls else tokens.encode(stop)
    if len(ids) != 1:
        raise ValueError(f"explain.stop {stop!r} is {len(ids)} tokens; it must be one")
    profile.stop, profile.sections = ids[0], list(table.get("sections", []))
    profile.explain_tokens = table["max_tokens"]
    if "grounding" in table:
        profile.rule = Rule.from_table(table["grounding"], profile.sections, len(profile.grades))
        profile._spell = tokens.speller(profile.rule.sample())
