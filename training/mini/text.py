"""Words, stems and BM25: the lexical side of teachers, baselines and checks."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from functools import lru_cache

import snowballstemmer

from recipe.grounding import words

STOP = frozenset(
    """a about above after again all also am an and any are as at be because been before being
    between both but by can could did do does doing down during each few for from further give
    had has have having he her here hers him his how i if in into is it its itself just list me
    more most my near no nor not of off on once only or other our out over own same she should so
    some such than that the their them then there these they this those through to too under
    until up very was we were what when where which while who whom whose why will with would you
    your s t don d ll m re ve""".split()
)
_STEMMER = snowballstemmer.stemmer("english")


@lru_cache(maxsize=400_000)
def stem(word: str) -> str:
    """English Snowball stem of one lower-case word."""
    return _STEMMER.stemWord(word)


def stems(text: str) -> list[str]:
    """Stems of all words of a text."""
    return [stem(w) for w in words(text)]


def content_words(text: str) -> list[str]:
    """Distinct words that carry meaning, in order; all words if none would be left."""
    seen = list(dict.fromkeys(words(text)))
    return [w for w in seen if w not in STOP] or seen


class Bm25:
    """BM25 over a fixed collection of stemmed documents (2 x title + text)."""

    def __init__(self, docs, k1: float = 1.2, b: float = 0.75):
        self.k1, self.b = k1, b
        self.tf = [Counter(d) for d in docs]
        self.length = [len(d) for d in docs]
        self.mean = sum(self.length) / max(1, len(docs))
        df = Counter(t for c in self.tf for t in c)
        n = len(docs)
        self.idf = {t: math.log(1 + (n - f + 0.5) / (f + 0.5)) for t, f in df.items()}
        self.default_idf = math.log(1 + (n + 0.5) / 0.5)
        self._postings = None

    def score(self, query_stems, index: int) -> float:
        """Score of one document for a stemmed query."""
        return self.match(query_stems, self.tf[index], self.length[index])

    def match(self, query_stems, tf, length: int) -> float:
        """Score of any text of `length` stems, `tf` of each, by this collection's frequencies."""
        total = 0.0
        norm = self.k1 * (1 - self.b + self.b * length / max(self.mean, 1e-9))
        for term in query_stems:
            f = tf.get(term, 0)
            if f:
                total += self.idf.get(term, self.default_idf) * f * (self.k1 + 1) / (f + norm)
        return total

    def top(self, query_stems, k: int) -> list[int]:
        """Indices of the k best documents for a stemmed query."""
        if self._postings is None:
            self._postings = defaultdict(list)
            for i, tf in enumerate(self.tf):
                for term in tf:
                    self._postings[term].append(i)
        found = {i for t in set(query_stems) for i in self._postings.get(t, ())}
        ranked = sorted(((-self.score(query_stems, i), i) for i in found))
        return [i for _, i in ranked[:k]]

    def coverage(self, query: str, doc_stems: set) -> float:
        """Share of the query's content words, weighted by idf, found in the document."""
        pairs = [(self.idf.get(s, self.default_idf), s) for s in map(stem, content_words(query))]
        total = sum(w for w, _ in pairs)
        return sum(w for w, s in pairs if s in doc_stems) / total if total else 0.0


def bm25_document(title: str, text: str) -> list[str]:
    """Stems of a document as the BM25 baseline sees it: title twice, then text."""
    return stems(f"{title} {title} {text}")
