"""The stages on a tiny checkpoint: they learn, go on where they stopped, and are the same on two processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

for package in ("torch", "transformers", "accelerate", "tokenizers"):
    pytest.importorskip(package)

import torch
from safetensors.torch import load_file

from recipe import config, loop, sft
from recipe.__main__ import main, run
from recipe.profile import Profile
from recipe.rl import Reinforcement
from recipe.rows import encode, logits, sample
from recipe import judgments

HERE = Path(__file__).parent
TOML = """
out = "{out}"
model = {{path = "{model}"}}
[data]
train = ["{data}"]
held_folds = [0]
explanations = "rule"
[optim]
steps = 6
batch = 12
micro_batch = 6
rate = 3e-3
warmup = 1
[watch]
every = 1
measure_every = 3
keep_every = 2
pairs = 12
explanations = 2
"""


@pytest.fixture()
def write(tmp_path, tiny, judged):
    """Writes a configuration and returns its path."""
    def write(name: str, more: str = "", **values) -> Path:
        path = tmp_path / f"{name}.toml"
        path.write_text(TOML.format(**{"out": tmp_path / name, "model": tiny, "data": judged} | values) + more)
        return path
    return write


def metrics(out: Path, held: bool = False) -> list[dict]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [r for r in rows if bool(r.get("held")) == held]


def test_padding_changes_nothing(tiny, judged):
    from transformers import AutoModelForCausalLM

    net = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32).eval()
    profile = Profile.load(tiny)
    found = judgments.explained(judgments.read([judged], profile), profile)[:5]
    rows = encode(found, profile)
    with torch.no_grad():
        whole = logits(net, [r.prompt for r in rows], [r.tail for r in rows])
        for r, row in enumerate(rows):
            alone = net(input_ids=torch.tensor([row.prompt + row.tail])).logits[0, len(row.prompt) - 1 :]
            assert torch.allclose(whole[r, : len(row.tail) + 1], alone, atol=1e-4)
    greedy = sample(net, [r.prompt for r in rows], [r.tail[0] for r in rows], profile.stop, 12, 0.0)
    for row, tail in zip(rows, greedy):
        ids = row.prompt + row.tail[:1]
        for token in tail[1:]:
            assert token == int(net(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
            ids.append(token)


def test_supervised_learns_and_the_server_reads_it(write, tmp_path, verdict, tiny, judged):
    out = tmp_path / "sft"
    assert main(["sft", "--config", str(write("sft")), "--set", "optim.steps=40", "--set", "watch.measure_every=20",
                 "--set", "watch.keep_every=100", "--set", "data.group=3", "--set", "loss.rank=0.2"]) == 0
    rows = metrics(out)
    assert all(rows[-1][part] < 0.8 * rows[0][part] for part in ("grade", "outside", "explanation")), rows[-1]
    held = metrics(out, held=True)
    assert [r["step"] for r in held] == [0, 20, 40] and held[-1]["loss"] < held[0]["loss"]
    assert held[0]["forward_kl_reference"] == 0 and held[-1]["forward_kl_reference"] > 0
    assert "<svg" in (out / "metrics.svg").read_text()
    to = export(out / "model", tmp_path / "export", judged)
    verdict("verify", "--model", to, "--prompts", "4")
    done = verdict("eval", "--model", to, "--judgments", judged, "--json")
    theirs = json.loads(done.stdout)
    assert "pairs" in json.dumps(theirs)
    assert verdict("score", "--model", to, text='{"query": "red hat", "document": "a hat"}').returncode == 0


def export(model: Path, to: Path, judged: Path) -> Path:
    file = to.with_suffix(".toml")
    file.write_text(f'out = "{to}"\nname = "tiny-tuned"\nprobes = ["{judged}"]\nmodel = {{path = "{model}"}}\n')
    assert main(["export", "--config", str(file)]) == 0
    text = (to / "relevance.toml").read_text()
    assert text.count("[[probes]]") >= 2 and 'name = "tiny-tuned"' in text
    assert (to / "README.md").read_text().startswith("# tiny-tuned")
    return to


PROFILE = """{first}
[prompt]
template = "{{query}}{{document}}"
[[grades]]
token = "x"
name = "low"
[calibration]
temperature = 2.0
[[probes]]
query = "q"
"""


@pytest.mark.parametrize("first", ['name = "old"', "name='old'", '  name   ="old" # ours', "", "aliases = [\n  'a',\n]\nname = 'b'"])
@pytest.mark.parametrize("name", ["new", "mod\u00e8le \\1 \\g<0> \"x\"", "a\x7f\n\tb", "\U0001f600"])
def test_a_profile_is_renamed_and_its_grades_are_not(tmp_path, first, name):
    import tomllib

    from recipe.export import rewritten

    file = tmp_path / "relevance.toml"
    file.write_text(PROFILE.format(first=first))
    told = tomllib.loads(rewritten(file, name))
    assert told["name"] == name and told["grades"] == [{"token": "x", "name": "low"}]
    assert told["prompt"] == {"template": "{query}{document}"} and not {"probes", "calibration"} & set(told)


@pytest.mark.parametrize("first, name, problem", [
    ('text = """\n[calibration]\n"""', "new", "cannot be replaced as they are written"), ("", "\ud800", "half a surrogate"),
    ('"name" = "old"', "new", "cannot be replaced as they are written"),
])
def test_a_profile_that_cannot_be_renamed_is_refused_by_its_path(tmp_path, first, name, problem):
    from recipe.export import rewritten

    file = tmp_path / "relevance.toml"
    file.write_text(PROFILE.format(first=first))
    with pytest.raises(ValueError, match=problem) as refused:
        rewritten(file, name)
    assert problem.startswith("half") or str(refused.value).startswith(f"{file}: ")


def test_an_export_that_fails_leaves_nothing_behind(tmp_path, tiny, judged, capsys):
    file, one = tmp_path / "x.toml", tmp_path / "one.jsonl"
    one.write_text('{"query": "red hat", "text": "a hat", "grade": 1, "max_grade": 2}\n')
    file.write_text(f'out = "{tmp_path}/x"\nname = "x"\nprobes = ["{one}"]\nmodel.path = "{tiny}"\n')
    assert main(["export", "--config", str(file)]) == 2
    assert "the model is right on no judgment" in capsys.readouterr().err and not (tmp_path / "x").exists()


@pytest.mark.parametrize("name", ["sft", "rl"])
def test_a_run_that_stopped_goes_on_to_the_same_weights(write, tmp_path, name):
    loss = {"sft": lambda: sft.supervised, "rl": Reinforcement}[name]
    loop.Run(config.load(name, write("whole")), loss()).fit()

    class Stops:
        def __init__(self, inner):
            self.inner = inner

        def __call__(self, run, units, whole, step):
            if step == 5:
                raise KeyboardInterrupt
            return self.inner(run, units, whole, step)

    path = write("parts")
    with pytest.raises(KeyboardInterrupt):
        loop.Run(config.load(name, path), Stops(loss())).fit()
    kept = sorted(p.name for p in (tmp_path / "parts/checkpoints").iterdir())
    assert kept == ["step-0000002", "step-0000004"]
    assert len(metrics(tmp_path / "parts")) == 5
    run(name, config.load(name, path), resume=True)
    one, other = (load_file(tmp_path / n / "model/model.safetensors") for n in ("whole", "parts"))
    assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
    without = [{k: v for k, v in r.items() if k != "seconds"} for n in ("whole", "parts") for r in metrics(tmp_path / n)]
    assert without[:6] == without[6:]
    with pytest.raises(ValueError, match="began with another optim"):
        loop.Run(config.load(name, path, ["optim.rate=1"]), loss(), resume=True)


@pytest.mark.parametrize("grouped", [False, True])
def test_two_processes_have_the_gradient_of_one(write, tmp_path, judged, grouped):
    mixed = tmp_path / "mixed.jsonl"  # some without explanation, of different weights
    rows = [json.loads(line) for i, line in enumerate(judged.read_text().splitlines()) if i % 6 != 4]
    for i, row in enumerate(rows):
        row |= {"explanation": f"asks: {row['query']}"} if i % 3 else {}
    mixed.write_text("".join(json.dumps(r) + "\n" for r in rows))
    env = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    found = []
    for world in (1, 2):
        path = write(f"of{world}", data=mixed)
        text = path.read_text().replace('"rule"', '"file"').replace("steps = 6", "steps = 1\nclip = 1e9")
        if grouped:  # lists of three documents and of two, in micro-batches of two lists and of one
            text = text.replace('"file"', '"file"\ngroup = 3').replace("micro_batch = 6", f"micro_batch = {6 if world == 1 else 3}")
            text += "[loss]\nrank = 0.5\n"
        path.write_text(text)
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
        command = command if world == 2 else [sys.executable]
        file = tmp_path / f"{world}.pt"
        done = subprocess.run([*command, str(HERE / "one_gradient.py"), str(path), str(file)], env=env,
                              capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr[-3000:]
        found.append(torch.load(file))
    one, two = found
    assert (one["world"], two["world"]) == (1, 2)
    for name, gradient in one["gradient"].items():
        assert torch.allclose(gradient, two["gradient"][name], rtol=1e-4, atol=1e-6), name


def test_reinforcement_raises_its_reward_and_the_supervised_loss_keeps_the_rest(write, tmp_path):
    path = write("rl", "[rl]\nsupervised = 0.0\nexplanation = 0.0\n")
    run("rl", config.load("rl", path, ["optim.steps=30", "watch.keep_every=100", "watch.measure_every=100"]))
    rows = metrics(tmp_path / "rl")
    alone = metrics(tmp_path / "rl", held=True)[-1]
    assert sum(r["reward_grade"] for r in rows[-5:]) > sum(r["reward_grade"] for r in rows[:5]) + 0.5
    assert rows[-1]["kl_grade"] > 0
    run("rl", config.load("rl", path, ["out=" + str(tmp_path / "both"), "rl.supervised=1.0", "rl.explanation=0.5",
                                       "optim.steps=30", "watch.keep_every=100", "watch.measure_every=100"]))
    rows, both = metrics(tmp_path / "both"), metrics(tmp_path / "both", held=True)[-1]
    assert {"reward_asks", "reward_says", "kl_explanation", "entropy_explanation"} <= set(rows[-1])
    assert both["loss"] < alone["loss"] and both["entropy"] > alone["entropy"]


def test_a_teacher_is_learned_from(write, tmp_path, tiny, judged, verdict):
    run("sft", config.load("sft", write("teacher"), ["optim.steps=25", "watch.keep_every=100"]))
    file = tmp_path / "teach.toml"
    file.write_text(f'out = "{tmp_path}/taught.jsonl"\ninputs = ["{judged}"]\nstudent.path = "{tiny}"\n'
                    f'teacher.path = "{tmp_path}/teacher/model"\n')
    run("teach", config.load("teach", file))
    taught = judgments.read([tmp_path / "taught.jsonl"], Profile.load(tiny))
    assert all(0.99 < sum(j.target) < 1.01 and max(j.target) < 1 and j.value is not None for j in taught)
    more = "[distil]\ntemperature = 2.0\njudged = 0.2\n"
    stage = config.load("distil", write("distil", more, data=tmp_path / "taught.jsonl"), ["optim.steps=25"])
    run("distil", stage)
    rows = metrics(tmp_path / "distil")
    assert rows[-1]["teacher"] < 0.7 * rows[0]["teacher"]
    # The same from what `verdict score` says of the same checkpoint.
    requests, answers = tmp_path / "requests.jsonl", tmp_path / "answers.jsonl"
    run("teach", config.load("teach", file, [f"requests={requests}"]))
    verdict("score", "--model", tmp_path / "teacher/model", "--input", requests, "--output", answers)
    file.write_text(file.read_text().replace("teacher.path", "# ") + f'scores = "{answers}"\n')
    run("teach", config.load("teach", file, [f"out={tmp_path}/served.jsonl"]))
    served = judgments.read([tmp_path / "served.jsonl"], Profile.load(tiny))
    for ours, theirs in zip(taught, served):
        assert ours.target == pytest.approx(theirs.target, abs=1e-4)


def test_a_teacher_says_what_its_calibration_makes_of_it(tmp_path, tiny, judged):
    import shutil

    calm = tmp_path / "calm"
    shutil.copytree(tiny, calm)
    with open(calm / "relevance.toml", "a", encoding="utf-8") as opened:
        opened.write("[calibration]\ntemperature = 4.0\n")
    targets = []
    for teacher in (tiny, calm):
        file = tmp_path / "teach.toml"
        file.write_text(f'out = "{tmp_path}/taught.jsonl"\ninputs = ["{judged}"]\nstudent.path = "{tiny}"\n'
                        f'teacher.path = "{teacher}"\n')
        run("teach", config.load("teach", file))
        targets.append(torch.tensor([j.target for j in judgments.read([tmp_path / "taught.jsonl"], Profile.load(tiny))]))
    wanted = torch.softmax(targets[0].log() / 4, -1)
    assert torch.allclose(targets[1], wanted, atol=1e-4) and not torch.allclose(targets[0], wanted, atol=1e-3)


def test_lists_count_by_their_weights_however_they_are_batched(tiny):
    from transformers import AutoModelForCausalLM

    from recipe.config import Loss

    profile, net = Profile.load(tiny), AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32).eval()

    def unit(query, *documents):
        lines = [{"query": query, "doc_id": str(i), "text": text, "grade": grade, "weight": weight}
                 for i, (text, grade, weight) in enumerate(documents)]
        return [judgments.parse(line, profile, {}) for line in lines]

    def loss(parts, whole):
        weights, total = Loss(grade=0, outside=0, explanation=0, rank=1), 0.0
        for part in parts:
            units = [encode(u, profile) for u in part]
            rows = [r for u in units for r in u]
            out = logits(net, [r.prompt for r in rows], [[]] * len(rows))
            total += float(sft.parts(out, units, whole, torch.tensor([r.judgment.target for r in rows]), weights, profile)[0])
        return total

    heavy = unit("red hat", ("red hat", 2, 2.0), ("blue pen", 0, 2.0), ("red pen", 1, 2.0), ("cup", 0, 2.0))
    light = unit("tan cup", ("tan", 1, 1.0), ("pen", 0, 1.0))
    whole = [heavy, light, unit("pen", ("pen", 2, 1.0))]
    at_once = loss([whole], whole)
    assert at_once == pytest.approx(loss([[u] for u in whole], whole)) == pytest.approx(loss([whole[:2], whole[2:]], whole))
    assert at_once == pytest.approx((2 * loss([[heavy]], [heavy]) + loss([[light]], [light])) / 4)
    nothing = unit("red hat", ("red hat", 0, 0.0), ("blue pen", 2, 0.0))
    assert loss([[nothing]], [nothing, light]) == 0
    unweighed = unit("tan cup", ("tan", 1, 1.0), ("pen", 0, 1.0), ("hat", 2, 0.0))
    assert loss([[unweighed]], [unweighed]) == pytest.approx(loss([[light]], [light]), rel=1e-4)


def test_figures_are_of_the_judgments_and_not_of_a_teacher(tiny):
    import numpy as np

    from recipe import measure

    profile = Profile.load(tiny)
    lines = [{"query": q, "doc_id": str(g), "text": "a hat", "grade": g, "max_grade": 2, "distribution": {str(2 - g): 1.0}}
             for q in ("red", "tan") for g in (0, 2)]
    rows = encode([judgments.parse(line, profile, {}) for line in lines], profile)
    found = measure.grading(np.array([[1.0, 0, 0], [0, 0, 1.0]] * 2), rows, profile)
    assert (found["accuracy"], found["ndcg_10"], found["loss"], found["ece_score"]) == (1, 1, 0, 0)


def test_scores_are_measured_as_they_are_served(tiny):
    import dataclasses

    import numpy as np

    from recipe import measure

    profile = Profile.load(tiny)
    p = torch.softmax(torch.tensor([[1.0, 2.0, 5.0]], dtype=torch.double), -1).numpy()
    cooled = torch.softmax(torch.tensor([[0.5, 1.0, 2.5]], dtype=torch.double), -1).numpy()
    assert measure.served(p, profile) == pytest.approx(p @ np.array([0, 0.5, 1]))
    calm = dataclasses.replace(profile, temperature=2.0)
    assert measure.served(p, calm) == pytest.approx(cooled @ np.array([0, 0.5, 1]))
    mapped = dataclasses.replace(calm, points=[[0, 0], [0.5, 0.1], [1, 1]])
    assert measure.served(p, mapped) == pytest.approx(0.1 + (cooled @ np.array([0, 0.5, 1]) - 0.5) * 1.8)


def test_a_row_that_is_too_long_is_refused_before_anything_is_learned(write, tmp_path, judged, capsys):
    long = tmp_path / "long.jsonl"
    long.write_text(judged.read_text() + json.dumps({"query": "hat " * 2000, "text": "t", "grade": 1, "fold": 1}) + "\n")
    assert main(["sft", "--config", str(write("long", data=long))]) == 2
    assert f"recipe sft: {long}: line 61: query_id 'hat hat" in capsys.readouterr().err
    assert not (tmp_path / "long").exists()


def test_without_explanations_none_are_read_of_held_out_judgments(write, tmp_path, judged):
    told = tmp_path / "told.jsonl"
    told.write_text("".join(json.dumps(json.loads(x) | {"explanation": "x " * 500}) + "\n" for x in judged.read_text().splitlines()))
    path = write("x", data=told)
    path.write_text(path.read_text().replace('"rule"', '"none"'))
    stage = config.load("sft", path)
    train, held = loop.load(stage, Profile.load(stage.model.path))
    assert all(j.explanation is None for j in train) and all(not r.tail for r in held)


def test_a_query_under_another_name_is_not_held_out(write, tmp_path, judged):
    again = tmp_path / "again.jsonl"
    lines = [json.loads(x) for x in judged.read_text().splitlines()]
    again.write_text("".join(json.dumps(x | {"query_id": "x" + x["query_id"], "query": f" {x['query'].upper()} ".replace(" ", "  ")}) + "\n"
                             for x in lines))
    path = write("x", "")
    path.write_text(path.read_text().replace("held_folds = [0]", f'held = ["{again}"]'))
    stage = config.load("sft", path)
    with pytest.raises(ValueError, match=f"60 judgments .* held out, the first in {judged}: line 1: query_id 'q0', '"):
        loop.load(stage, Profile.load(stage.model.path))


def test_judged_queries_are_never_both_learned_and_measured(write, judged):
    path = write("x", "")
    path.write_text(path.read_text().replace("held_folds = [0]", f'held = ["{judged}"]'))
    with pytest.raises(ValueError, match="have queries that are held out"):
        loop.load(config.load("sft", path), Profile.load(config.load("sft", path).model.path))
    assert main(["sft", "--config", str(path)]) == 2


def test_data_is_checked_converted_and_counted(tmp_path, tiny, judged, capsys):
    file, bare = tmp_path / "data.toml", tmp_path / "bare.jsonl"
    bare.write_text(judged.read_text().replace(', "max_grade": 2', ""))
    file.write_text(f'out = "{tmp_path}/out.jsonl"\ninputs = ["{bare}"]\nmodel.path = "{tiny}"\n'
                    'explanations = "rule"\ninstruction = "be strict"\nfolds = [1, 2]\ngrades = {2 = "0"}\n')
    assert main(["data", "--config", str(file)]) == 0
    counts = json.loads(capsys.readouterr().out)
    assert counts["grades"]["2"] == 0 and counts["explained"] == counts["judgments"] == 24
    assert set(counts["folds"]) == {"1", "2"}
    rows = judgments.read([tmp_path / "out.jsonl"], Profile.load(tiny))
    assert all(j.instruction == "be strict" and j.explanation for j in rows)
