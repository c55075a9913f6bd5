"""Judged data, product texts and WordNet glosses, read from a data directory.

The directory holds `judgments/{esci,dbpedia,selqa}.jsonl.gz` and `text/products.jsonl.gz`;
it is named by `--data` or VERDICT_DATA and never lies in this repository.
"""

from __future__ import annotations

import gzip
import json
import os
from dataclasses import dataclass, field
from pathlib import Path

SETS = ("esci", "dbpedia", "selqa")
FOLDS = (1, 2, 3, 4)
DEFAULT = "web search"
INSTRUCTIONS = {"esci": "product search", "dbpedia": "entity search", "selqa": "answer sentence"}


@dataclass
class Document:
    """One judged document."""

    doc_id: str
    title: str
    text: str
    grade: int = 0

    def render(self, max_words: int = 10_000) -> str:
        """The document as the model reads it: title, space, text; the first words only."""
        return " ".join(f"{self.title} {self.text}".split()[:max_words])


@dataclass
class Query:
    """One query with its judged documents."""

    dataset: str
    query_id: str
    text: str
    fold: int
    max_grade: int
    docs: list[Document] = field(default_factory=list)

    @property
    def gains(self) -> list[float]:
        """Linear gains, grade over the set's highest grade."""
        return [d.grade / self.max_grade for d in self.docs]


def data_dir(given: str | None) -> Path:
    """The data directory from a flag or VERDICT_DATA; a clear error if there is none."""
    path = given or os.environ.get("VERDICT_DATA")
    if not path:
        raise SystemExit("name the data directory with --data or VERDICT_DATA")
    return Path(path)


def read_lines(path: Path):
    """Objects of a gzipped JSON-lines file."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def judged(root: Path, dataset: str) -> list[Query]:
    """All queries of one judged set, documents in file order."""
    found: dict[str, Query] = {}
    for row in read_lines(root / "judgments" / f"{dataset}.jsonl.gz"):
        query = found.get(row["query_id"])
        if query is None:
            query = Query(dataset, row["query_id"], row["query"], row["fold"], row["max_grade"])
            found[row["query_id"]] = query
        query.docs.append(Document(row["doc_id"], row["title"], row["text"], row["grade"]))
    return list(found.values())


def products(root: Path) -> list[dict]:
    """Products as {doc_id, title, text, brand, color, leaf}; links between them are not read."""
    rows = []
    for row in read_lines(root / "text" / "products.jsonl.gz"):
        category = row.get("category") or []
        parts = [row.get("brand"), row.get("color"), " > ".join(category)]
        parts += [row.get("bullet_points"), row.get("description")]
        text = " ".join(p.replace("\n", " ") for p in parts if p)
        leaf = category[-1] if category else ""
        rows.append(
            {"doc_id": row["asin"], "title": row["title"] or "", "text": text, "leaf": leaf,
             "brand": row.get("brand") or "", "color": row.get("color") or ""}
        )
    return rows


def wordnet(root: Path) -> list[dict]:
    """WordNet noun and verb synsets as {words, gloss}; root holds data.noun, data.verb."""
    synsets = []
    for part in ("noun", "verb"):
        for line in open(root / f"data.{part}", encoding="utf-8"):
            if line.startswith("  "):
                continue
            head, _, gloss = line.partition(" | ")
            cells = head.split()
            count = int(cells[3], 16)
            names = [cells[4 + 2 * i].replace("_", " ") for i in range(count)]
            synsets.append({"words": names, "gloss": gloss.strip()})
    return synsets
