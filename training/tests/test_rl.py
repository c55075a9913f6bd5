"""Rewards and advantages by hand; what reinforcement does to a grade's distribution."""

import pytest

for package in ("torch", "transformers", "accelerate", "tokenizers"):
    pytest.importorskip(package)

import torch

from recipe.config import Reward
from recipe.profile import Profile
from recipe.rl import advantages, ordinal, section_rewards
from recipe.rows import section_places

QUERY, DOCUMENT = "red hat pen", "a red pen"
TRUE = "asks: red hat pen\nhas: red pen\nlacks: hat\nsays: so"


@pytest.fixture(scope="module")
def profile(tiny):
    return Profile.load(tiny)


@pytest.mark.parametrize("text, ended, rewards", [
    (TRUE, True, [1, 1, 1, 1]),
    (TRUE, False, [1, 1, 1, 0.8]),  # it does not end: the last section's form is lost
    (TRUE + "\nmore", True, [1, 1, 1, 0.8]),
    (TRUE.replace("has: red pen", "has: red hat"), True, [1, (0.25 + 0.5 + 0.25) / 1.75, 1, 1]),  # one false, one missed
    (TRUE.replace("has: red pen", "has: pen"), True, [1, (0.25 + 1 + 0.25) / 1.75, 1, 1]),
    (TRUE.replace("lacks: hat", "lacks: none"), True, [1, 1, 0.25 / 1.75, 1]),  # there is something to list
    (TRUE.replace("says: so", "says: yes"), True, [1, 1, 1, 0.2]),  # another grade than was given
    (TRUE.replace("\nhas:", "\nholds:"), True, [1, 0, 1, 1]),
    ("has: red pen\nasks: red", True, [0, 0, 0, 0]),
    ("", True, [0, 0, 0, 0]),
])
def test_sections_earn_what_they_say(profile, text, ended, rewards):
    got = section_rewards(text, ended, QUERY, DOCUMENT, 1, profile, Reward(0.25, 1.0, 0.5))
    assert got == pytest.approx(rewards)


def test_advantages_are_by_section_within_the_group():
    got = torch.tensor(advantages([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0], [0.0, 1.0]], 0.0))
    assert got.tolist() == [[1, -1], [-1, -1], [1, 1], [-1, 1]]
    assert advantages([[0.5, 0.5], [0.5, 0.5]], 0.0) == [[0, 0], [0, 0]]  # all alike: nothing to learn
    assert advantages([[1.0, 0.0], [0.0, 1.0]], 0.5) == [[0.5, -1], [-0.5, 1]]


def test_near_grades_earn_more_than_far_ones(profile):
    assert ordinal(torch.tensor([[0.0, 0.0, 1.0], [0.5, 0.5, 0.0]]), profile).tolist() == [[0, 0.5, 1], [0.75, 0.75, 0.25]]


def test_tokens_belong_to_their_line(profile):
    told = profile.explanation(TRUE)
    places = section_places(told, profile)
    assert places[0] == 0 and places[-1] == 3 and sorted(places) == places
    lines = ["".join(profile.tokens.decode([t]) for t, p in zip(told, places) if p == i) for i in range(4)]
    assert [x.strip() for x in lines] == TRUE.split("\n")
