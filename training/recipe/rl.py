"""Reinforcement by rules beside the supervised loss: Stepwise-GRPO, mode-balanced.

The paper (arXiv 2602.10006) gives the aim: reinforcement alone minimises reverse KL, seeks modes and
forgets rare rules; the supervised loss, which minimises forward KL, is kept as an auxiliary term. Its
text beyond the abstract was not available; what follows is our choice.

- The grade is one token out of a few, so its expected reward is computed exactly: no sampling, no
  baseline. The reward of a grade is one minus its distance from the judged one on the scale of values.
- Explanations are sampled, a group for each pair, each after a grade drawn from the model's own
  distribution. Every section is a step: rules reward its form, that its claims hold, and that nothing
  is missing; the section of the grade is right if it names the grade that was given. A step's
  advantage is its reward less the group's mean of that section, over the group's deviation (the
  group-relative baseline of GRPO, arXiv 2402.03300; advantages by step as in its process supervision).
- Each batch of samples is used for one update, so the policy that sampled is the one that learns, and
  there is no ratio to clip.
- The divergence from the reference is exact for the grade, and for tokens the estimator of GRPO
  (non-negative, unbiased; Schulman 2020), reverse KL both.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM

from recipe import sft
from recipe.config import Reward
from recipe.grounding import section
from recipe.judgments import Judgment
from recipe.profile import Profile
from recipe.rows import Row, chosen, logits, padded, sample, section_places


@dataclass
class Told:
    """A sampled explanation and what its sections earn."""

    row: Row
    tail: list[int]
    places: list[int]  # of each token's section
    rewards: list[float]  # by section
    advantages: list[float] | None = None  # by section


def section_rewards(text: str, ended: bool, query: str, document: str, grade: int, profile: Profile,
                    weights: Reward) -> list[float]:
    """The reward of each section of an explanation, in [0, 1].

    A section whose line is missing or is another's earns nothing. What follows the last section, or an
    explanation that does not end, costs the last section its form."""
    names, lines = profile.sections, text.split("\n")
    out = []
    for i, name in enumerate(names):
        said = section(name, lines[i]) if i < len(lines) else None
        formed = said is not None and (i + 1 < len(names) or ended and len(lines) == len(names))
        if profile.rule is None:
            out.append(float(formed))
            continue
        claims = profile.rule.claims(name, said, query, document, grade)
        true = claims.true / claims.made if said is not None else 0.0
        whole = (claims.listed / claims.due if claims.due else true) if said is not None else 0.0
        says_grade = profile.rule.says[i] == "grade"
        earned = weights.form * formed + weights.true * true + (0.0 if says_grade else weights.whole * whole)
        out.append(earned / (weights.form + weights.true + (0.0 if says_grade else weights.whole)))
    return out


def advantages(group: list[list[float]], discount: float) -> list[list[float]]:
    """Of each member's sections: its reward less the section's mean in the group, over its deviation,
    and `discount` times the next section's advantage; zero where all members earn the same."""
    rewards = torch.tensor(group)
    centred = rewards - rewards.mean(0)
    deviation = rewards.std(0, correction=0)
    out = torch.where(deviation > 1e-6, centred / deviation.clamp(min=1e-6), torch.zeros_like(centred))
    for i in range(out.shape[1] - 2, -1, -1):
        out[:, i] += discount * out[:, i + 1]
    return out.tolist()


def ordinal(target, profile: Profile):
    """Expected reward (rows, grades) of each grade: one less its distance on the scale, over its length."""
    values = torch.tensor(profile.values, device=target.device)
    near = 1 - (values[:, None] - values[None, :]).abs() / (values.max() - values.min())
    return target @ near


