"""The stage `teach`: a teacher's grade distributions, written into judgments for `distil`.

The teacher is anything with a grade distribution: a checkpoint with a relevance.toml of its own, which
is run here, or any server's answers as `verdict score` writes them. Its grades are told the student's
names by `teacher_grades`; several may have one name.
"""

from __future__ import annotations

import dataclasses
import json

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, gather_object
from transformers import AutoModelForCausalLM

from recipe import judgments
from recipe.config import TeachStage
from recipe.judgments import Judgment
from recipe.measure import distributions, tempered
from recipe.profile import Profile
from recipe.rows import encode, sample


def teach(stage: TeachStage) -> None:
    """Writes `stage.out`: the judgments with the teacher's distributions, and its explanations that hold."""
    profile = Profile.load(stage.student.path, stage.student.profile or None)
    found = judgments.read(stage.inputs, profile, stage.grades, judged=False)
    if stage.requests:
        with open(stage.requests, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(request(j), ensure_ascii=False) + "\n" for j in found)
        print(f"{len(found)} requests are in {stage.requests}: verdict score --input {stage.requests}")
        return
    if (stage.teacher is None) == (not stage.scores):
        raise ValueError("teacher and scores: one of them is needed, and not both")
    taught = answered(stage, profile, found) if stage.scores else asked(stage, profile, found)
    if taught is None:  # another process writes
        return
    judgments.write(stage.out, taught, profile)
    print(f"{len(taught)} judgments are in {stage.out}")


def request(judgment: Judgment) -> dict:
    """A line for `verdict score`."""
    more = {} if judgment.instruction is None else {"instruction": judgment.instruction}
    return {"query": judgment.query, "document": judgment.document, **more}


def mapping(teacher: list[str], names: dict[str, str], profile: Profile) -> list[int]:
    """For each of the teacher's grades the place of the student's."""
    unknown = sorted(set(names) - set(teacher))
    if unknown:
        raise ValueError(f"teacher_grades: {unknown} are none of the teacher's grades {teacher}")
    try:
        return [profile.place(names.get(name, name)) for name in teacher]
    except ValueError as problem:
        raise ValueError(f"teacher_grades: {problem}") from None


def merged(probabilities, places: list[int], count: int) -> tuple[float, ...]:
    """A teacher's distribution over the student's grades."""
    out = [0.0] * count
    for p, place in zip(probabilities, places):
        out[place] += float(p)
    return tuple(x / sum(out) for x in out)


def answered(stage: TeachStage, profile: Profile, found: list[Judgment]) -> list[Judgment]:
    """Distributions from answers of `verdict score`, one line for each judgment in its order."""
    lines = list(judgments.rows(stage.scores))
    if len(lines) != len(found):
        raise ValueError(f"{stage.scores}: {len(lines)} answers for {len(found)} judgments")
    taught = []
    for (number, row), judgment in zip(lines, found):
        try:
            told = row["results"][0]["probabilities"]
        except (KeyError, IndexError, TypeError):
            raise ValueError(f"{stage.scores}: line {number}: no results[0].probabilities: {str(row)[:200]}") from None
        places = mapping(list(told), stage.teacher_grades, profile)
        taught.append(dataclasses.replace(judgment, target=merged(told.values(), places, len(profile.grades))))
    return taught


@torch.no_grad()
def asked(stage: TeachStage, profile: Profile, found: list[Judgment]) -> list[Judgment] | None:
    """Distributions of a checkpoint, each process a share of the judgments; None but on the main one."""
    teacher = Profile.load(stage.teacher.path, stage.teacher.profile or None)
    places = mapping([g.name for g in teacher.grades], stage.teacher_grades, profile)
    accelerator = Accelerator(mixed_precision=stage.precision)
    sharded = accelerator.distributed_type == DistributedType.FSDP
    world = accelerator.num_processes
    net = AutoModelForCausalLM.from_pretrained(stage.teacher.path, dtype=torch.float32 if stage.precision == "no" else torch.bfloat16)
    net = accelerator.prepare(net) if sharded else net.to(accelerator.device)
    net.eval()
    # Distributed runs pad the last share: sharded passes are made by all processes together.
    most = -(-len(found) // world)
    mine = (found[accelerator.process_index :: world] + found[:1])[:most]
    rows = encode([dataclasses.replace(j, explanation=None) for j in mine], teacher)
    with accelerator.autocast():
        p, _ = distributions(net, rows, teacher, stage.batch)
    p = tempered(p, teacher.temperature)  # as `verdict score` answers
    taught = [dataclasses.replace(j, target=merged(row, places, len(profile.grades))) for j, row in zip(mine, p)]
    if stage.explanations:
        together = (lambda done: int(accelerator.reduce(torch.tensor([int(done)], device=accelerator.device))) == world)
        with accelerator.autocast():
            taught = explained(net, teacher, profile, rows, taught, p, stage.batch, together if sharded else None)
    gathered = gather_object([taught])
    if not accelerator.is_main_process:
        return None
    return [gathered[i % world][i // world] for i in range(len(found))]


def explained(net, teacher: Profile, profile: Profile, rows, taught: list[Judgment], p, batch: int, together):
    """The teacher's greedy explanation of its own grade, where that is the student's to learn and all
    that it claims holds."""
    if teacher.rule is None or profile.rule is None:
        raise ValueError("explanations: teacher and student need [explain.grounding], by which they are checked")
    out = []
    for at in range(0, len(rows), batch):
        part, grades = rows[at : at + batch], p[at : at + batch].argmax(-1).tolist()
        tails = sample(net, [r.prompt for r in part], [teacher.grade_ids[g] for g in grades], teacher.stop,
                       teacher.explain_tokens, 0.0, together=together)
        for judgment, tail in zip(taught[at : at + batch], tails):
            text = teacher.tokens.decode(tail[1:-1])
            shown = profile.render_document(judgment.document)
            found = profile.rule.check(judgment.query, shown, judgment.best, text)
            holds = tail[-1] == teacher.stop and found["well_formed"] and found["true"] == found["claims"]
            out.append(dataclasses.replace(judgment, explanation=text if holds else None))
    kept = sum(j.explanation is not None for j in out)
    print(f"{kept} of {len(out)} explanations hold and are kept", flush=True)
    return out
