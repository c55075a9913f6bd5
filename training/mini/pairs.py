"""Groups of one query with several documents: generated without labels, or judged.

A group's targets blend teachers and, where there is one, the human label. `soft_grades`
turns a target in [0, 1] into a distribution over the four grades.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np

from mini import data
from mini.queries import Words
from mini.ranker import Ranker
from mini.text import Bm25, content_words, stem, stems, words

GROUP = 8
THRESHOLDS, WIDTH = np.array([0.25, 0.43, 0.62]), 0.05
GRADE_VALUE = {"esci": (0, 1, 2, 3), "dbpedia": (0, 2, 3), "selqa": (0, 3)}
COSINE_SHARE = {"esci": 0.7, "dbpedia": 0.95, "selqa": 0.5, "default": 0.8}  # rest: coverage
RANKED = ("dbpedia", "selqa")  # sets with judgments enough for a ranker of their own
LABEL_TARGET = (0.08, 0.34, 0.54, 0.82)  # a grade's place on the target scale
STYLES = ("what is {}", "how to {}", "best {}", "{} meaning", "what are {}", "why {}", "{} explained",
          "find {}", "i need {}", "how do i {}", "which {}", "{} guide")


@dataclass
class Group:
    """One query, its documents as the model reads them and as the teacher reads them."""

    domain: str
    query: str
    docs: list[str]
    teacher_docs: list[str]
    bonus: list[float]
    grades: list[int] | None = None
    titles: list[str] | None = None  # of judged sets' documents
    target: np.ndarray | None = None
    meaning: np.ndarray | None = None  # teacher's coordinates of the query, then of each document


def soft_grades(target) -> np.ndarray:
    """Ordinal distribution over grades for targets in [0, 1]; rows sum to one."""
    above = 1 / (1 + np.exp(-(np.asarray(target)[..., None] - THRESHOLDS) / WIDTH))
    ones, zeros = np.ones_like(above[..., :1]), np.zeros_like(above[..., :1])
    steps = np.concatenate([ones, above, zeros], -1)
    return steps[..., :-1] - steps[..., 1:]


def taught(dataset: str, doc: data.Document) -> str:
    """What the teachers read of a judged document."""
    return doc.title if dataset == "esci" else doc.render(40)


def cut(rng: random.Random, text: str) -> str:
    """The first words of a document: mostly short, sometimes long."""
    size = rng.choices((16, 32, 60, 120, 300), (2, 4, 4, 1, 0.15))[0]
    return " ".join(text.split()[:size])


def _span(rng, source: list[str], low: int, high: int) -> list[str]:
    size = min(len(source), rng.randint(low, high))
    at = rng.randint(0, len(source) - size)
    return source[at : at + size]


def _product_query(rng, p) -> str:
    kind = rng.random()
    title = content_words(p["title"]) or ["item"]
    if kind < 0.3:
        return " ".join(_span(rng, title, 2, 4))
    if kind < 0.55:
        picks = sorted(rng.sample(range(len(title)), min(len(title), rng.randint(2, 4))))
        return " ".join(title[i] for i in picks)
    if kind < 0.75 and p["leaf"]:
        extra = rng.choice((p["brand"], p["color"], "", ""))
        return " ".join(words(f"{extra} {p['leaf']}")[:6])
    if kind < 0.9:
        return " ".join(_span(rng, words(p["text"]) or title, 3, 7))
    return " ".join(_span(rng, words(p["title"]) or title, 4, 8))


def _entry_query(rng, synset) -> str:
    name = rng.choice(synset["words"])
    query = name
    if rng.random() < 0.5:
        source = content_words(synset["gloss"].split(";")[0])
        query = " ".join(_span(rng, source or [name], 2, 6))
        if rng.random() < 0.3:
            query = f"{name} {query}"
    return rng.choice(STYLES).format(query) if rng.random() < 0.4 else query


def _gloss(synset, first: bool) -> str:
    gloss = synset["gloss"].replace('"', "")
    return gloss.split(";")[0] if first else gloss


class Shelf:
    """Documents of one kind, with the queries that can be made from them.

    `texts` are the documents as the teacher reads them and `shown(rng, i)` as the model does;
    `sources` are the documents that queries are made from."""

    def __init__(self, domain, texts, sources, query, shown=None):
        self.domain, self.texts, self.sources, self.query = domain, texts, sources, query
        self.shown = shown or (lambda rng, i: texts[i])
        self.with_stem: dict[str, list[int]] = {}
        for i, text in enumerate(texts):
            for s in {stem(w) for w in content_words(text)}:
                self.with_stem.setdefault(s, []).append(i)

    def sharing(self, rng, query: str) -> int:
        """A document that shares a word with the query; any document if none does."""
        stems_of = [s for s in map(stem, content_words(query)) if s in self.with_stem]
        return rng.choice(self.with_stem[rng.choice(stems_of)]) if stems_of else rng.randrange(len(self.texts))


def shelves(items: list[dict], synsets: list[dict], names: list[str], asking: Words, common, seed: int) -> list[Shelf]:
    """Products; dictionary entries; definitions without their word; their names alone; other names."""
    rng = random.Random(seed)
    usual = [s for s in synsets if any(common(w) for w in s["words"])]
    bare = rng.sample(usual, min(len(usual), 30_000))
    named = list({s["words"][0]: s for s in synsets}.values())

    def product(rng, i):
        p = items[i]
        return p["title"] if rng.random() < 0.4 else cut(rng, f"{p['title']} {p['text']}")

    def of(chosen):
        return lambda rng, i: _entry_query(rng, chosen[i])

    def about(rng, i):
        short = names[i].count(" ") < 4 and rng.random() < 0.6
        return asking.query(rng, names[i]) if short else _spoken(rng, names[i])

    entries = [f"{', '.join(s['words'][:4])}: {_gloss(s, i % 2 == 0)}" for i, s in enumerate(usual)]
    return [
        Shelf("esci", [p["title"] for p in items], range(len(items)),
              lambda rng, i: _product_query(rng, items[i]), product),
        Shelf("default", entries, range(len(usual)), of(usual)),
        Shelf("default", [_gloss(s, i % 2 == 0) for i, s in enumerate(bare)], range(len(bare)), of(bare)),
        Shelf("dbpedia", [s["words"][0] for s in named], range(len(named)), of(named)),
        *([Shelf("dbpedia", names, range(len(names)), about)] if names else []),
    ]


def shelf_groups(shelf: Shelf, teacher, count: int, seed: int):
    """Label-free groups: the source, what the teacher finds near, what shares a word, and others."""
    rng = random.Random(seed)
    sources = [rng.choice(shelf.sources) for _ in range(count)]
    queries = [shelf.query(rng, i) for i in sources]
    teacher.prepare(queries + shelf.texts)
    near = teacher.nearest(queries, shelf.texts, 120)
    for source, query, close in zip(sources, queries, near):
        picks = [source, *rng.sample(close[:12], 2), rng.choice(close), shelf.sharing(rng, query)]
        picks += [rng.randrange(len(shelf.texts)) for _ in range(GROUP - len(picks))]
        bonus = [0.1 if i == source else 0.0 for i in picks]
        seen = [shelf.texts[i] for i in picks]
        docs = [shelf.shown(rng, i) for i in picks]
        if shelf.domain == "default" and rng.random() < 0.15:  # a passage may hold other things too
            at, other = rng.randrange(2), shelf.texts[rng.randrange(len(shelf.texts))]
            docs[at] = f"{docs[at]}. {other}" if rng.random() < 0.7 else f"{other}. {docs[at]}"
            seen[at] = docs[at]
        yield Group(shelf.domain, query, docs, seen, bonus)


def unjudged_groups(queries: list[data.Query], teacher, rounds: int, made: int, seed: int):
    """Groups that nobody judged, for a teacher to grade: `rounds` for each training query and `made`
    for queries made from documents, with documents of the same set that are near, share a word, or neither."""
    rng, domain = random.Random(seed), queries[0].dataset
    titles = {taught(domain, d): d.title for q in queries for d in q.docs}
    texts = list(titles)
    shelf = Shelf(domain, texts, range(len(texts)), None)
    asked = [q.text for q in queries]
    teacher.prepare(asked + texts)
    near = dict(zip(asked, teacher.nearest(asked, texts, 120)))
    for text in asked * rounds:
        close = near[text]
        picks = [*rng.sample(close[:16], 3), *rng.sample(close[16:], 2), shelf.sharing(rng, text), shelf.sharing(rng, text),
                 rng.randrange(len(texts))]
        docs = [texts[i] for i in picks]
        yield Group(domain, text, docs, docs, [0.0] * GROUP, titles=[titles[d] for d in docs])
    sources = [rng.randrange(len(texts)) for _ in range(made)]
    formed = [_spoken(rng, texts[i]) for i in sources]
    teacher.prepare(formed)
    for source, text, close in zip(sources, formed, teacher.nearest(formed, texts, 40)):
        picks = [source, *rng.sample(close[:12], 3), rng.choice(close), shelf.sharing(rng, text), *rng.sample(range(len(texts)), 2)]
        docs = [texts[i] for i in picks]
        yield Group(domain, text, docs, docs, [0.1] + [0.0] * (GROUP - 1), titles=[titles[d] for d in docs])


def _spoken(rng, source: str) -> str:
    """A query made from some of a text's words."""
    tokens = content_words(source) or ["x"]
    chosen = rng.sample(range(len(tokens)), min(len(tokens), rng.randint(2, 6)))
    query = " ".join(tokens[i] for i in sorted(chosen))
    return rng.choice(STYLES).format(query) if rng.random() < 0.3 else query


