"""Prompt template to token ids, and the truncation rule: the server's, in Python.

What `src/prompt.rs` does, step by step, so that a model is trained on the very ids that it will be
asked with; `tests/test_prompt.py` compares the two. A run is what stands between control tokens and
seams `{|}`: its literals and user text are tokenized as one text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from recipe.tokens import Tokens

PIECE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
PLACEHOLDERS = ("instruction", "query", "document")
BYTES_PER_TOKEN = 8  # the server's first guess of how much of a long document can fit


class TooLong(ValueError):
    """A query or an instruction that leaves no room for a document."""


@dataclass(frozen=True)
class Part:
    """A piece of a run: a literal's text, or the name of a placeholder."""

    text: str
    placeholder: bool = False


@dataclass(frozen=True)
class Prompt:
    """Token ids of one pair, the answer position last, and whether the document was cut."""

    ids: list[int]
    truncated: bool


def beginning(text: str, most_bytes: int) -> str:
    """The first bytes of a text, whole characters only."""
    return text if len(text) * 4 <= most_bytes else text.encode()[:most_bytes].decode(errors="ignore")


class Template:
    """A parsed prompt template; ValueError if `{document}` is not in it once, or `{query}` is not."""

    def __init__(self, text: str, tokens: Tokens, instruction_format: str = "{instruction}"):
        self.tokens = tokens
        self.before, marked, self.after = instruction_format.partition("{instruction}")
        if not marked:
            raise ValueError("instruction_format: {instruction} must stand in it")
        self.blocks: list[int | list[Part]] = [[]]  # control ids and runs, in order
        self._parse(text)
        self.blocks = [b for b in self.blocks if b != []]
        parts = [p for b in self.blocks if isinstance(b, list) for p in b]
        documents = parts.count(Part("document", True))
        if documents != 1:
            raise ValueError(f"template: {{document}} must stand in it once, not {documents} times")
        if Part("query", True) not in parts:
            raise ValueError("template: {query} must stand in it")
        self.place = next(i for i, b in enumerate(self.blocks) if isinstance(b, list) and Part("document", True) in b)

    def _parse(self, text: str) -> None:
        literal, at = "", 0
        for match in PIECE.finditer(text):
            literal += text[at : match.start()]
            at, found = match.end(), match.group()
            if found in ("{{", "}}"):
                literal += found[0]
                continue
            name = match.group(1)
            if name is None:
                raise ValueError("template: a lone brace; write {{ or }}")
            if name not in (*PLACEHOLDERS, "|"):
                raise ValueError(f"template: unknown placeholder {{{name}}}; there are "
                                 "{instruction}, {query}, {document} and the seam {|}; write {{ and }} for braces")
            self._literal(literal)
            literal = ""
            self.blocks.append([]) if name == "|" else self.blocks[-1].append(Part(name, True))
        self._literal(literal + text[at:])

    def _literal(self, text: str) -> None:
        """Splits a literal at the control tokens in it: the first, of several that begin there the longest."""
        while text:
            found = [(text.find(c), -len(c), c) for c in self.tokens.controls if c and c in text]
            at, _, content = min(found, default=(len(text), 0, ""))
            if content in self.tokens.contextual:
                raise ValueError(f"template: the tokenizer defines {content!r} with lstrip, rstrip or single_word, "
                                 "which is not supported")
            if text[:at]:
                self.blocks[-1].append(Part(text[:at]))
            if content:
                self.blocks += [self.tokens.controls[content], []]
            text = text[at + len(content) :]

    def _text(self, parts, values: dict[str, str]) -> str:
        return "".join(values[p.text] if p.placeholder else p.text for p in parts)

    def last_text(self) -> str:
        """The prompt's last run, with a word for each placeholder; empty if a control token is last."""
        last = self.blocks[-1]
        return "" if isinstance(last, int) else self._text(last, dict.fromkeys(PLACEHOLDERS, "word"))

    def _check_size(self, field: str, text: str, max_tokens: int) -> None:
        """TooLong if a text cannot fit, whatever is around it: told by a beginning that is too long already."""
        bound = max_tokens * self.tokens.longest_bytes
        while bound < len(text.encode()):
            count = len(self.tokens.encode(beginning(text, bound)))
            if count > max_tokens + self.tokens.longest_bytes:
                raise TooLong(f"{field}: more than {count} tokens, over the limit of {max_tokens - 1}")
            bound *= 2

    def for_query(self, instruction: str, query: str, max_tokens: int) -> "QueryPrompt":
        """The template filled with a query; TooLong if no room is left for a document in `max_tokens`."""
        self._check_size("instruction", instruction, max_tokens)
        values = {"instruction": f"{self.before}{instruction}{self.after}" if instruction else "", "document": ""}
        filled = QueryPrompt(self, {**values, "query": query}, max_tokens)
        if filled.fixed < max_tokens:
            return filled
        bare = QueryPrompt(self, {**values, "query": ""}, max_tokens).fixed
        if bare >= max_tokens and instruction:
            raise TooLong(f"instruction: {bare} tokens with the prompt around it, over the limit of {max_tokens - 1}")
        self._check_size("query", query, max_tokens)
        raise filled.no_room()


