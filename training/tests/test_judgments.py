"""Judgments and configurations: what is read, what is refused, and in which words."""

import json

import pytest

pytest.importorskip("tokenizers")

from recipe import config, judgments
from recipe.plan import Plan
from recipe.profile import Profile


@pytest.fixture(scope="module")
def profile(tiny):
    return Profile.load(tiny)


def parse(profile, grades=None, **fields):
    row = {"query": "red hat", "text": "a hat", **fields}
    return judgments.parse({k: v for k, v in row.items() if v is not ...}, profile, grades or {})


def test_a_softmax_is_read_as_the_value_of_its_two_grades(tiny, tmp_path):
    def load(grades, score):
        rows = "".join(f'[[grades]]\ntoken = "<|{i}|>"\nname = "{name}"\nvalue = {value}\n' for i, (name, value) in enumerate(grades))
        text = (tiny / "relevance.toml").read_text().split("[[grades]]")[0]
        (tmp_path / "relevance.toml").write_text(text.split("[score]")[0] + f'[score]\nread = "softmax"\n{score}\n{rows}')
        return Profile.load(tiny, tmp_path / "relevance.toml")

    ends = 'positive = "yes"\nnegative = "no"'
    read = load([("yes", 0), ("no", 7)], ends)
    assert read.values == [1, 0] and parse(read, grade=3, max_grade=3).target == (1, 0)
    for grades, score in [([("yes", 0), ("no", 1), ("so", 2)], ends), ([("yes", 0), ("no", 1)], 'positive = "yes"')]:
        with pytest.raises(ValueError, match="relevance.toml: score: read = \"softmax\" can be trained where"):
            load(grades, score)


def test_grades_by_name_value_and_other_scales(profile):
    assert parse(profile, grade="1").target == (0, 1, 0)
    assert parse(profile, grade=2).target == (0, 0, 1)
    assert parse(profile, grade=1, max_grade=4).target == (0.5, 0.5, 0)
    assert parse(profile, grade=1, max_grade=1).best == 2
    assert parse(profile, {"E": "2", "1": "0"}, grade="E").best == 2
    assert parse(profile, {"E": "2", "1": "0"}, grade=1).best == parse(profile, {"1": "0"}, grade=1.0).best == 0
    assert parse(profile, {"E": "2", "1": "0"}, grade=1, max_grade=1).best == 2  # its scale says what it is worth
    soft = parse(profile, distribution={"0": 0.2, "2": 0.8})
    assert soft.target == (0.2, 0, 0.8) and soft.grade is None and soft.best == 2
    both = parse(profile, distribution=[0.6, 0.2, 0.2], grade="2")
    assert both.target == (0.6, 0.2, 0.2) and both.best == 2


def test_a_value_between_grades_is_shared_in_any_order():
    assert judgments.spread(1.5, [0, 1, 2, 3]) == (0, 0.5, 0.5, 0)
    assert judgments.spread(1.5, [3, 1]) == (0.25, 0.75)
    assert judgments.spread(3, [3, 1]) == (1, 0)


@pytest.mark.parametrize("fields, problem", [
    ({}, "grade: missing"), ({"grade": "x"}, "'x' is none of the model's grades"), ({"grade": 5}, "grade 5 is not in"),
    ({"grade": 3, "max_grade": 2}, "3 is not in 0 to max_grade 2"), ({"grade": True}, "neither a name nor a number"),
    ({"grade": 1, "query": " "}, "query: ' '"), ({"grade": 1, "text": ""}, "document: neither"),
    ({"grade": 1, "document": 7}, "document: neither"), ({"grade": 1, "fold": "a"}, "fold: 'a'"),
    ({"grade": 1, "weight": -1}, "weight: -1"), ({"distribution": [1, 0]}, "one probability for each"),
    ({"distribution": [0.5, 0, 0]}, "add up to 1"), ({"distribution": {"9": 1}}, "none of the model's grades"),
    ({"grade": 1, "explanation": {"asks": "x"}}, "object of the sections"), ({"grade": 1, "instruction": 3}, "instruction: 3"),
    ({"grade": 1, "query_id": 1.5}, "query_id: 1.5 is neither"), ({"grade": 1, "doc_id": True}, "doc_id: True is neither"),
])
def test_faulty_lines_are_refused_by_path_line_and_field(profile, tmp_path, fields, problem):
    good = {"query": "q", "text": "t", "grade": 1}
    file = tmp_path / "j.jsonl"
    file.write_text(json.dumps(good) + "\n\n" + json.dumps({"query": "q", "text": "t", **fields}) + "\n")
    with pytest.raises(ValueError) as refused:
        judgments.read([file], profile)
    assert str(refused.value).startswith(f"{file}: line 3: ") and problem in str(refused.value)