def judged_groups(queries: list[data.Query], rounds: int, seed: int):
    """Groups from judged documents: relevant and not, plus a document of another query as grade 0."""
    rng = random.Random(seed)
    for _ in range(rounds):
        for query in rng.sample(queries, len(queries)):
            docs = sorted(query.docs, key=lambda d: rng.random())
            best = [d for d in docs if d.grade][: rng.randint(2, 4)]
            rest = [d for d in docs if d not in best][: GROUP - 1 - len(best)]
            other = rng.choice(queries)
            chosen = best + rest + [rng.choice(other.docs) for _ in range(GROUP - len(best) - len(rest))]
            scale = GRADE_VALUE[query.dataset]
            own = {id(d) for d in query.docs}
            grades = [scale[d.grade] if id(d) in own else 0 for d in chosen]
            esci = query.dataset == "esci"
            teacher_docs = [taught(query.dataset, d) for d in chosen]
            docs = [cut(rng, d.render()) if esci and rng.random() < 0.6 else t for d, t in zip(chosen, teacher_docs)]
            yield Group(query.dataset, query.text, docs, teacher_docs, [0.0] * GROUP, grades, [d.title for d in chosen])


def blend(teacher, idf: Bm25, domain: str, query: str, docs, teacher_docs) -> np.ndarray:
    """MiniLM's cosine and the share of the query's words found, weighed as suits the domain, for each document."""
    cosine = np.clip(teacher.cosine(query, teacher_docs), 0, 1)
    cover = np.array([idf.coverage(query, set(stems(f"{d} {t}"))) for d, t in zip(docs, teacher_docs)])
    return COSINE_SHARE[domain] * cosine + (1 - COSINE_SHARE[domain]) * cover


