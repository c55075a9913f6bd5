"""Rewards and advantages by hand; what reinforcement does to a grade's distribution."""

import copy
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

for package in ("torch", "transformers", "accelerate", "tokenizers"):
    pytest.importorskip(package)

import torch

from recipe import judgments
from recipe.config import Reward, Rl
from recipe.profile import Profile
from recipe.rl import Reinforcement, advantages, ordinal, section_rewards
from recipe.rows import encode, logits, section_places

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


def test_grades_earn_by_their_weights_and_pay_for_leaving_the_reference(tiny, profile):
    from transformers import AutoModelForCausalLM

    net = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32).eval()
    moved = copy.deepcopy(net)
    with torch.no_grad():
        moved.get_input_embeddings().weight.mul_(1.3)

    def loss(kl, *lines):
        unit = [judgments.parse({"query": "red hat", "doc_id": str(i), "text": text, "grade": grade, "weight": weight}, profile, {})
                for i, (text, grade, weight) in enumerate(lines)]
        rows, teacher = encode(unit, profile), Reinforcement()
        teacher.reference = net
        run = SimpleNamespace(stage=SimpleNamespace(rl=Rl(kl=kl)), profile=profile, accelerator=SimpleNamespace(autocast=nullcontext))
        answer = logits(moved, [r.prompt for r in rows], [[]] * len(rows))[:, 0]
        target = torch.tensor([r.judgment.target for r in rows])
        got, figures = teacher._grades(run, rows, [unit], answer, target)
        return float(got.detach()), figures["reward_grade"][0], figures["kl_grade"][0]

    one, other = ("red hat", 2, 3.0), ("blue pen", 1, 1.0)
    (first, earned, far), (second, _, _) = loss(0.5, one), loss(0.5, other)
    assert first == pytest.approx(0.5 * far - earned) and far > 0 and 0 < earned < 1
    assert loss(0.5, one, other)[0] == pytest.approx((3 * first + second) / 4) and first != pytest.approx(second)


def test_tokens_belong_to_their_line(profile):
    told = profile.explanation(TRUE)
    places = section_places(told, profile)
    assert places[0] == 0 and places[-1] == 3 and sorted(places) == places
    lines = ["".join(profile.tokens.decode([t]) for t, p in zip(told, places) if p == i) for i in range(4)]
    assert [x.strip() for x in lines] == TRUE.split("\n")


def test_the_ablation_changes_one_weight_at_a_time_and_tells_the_spread(tmp_path):
    from recipe import ablation, config

    file = tmp_path / "a.toml"
    file.write_text('out = "o"\nmodel.path = "m"\ndata.train = ["t"]\noptim.steps = 5\nrl = {weight = 0.7, supervised = 0.3}\n')
    stage = config.load("ablation", file)
    arms = {arm: ablation.of(stage, arm, 4, tmp_path / arm) for arm in ablation.ARMS}
    weights = {arm: (one.rl.weight, one.rl.supervised, one.optim.seed) for arm, one in arms.items()}
    assert weights == {"supervised": (0, 1, 4), "reinforcement": (0.7, 0, 4), "balanced": (0.7, 0.3, 4)}
    rows = [{"held": True, "step": 0, "ece": 0.5, "recall_2": 0.1}, {"step": 5, "tokens": 70, "seconds": 3}]
    runs = {"a": [[*rows, {"held": True, "step": 5, "ece": x, "recall_2": 0.3}] for x in (0.2, 0.4)]}
    text = ablation.table(runs)
    assert "| ece | 0.500 | 0.300 ± 0.100 |" in text and "| recall_2 | 0.100 | 0.300 ± 0.000 |" in text
    ablation.draw(tmp_path / "x/a.svg", runs)
    assert "recall 2" in (tmp_path / "x/a.svg").read_text()
