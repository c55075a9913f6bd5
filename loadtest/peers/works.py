"""The works that are timed, as requests with real English texts.

A: one query with one document. B: one query with twenty documents.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

CORPUS = Path(__file__).resolve().parents[1] / "corpus"
DOCUMENTS = {"A": 1, "B": 20}
# Every document has as many tokens, so that peers that pad, or that batch prompts of one length, lose
# nothing by it.
DOCUMENT_TOKENS = 106
MODES = ["repeated", "fresh"]


@dataclass(frozen=True)
class Request:
    """One request."""

    query: str
    documents: list[str]


class Works:
    """Deals out requests: documents of each round in turn, queries repeated or never seen."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.passages = (CORPUS / "passages.txt").read_text().splitlines()
        self.queries = (CORPUS / "queries.txt").read_text().splitlines()

    def request(self, work: str, mode: str, turn: int) -> Request:
        """The request of one turn; the same for every contender.

        No document comes twice: each begins with a number of its own. In mode "repeated" the query is always the
        same, so a server that keeps the prefix of a hot query may profit; in mode "fresh" no turn's
        query was ever seen before, so only the part of the prompt before the query can be kept.
        """
        count = DOCUMENTS[work]
        start = turn * count
        serial = 1000 * (1 + 2 * "AB".index(work) + MODES.index(mode)) + start
        passages = [self.passages[(start + i) % len(self.passages)] for i in range(count)]
        documents = [self.cut(f"{serial + i}. {passage}") for i, passage in enumerate(passages)]
        if mode == "repeated":
            return Request(self.queries[0], documents)
        lap, index = divmod(turn, len(self.queries) - 1)
        query = self.queries[1 + index]
        # Works and laps differ from the first word on: nothing of a query is shared with another.
        return Request(f"{work}{lap}: {query}", documents)

    def cut(self, text: str) -> str:
        """The beginning of a text, of DOCUMENT_TOKENS tokens."""
        offsets = self.tokenizer.encode(text, add_special_tokens=False).offsets
        short = text[: offsets[DOCUMENT_TOKENS - 1][1]]
        tokens = len(self.tokenizer.encode(short, add_special_tokens=False).ids)
        if tokens != DOCUMENT_TOKENS:
            raise SystemExit(f"{tokens} tokens after cutting {text!r}")
        return short