def ranked(query: data.Query, teacher):
    """What a ranker reads of a query and its documents: query, texts, titles and cosines."""
    texts = [taught(query.dataset, d) for d in query.docs]
    return query.text, texts, [d.title for d in query.docs], teacher.cosine(query.text, texts)


def ranker_of(queries: list[data.Query], teacher, idf: Bm25) -> Ranker:
    """A ranker fitted to all judgments of some queries of one set."""
    lists, blends, name = [], [], queries[0].dataset
    teacher.prepare([t for q in queries for t in (q.text, *(taught(name, d) for d in q.docs))])
    for q in queries:
        row = ranked(q, teacher)
        lists.append((*row, q.gains))
        blends.append(blend(teacher, idf, name, q.text, row[1], row[1]))
    return Ranker.fit(lists, np.concatenate(blends))


def set_targets(groups: list[Group], teacher, idf: Bm25, rankers: dict[str, Ranker] | None = None) -> None:
    """Each group's targets by its teachers: the ranker of its set if there is one, or else the blend."""
    teacher.prepare([t for g in groups for t in (g.query, *g.teacher_docs)])
    for g in groups:
        ranker = (rankers or {}).get(g.domain)
        if ranker:
            place = ranker.places(g.query, g.teacher_docs, g.titles, teacher.cosine(g.query, g.teacher_docs))
        else:
            place = blend(teacher, idf, g.domain, g.query, g.docs, g.teacher_docs)
        g.target = np.clip(place + np.array(g.bonus), 0, 1)
        g.meaning = teacher.coordinates([g.query, *g.teacher_docs])


def with_labels(group: Group, weight: float) -> np.ndarray:
    """A judged group's target with its labels weighed in."""
    place = np.array([LABEL_TARGET[x] for x in group.grades])
    return weight * place + (1 - weight) * group.target