class Reinforcement:
    """The loss of the stage `rl` (see `loop.Run`); holds the reference, which is the start."""

    def __init__(self):
        self.reference = None

    def __call__(self, run, units: list[list[Row]], whole: list[list[Judgment]], step: int):
        how, profile = run.stage.rl, run.profile
        rows = [r for u in units for r in u]
        tails = [r.tail if how.supervised else [] for r in rows]
        out = logits(run.model, [r.prompt for r in rows], tails)
        target = torch.tensor([r.judgment.target for r in rows], device=out.device)
        loss, figures = out.new_zeros(()), {}
        if how.supervised:
            taught, figures = sft.parts(out, units, whole, target, run.stage.loss, profile)
            loss = how.supervised * taught
        if how.weight:
            self._begin(run)
            earned, more = self._grades(run, rows, whole, out[:, 0], target)
            loss, figures = loss + how.weight * how.grade * earned, {**figures, **more}
            if how.explanation and how.explained:
                spoken, more = self._explanations(run, rows, whole, out[:, 0].detach(), step)
                loss, figures = loss + how.weight * how.explanation * spoken, {**figures, **more}
        return loss, figures

    def _begin(self, run) -> None:
        """Loads the reference: the checkpoint that the stage began with."""
        if self.reference is None:
            net = AutoModelForCausalLM.from_pretrained(run.stage.model.path, dtype=torch.float32)
            self.reference = net.to(run.accelerator.device).eval().requires_grad_(False)

    def _grades(self, run, rows, whole, answer, target):
        """Minus the exact expected reward of the grade, and its divergence from the reference's."""
        how, profile = run.stage.rl, run.profile
        weight = torch.tensor([r.judgment.weight for r in rows], device=answer.device)
        total = sft.total_weight(whole)
        said = torch.softmax(answer, -1)[:, profile.grade_ids]  # another token than a grade earns nothing
        expected = (said * ordinal(target, profile)).sum(-1)
        with torch.no_grad(), run.accelerator.autocast():
            before = logits(self.reference, [r.prompt for r in rows], [[]] * len(rows))[:, 0]
        now, then = (torch.log_softmax(x[:, profile.grade_ids], -1) for x in (answer, before))
        far = (now.exp() * (now - then)).sum(-1)
        entropy = -(now.exp() * now).sum(-1)
        loss = ((how.kl * far - expected) * weight).sum() / total
        count = float(len(rows))
        return loss, {"reward_grade": (float(expected.detach().sum()), count), "kl_grade": (float(far.detach().sum()), count),
                      "entropy_grade": (float(entropy.detach().sum()), count)}

    def _explanations(self, run, rows, whole, answer, step: int):
        """The policy gradient of sampled explanations, a mean over each one's tokens."""
        how, profile = run.stage.rl, run.profile
        told = self._sample(run, rows, answer, step)
        tails = [t.tail for t in told]
        prompts = [t.row.prompt for t in told]
        log_probs = torch.log_softmax(logits(run.model, prompts, tails), -1)
        now, there = chosen(log_probs, tails, 1)
        with torch.no_grad():
            entropy = -(log_probs[:, 1:-1].exp() * log_probs[:, 1:-1]).sum(-1)
            with run.accelerator.autocast():
                before = logits(self.reference, prompts, tails)
            then, _ = chosen(torch.log_softmax(before, -1), tails, 1)
        gain = padded([[t.advantages[s] for s in t.places] for t in told], now.shape[1], now.device)
        far = (then - now).exp() - (then - now) - 1
        # The gradient of the log-probability, weighed by the advantage: its value is the advantage's.
        each = -(gain * (now - now.detach()).exp()) + how.kl * far
        mean = (each * there).sum(-1) / there.sum(-1).clamp(min=1)
        weight = torch.tensor([t.row.judgment.weight for t in told], device=now.device)
        # The drawn pairs stand for all of this part.
        loss = (mean * weight).mean() * len(rows) / sft.total_weight(whole)
        words = float(there.sum())
        figures = {"kl_explanation": (float((far.detach() * there).sum()), words), "tokens_sampled": (words, 1.0),
                   "entropy_explanation": (float((entropy * there).sum()), words)}
        for i, name in enumerate(profile.sections):
            figures[f"reward_{name}"] = (sum(t.rewards[i] for t in told), float(len(told)))
        return loss, figures

    def _sample(self, run, rows: list[Row], answer, step: int) -> list[Told]:
        how, profile = run.stage.rl, run.profile
        generator = torch.Generator(answer.device)
        place = rows[0].prompt[-1] + sum(map(len, (r.prompt for r in rows)))  # micro-batches differ
        generator.manual_seed(hash((run.stage.optim.seed, step, run.rank, place)) & 0x7FFFFFFF)
        count = max(1, round(how.explained * len(rows)))
        some = torch.randperm(len(rows), generator=generator, device=answer.device)[:count]
        drawn = torch.multinomial(torch.softmax(answer[some][:, profile.grade_ids], -1), how.group,
                                  replacement=True, generator=generator).tolist()
        many = [(rows[i], grade) for i, grades in zip(some.tolist(), drawn) for grade in grades]
        run.model.eval()
        with run.accelerator.autocast():
            tails = sample(run.bare, [r.prompt for r, _ in many], [profile.grade_ids[g] for _, g in many], profile.stop,
                           profile.explain_tokens, how.temperature, generator, run.together)
        run.model.train()
        told = []
        for (row, grade), tail in zip(many, tails):
            ended = tail[-1] == profile.stop
            text = profile.tokens.decode(tail[1:-1] if ended else tail[1:])
            shown = profile.render_document(row.judgment.document)
            earned = section_rewards(text, ended, row.judgment.query, shown, grade, profile, run.stage.reward)
            told.append(Told(row, tail, section_places(tail[1:], profile), earned))
        for at in range(0, len(told), how.group):
            group = told[at : at + how.group]
            for one, gained in zip(group, advantages([t.rewards for t in group], how.discount)):
                one.advantages = gained
        return told