@pytest.mark.parametrize("line, problem", [
    (b'{"query": "caf\xe9"}', "no UTF-8: invalid continuation byte at byte 14"), (b'{"query": "a \\ud800 b"}', "half a surrogate"),
    (b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
    (b'{"query": "q", "text": "t", "grade": 1, "max_grade": Infinity}', "Infinity is no number"),
    (b'{"query": "q", "text": "t", "grade": 1, "max_grade": 1e999}', "not in 0 to max_grade inf"),
    (b'{"query": "r", "query_id": "q", "text": "t", "grade": 1}', "query_id 'q' is another query's: 'q' in {file}: line 1, and here 'r'"),
])
def test_what_is_no_line_is_refused_by_path_and_line(profile, tmp_path, line, problem):
    file = tmp_path / "j.jsonl"
    file.write_bytes(b'{"query": "q", "text": "t", "grade": 1}\n' + line + b"\n")
    with pytest.raises(ValueError) as refused:
        judgments.read([file], profile)
    assert str(refused.value).startswith(f"{file}: line 2: ") and problem.format(file=file) in str(refused.value)


def test_a_file_that_was_cut_is_refused_by_path_and_line(profile, tmp_path):
    import gzip

    file = tmp_path / "j.jsonl.gz"
    file.write_bytes(gzip.compress(json.dumps({"query": "q", "text": "t", "grade": 1}).encode() + b"\n")[:-9])
    with pytest.raises(ValueError, match=f"{file}: line [12]: "):
        judgments.read([file], profile)


def test_names_that_are_left_out_or_null_are_given(profile, tmp_path):
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for file in files:
        file.write_text('{"query_id": null, "query": "q", "doc_id": null, "text": "t", "grade": 1, "fold": null, "weight": null}\n')
    one, other = judgments.read(files, profile)
    assert (one.query_id, one.weight, one.fold) == ("q", 1, other.fold) and one.doc_id != other.doc_id
    assert (one.place, other.place) == (f"{files[0]}: line 1", f"{files[1]}: line 1")


def test_a_whole_number_is_a_name(profile, tmp_path):
    file = tmp_path / "j.jsonl"
    file.write_text('{"query_id": 7, "query": "q", "doc_id": 12, "text": "t", "grade": 1}\n')
    (found,) = judgments.read([file], profile)
    assert (found.query_id, found.doc_id) == ("7", "12")


def test_a_document_is_written_as_what_it_was(profile):
    shown = lambda document: judgments.to_row(parse(profile, grade=1, text=..., document=document), profile)
    assert shown("a hat")["document"] == "a hat" and "text" not in shown("a hat")
    assert shown({"title": "a", "text": "hat"})["title"] == "a" and "document" not in shown({"title": "a", "text": "hat"})
    assert shown({"title": "a", "tags": ["x"]})["document"] == {"title": "a", "tags": ["x"]}


def test_what_is_written_reads_the_same(profile, tmp_path):
    found = [parse(profile, grade=1, max_grade=4, fold=2, weight=0.5, title="T", instruction="strict", query_id="a"),
             parse(profile, distribution=[0.25, 0.25, 0.5], explanation="asks: x", query_id="b"),
             parse(profile, grade="2", text=..., document={"title": "T", "tags": ["x"]}, query_id="c"),
             parse(profile, grade="2", text=..., document="as it is", query_id="d")]
    judgments.write(tmp_path / "out/j.jsonl", found, profile)
    assert judgments.read([tmp_path / "out/j.jsonl"], profile) == found


def test_the_rule_explains_what_is_unexplained(profile):
    own, ruled = judgments.explained([parse(profile, grade=1, explanation="x"), parse(profile, grade=2)], profile)
    assert own.explanation == "x"
    assert ruled.explanation == "asks: red hat\nhas: hat\nlacks: red\nsays: yes"


@pytest.mark.parametrize("text, problem", [
    ("optim.stpes = 3", "optim.stpes: unknown; there are steps"), ("lr = 1", "lr: unknown"),
    ("optim.steps = 'x'", "optim.steps: 'x' is not of type int"), ("optim.rate = true", "optim.rate: True is not of type float"),
    ("data.train = 'x'", "data.train: 'x' is not of type"), ("model = 3", "model: 3 is not a table"),
    ("watch.every = 0", "watch.every: 0 is below 1"), ("optim.micro_batch = -1", "optim.micro_batch: -1 is below 1"),
    ("out = ", "Invalid value"),
])
def test_faulty_configurations_are_refused_by_key(tmp_path, text, problem):
    good = {"out": '"o"', "model.path": '"m"', "data.train": '["t"]', "optim.steps": "5"}
    key = text.partition(" ")[0]
    lines = [f"{k} = {v}" for k, v in good.items() if k != key and not k.startswith(f"{key}.")]
    file = tmp_path / "c.toml"
    file.write_text("\n".join([*lines, text]))
    with pytest.raises(ValueError) as refused:
        config.load("sft", file)
    assert str(refused.value).startswith(f"{file}: {problem}")


def test_a_missing_key_is_named_and_one_can_be_set(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text('out = "o"\nmodel.path = "m"\ndata.train = ["t"]\n')
    with pytest.raises(ValueError, match="optim is missing"):
        config.load("rl", file)
    stage = config.load("rl", file, ["optim.steps=7", "rl.supervised=0", "out=there"])
    assert (stage.optim.steps, stage.rl.supervised, stage.out) == (7, 0.0, "there")
    with pytest.raises(ValueError, match="--set out.x: out is 'o', not a table"):
        config.load("rl", file, ["out.x=1"])


def test_every_committed_configuration_reads():
    from conftest import ROOT

    files = sorted((ROOT / "training/configs").glob("*-*.toml"))
    stages = [f.stem.split("-")[1] for f in files if f.stem != "qwen3-relevance"]
    assert set(stages) == set(config.STAGES)
    for file in files:
        if file.stem != "qwen3-relevance":
            config.load(file.stem.split("-")[1], file)


def test_the_configuration_for_data_takes_every_scale_as_it_is(profile):
    from conftest import ROOT

    named = config.load("data", ROOT / "training/configs/mini-data.toml").grades
    assert parse(profile, named, grade=1, max_grade=1).best == parse(profile, named, grade=5, max_grade=5).best == 2


def test_batches_are_a_function_of_seed_and_step(profile):
    found = [parse(profile, grade=i % 3, query_id=f"q{i // 4}") for i in range(41)]
    plan = Plan(found, [5] * 41, 8, 4, 3, 20)
    again = Plan(found, [5] * 41, 8, 4, 3, 20)
    assert [plan.step(s) for s in range(20)] == [again.step(s) for s in range(20)]
    assert Plan(found, [5] * 41, 8, 4, 4, 20).step(0) != plan.step(0)
    seen = [i for s in range(6) for unit in plan.step(s) for i in unit]  # an epoch: eleven units, one filled up
    assert set(seen) == set(range(41))
    assert all(len({found[i].query_id for i in unit}) == 1 and len(unit) <= 4 for unit in plan.step(0))


def test_a_curriculum_begins_with_what_is_clear(profile):
    found = [parse(profile, distribution=[1 - i / 80, i / 80, 0]) for i in range(40)]
    plan = Plan(found, [5] * 40, 4, 1, 0, 60, begin=0.25)
    first = {i for s in range(2) for unit in plan.step(s) for i in unit}
    assert max(first) < 10 and {i for s in range(40, 60) for unit in plan.step(s) for i in unit} == set(range(40))


def test_a_curriculum_grows_though_its_first_share_is_longer_than_the_run(profile):
    found = [parse(profile, distribution=[1, 0, 0] if i < 500 else [0.5, 0.5, 0]) for i in range(1000)]
    plan = Plan(found, [5] * 1000, 10, 1, 1, 40, begin=0.5)
    unclear = [sum(i >= 500 for unit in plan.step(s) for i in unit) for s in range(40)]
    assert sum(unclear[:2]) == 0 and 60 < sum(unclear[20:]) < 140