class QueryPrompt:
    """A template filled with one query: renders any number of documents."""

    def __init__(self, template: Template, values: dict[str, str], max_tokens: int):
        self.tokens, self.max_tokens = template.tokens, max_tokens
        run = template.blocks[template.place]
        at = run.index(Part("document", True))
        self.prefix, self.suffix = template._text(run[:at], values), template._text(run[at + 1 :], values)

        def ids(blocks) -> list[int]:
            parts = ([b] if isinstance(b, int) else self.tokens.encode(template._text(b, values)) for b in blocks)
            return [i for part in parts for i in part]

        self.head, self.tail = ids(template.blocks[: template.place]), ids(template.blocks[template.place + 1 :])
        self.fixed = len(self.head) + len(self.tokens.encode(self.prefix + self.suffix)) + len(self.tail)

    def no_room(self) -> TooLong:
        return TooLong(f"query: {self.fixed} tokens with the instruction and the prompt around it, "
                       f"over the limit of {max(self.max_tokens - 1, 0)}")

    def render(self, document: str) -> Prompt:
        """The prompt of one document, cut to its longest beginning that ends where one of its tokens
        ends and fits into `max_tokens`; TooLong if nothing of it would be left."""
        bound = (self.max_tokens - self.fixed) * BYTES_PER_TOKEN
        while True:
            text = beginning(document, bound)
            whole, ids = len(text) == len(document), self._ids(text)
            fits = len(ids) <= self.max_tokens
            if whole and fits:
                return Prompt(ids, False)
            if not fits:
                return Prompt(self._cut(text), True)
            bound *= 2  # white space may leave no tokens

    def _ids(self, document: str) -> list[int]:
        return self.head + self.tokens.encode(self.prefix + document + self.suffix) + self.tail

    def _cut(self, text: str) -> list[int]:
        while True:
            text = text[: self._shorter(text)]
            if not text:
                raise self.no_room()
            ids = self._ids(text)
            if len(ids) <= self.max_tokens:
                return ids

    def _shorter(self, text: str) -> int:
        """Characters to keep so that as many tokens go as are too many; less than all."""
        begin, end = len(self.prefix), len(self.prefix) + len(text)
        found = self.tokens.encode_with_offsets(self.prefix + text + self.suffix)
        excess = max(len(found) - (self.max_tokens - len(self.head) - len(self.tail)), 1)
        last = sum(start < end for _, start, _ in found) - excess
        keep = max(found[last][1] - begin, 0) if 0 <= last < len(found) else 0
        return min(keep, len(text) - 1)
