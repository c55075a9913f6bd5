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


def test_two_processes_have_the_gradient_of_one(write, tmp_path, judged):
    mixed = tmp_path / "mixed.jsonl"  # some without explanation, of different weights
    rows = [json.loads(line) for line in judged.read_text().splitlines()]
    for i, row in enumerate(rows):
        row |= {"explanation": f"asks: {row['query']}"} if i % 3 else {}
    mixed.write_text("".join(json.dumps(r) + "\n" for r in rows))
    env = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    found = []
    for world in (1, 2):
        path = write(f"of{world}", data=mixed)
        path.write_text(path.read_text().replace('"rule"', '"file"').replace("steps = 6", "steps = 1\nclip = 1e9"))
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


def test_judged_queries_are_never_both_learned_and_measured(write, judged):
    path = write("x", "")
    path.write_text(path.read_text().replace("held_folds = [0]", f'held = ["{judged}"]'))
    with pytest.raises(ValueError, match="have queries that are held out"):
        loop.load(config.load("sft", path), Profile.load(config.load("sft", path).model.path))
    assert main(["sft", "--config", str(path)]) == 2


def test_data_is_checked_converted_and_counted(tmp_path, tiny, judged, capsys):
    file = tmp_path / "data.toml"
    file.write_text(f'out = "{tmp_path}/out.jsonl"\ninputs = ["{judged}"]\nmodel.path = "{tiny}"\n'
                    'explanations = "rule"\ninstruction = "be strict"\nfolds = [1, 2]\ngrades = {2 = "0"}\n')
    assert main(["data", "--config", str(file)]) == 0
    counts = json.loads(capsys.readouterr().out)
    assert counts["grades"]["2"] == 0 and counts["explained"] == counts["judgments"] == 24
    assert set(counts["folds"]) == {"1", "2"}
    rows = judgments.read([tmp_path / "out.jsonl"], Profile.load(tiny))
    assert all(j.instruction == "be strict" and j.explanation for j in rows)
