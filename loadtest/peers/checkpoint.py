"""What run.py and the peers read of a checkpoint: its prompt, its grades, its tokens."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from os.path import commonprefix
from pathlib import Path

from tokenizers import Tokenizer

ROOT = Path(__file__).resolve().parents[2]
BUILTIN = ROOT / "src" / "profile" / "builtin"
SEAM = "{|}"


@dataclass(frozen=True)
class Pair:
    """One rendered pair: its token ids, and how many of them its request's other pairs share."""

    tokens: list[int]
    shared: int


class Checkpoint:
    """A model directory, read independently of the server: a check on its prompts as well."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        self.tokenizer.no_truncation()
        profile = tomllib.loads((directory / "relevance.toml").read_text())
        if "profile" in profile:
            base = tomllib.loads((BUILTIN / f"{profile['profile']}.toml").read_text())
            profile = {**base, **profile}
        self.instruction = profile["prompt"]["instruction"]
        template = profile["prompt"]["template"]
        if template.startswith("\n"):
            template = template[1:]
        self.pieces = template.split(SEAM)
        self.grades = [self.token(grade["token"]) for grade in profile["grades"]]
        self.names = [grade.get("name", grade["token"]) for grade in profile["grades"]]

    def token(self, text: str) -> int:
        """The one token of a grade's text."""
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        if len(ids) != 1:
            raise SystemExit(f"{self.directory}: {text!r} is {len(ids)} tokens, not one")
        return ids[0]

    def render(self, query: str, document: str) -> list[int]:
        """Token ids of one pair; the pieces between seams are tokenized apart."""
        ids: list[int] = []
        for piece in self.pieces:
            text = piece.replace("{instruction}", self.instruction)
            text = text.replace("{query}", query).replace("{document}", document)
            ids += self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def request(self, query: str, documents: list[str]) -> list[Pair]:
        """All pairs of one request."""
        prompts = [self.render(query, document) for document in documents]
        # One pair has no mates: what it would share with another document of the same query.
        others = prompts if len(prompts) > 1 else [*prompts, self.render(query, "{another text}")]
        # commonprefix takes any sequences. The last token is always left to compute.
        shared = len(commonprefix(others))
        shared = min([shared, *(len(prompt) - 1 for prompt in prompts)])
        return [Pair(prompt, shared) for prompt in prompts]
