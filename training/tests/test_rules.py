"""Metrics, BM25 and the explanation rules, against values worked out by hand."""

import json
import math
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
pytest.importorskip("numpy")
pytest.importorskip("snowballstemmer")
pytest.importorskip("regex")

from conftest import ROOT
from mini import explain
from mini import grounding
from mini import metrics
from mini.text import Bm25, content_words, stems
from recipe.grounding import words


def test_ndcg_by_hand():
    # order by score: gains 0, 1, 0.5 -> 1/log2(3) + 0.5/2; ideal: 1 + 0.5/log2(3)
    got = metrics.ndcg([3, 2, 1], [0, 1, 0.5])
    want = (1 / math.log2(3) + 0.25) / (1 + 0.5 / math.log2(3))
    assert got == pytest.approx(want, abs=1e-12)


def test_ndcg_cut_and_nothing_relevant():
    assert metrics.ndcg([2, 1], [0, 1], k=1) == 0
    assert metrics.ndcg([2, 1], [1, 0], k=1) == 1
    assert metrics.ndcg([2, 1], [0, 0]) is None


def test_bootstrap_of_a_constant_difference():
    mean, low, high = metrics.bootstrap_difference([0.5] * 9, [0.25] * 9, rounds=50)
    assert (mean, low, high) == (0.25, 0.25, 0.25)
    mean, low, high = metrics.bootstrap_macro({"a": ([1], [0]), "b": ([0], [0])}, rounds=50)
    assert (mean, low, high) == (0.5, 0.5, 0.5)


def test_bm25_by_hand():
    bm25 = Bm25([["red", "shoe"], ["blue", "shoe"]])
    idf = math.log(1 + (2 - 1 + 0.5) / (1 + 0.5))
    assert bm25.score(["red"], 0) == pytest.approx(idf)  # mean length, one occurrence
    assert bm25.score(["red"], 1) == 0
    assert bm25.top(["red"], 5) == [0]


def test_content_words_and_stems():
    assert content_words("How to fix the flat tires?") == ["fix", "flat", "tires"]
    assert content_words("what is it") == ["what", "is", "it"]
    assert stems("Tires fixing") == ["tire", "fix"]


def test_words_are_those_of_the_server():
    table = json.loads((ROOT / "tests/golden/words.json").read_text(encoding="utf-8"))
    assert {text: words(text) for text in table} == table


QUERY, DOCUMENT = "red running shoes", "Shoes for runs who run, in blue"


def test_written_explanations_hold():
    text = explain.write(QUERY, DOCUMENT, 2)
    assert text == "intent: red running shoes\nmatch: running shoes\ngaps: red\nverdict: partial match"
    found = explain.check(QUERY, DOCUMENT, 2, text)
    assert found["claims"] == found["true"] == 7
    assert found["well_formed"] and found["verdict"] and found["whole"]
    assert grounding.facts("the blue shoe", DOCUMENT) == (["blue", "shoe"], ["blue", "shoe"], [])
    assert explain.write("garden hose", DOCUMENT, 0).split("\n")[1:3] == ["match: none", "gaps: garden hose"]


@pytest.mark.parametrize(
    "old, new, false, missed",
    [
        ("gaps: red", "gaps: none", 1, 1),  # red is missing, so there is a gap
        ("gaps: red", "gaps: red shoes", 1, 0),  # shoes are there
        ("match: running shoes", "match: shoes", 0, 1),  # true, and not all
        ("match: running", "match: garden running", 1, 0),  # nobody asked for a garden
        ("intent: red", "intent: green", 1, 1),  # not asked
        ("partial match", "irrelevant", 1, 0),  # contradicts the grade
        ("match: running shoes\ngaps: red", "match: red\ngaps: running shoes", 3, 3),
    ],
)
def test_false_claims_and_missed_words_are_found(old, new, false, missed):
    text = explain.write(QUERY, DOCUMENT, 2).replace(old, new)
    found = explain.check(QUERY, DOCUMENT, 2, text)
    assert found["claims"] - found["true"] == false
    assert sum(found["due"].values()) - sum(found["listed"].values()) == missed


@pytest.mark.parametrize("text", ["", "intent: a", "match: a\nintent: a\ngaps: b\nverdict: c"])
def test_broken_form(text):
    assert not explain.check(QUERY, DOCUMENT, 1, text)["well_formed"]


@pytest.mark.parametrize(
    "forms", ["shoe shoes", "box boxes", "house houses", "battery batteries", "try tries tried trying",
              "run runs running", "hike hikes hiking hiked", "fall falling", "boil boils boiling boiled",
              "glass glasses", "earring earrings"])
def test_inflected_words_are_one_word(forms):
    assert len({grounding.form(w) for w in forms.split()}) == 1


@pytest.mark.parametrize("pair", ["ear earring", "bed bedding", "relate relation", "bus busy"])
def test_other_words_are_not(pair):
    one, other = pair.split()
    assert grounding.form(one) != grounding.form(other)
    for word in ("string", "red", "seed", "bus", "tennis", "glass", "2s", "größes"):
        assert grounding.form(word) == word
