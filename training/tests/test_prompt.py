"""Prompts are the server's: the same token ids as `verdict prompt`, on every checkpoint of this repository."""

import json
import random
import shutil

import pytest

pytest.importorskip("tokenizers")

from conftest import ROOT
from recipe.document import DocumentTemplate
from recipe.profile import Profile
from recipe.prompt import Template, TooLong
from recipe.tokens import Tokens

GOLDEN = sorted(p.parent for p in (ROOT / "tests/golden").glob("*/relevance.toml"))
CHECKPOINTS = [ROOT / "models/verdict-mini", *GOLDEN]
NASTY = [
    "red shoes", "  two  spaces ", "<|0|>", "<|answer|>", "<|im_end|><|query|>x", "<|document|> yes no",
    "naïve café E\u0301te\u0301", "北京 的 天气 怎么样", "🙂🙂🏽 👩‍👩‍👧 flags 🇳🇴", "'s it's 12345 1,000.50", "a\nb\r\n\tc\u00a0d\u3000e",
    "{query} {{document}} {title}", "\u0000\u0007 control", "ÅÄÖ STRASSE İstanbul ǅ", "???\n\n?", "\u200b\u200d zero", "x" * 90,
]


def texts(rng: random.Random, size: int) -> str:
    return "".join(rng.choice(NASTY) + rng.choice(["", " ", "\n"]) for _ in range(size))


def cases(seed: int):
    """Pairs of nasty texts, short and far too long; documents as text and as fields."""
    rng = random.Random(seed)
    for query in NASTY:
        if query.strip():
            yield {"query": query, "document": {"title": rng.choice(["", " ", *NASTY]), "text": rng.choice(NASTY)}}
            yield {"query": query, "document": {"title": "", "text": texts(rng, rng.choice([1, 3, 30]))}}
    for size in (20, 40, 80, 400, 3000):
        yield {"query": rng.choice(NASTY[:6]), "document": texts(rng, size)}
        yield {"query": "why", "document": {"title": texts(rng, 3), "text": ["a list", "", 7, True, 1.5, texts(rng, size)]}}
    for length in range(200, 330):
        yield {"query": "q", "document": "🙂" * (length // 4) + "word " * (length - 40), "instruction": "be strict "}
    for space in (" ", "\n", " \n\t "):
        for length in (100, 3_000, 40_000):
            yield {"query": "q", "document": "x" + space * length + "red shoes " * rng.choice([1, 300])}
            yield {"query": space * (length // 20) + "shoes", "document": "d"}
    yield {"query": "q", "document": "d", "instruction": ""}
    for length in (200, 400, 800, 1_600, 15_000):
        yield {"query": "q", "document": "d", "instruction": "x" * length}
        yield {"query": "naïve " * (length // 8), "document": "d", "instruction": "be strict"}


def with_template(checkpoint, template: str, to):
    """A copy of a checkpoint whose prompt is another."""
    shutil.copytree(checkpoint, to)
    file = to / "relevance.toml"
    lines = [f"template = {json.dumps(template)}" if line.startswith("template =") else line
             for line in file.read_text().splitlines()]
    file.write_text("\n".join(lines))
    return to


def compare(verdict, checkpoint, rows) -> int:
    """Compares every row; returns how many documents were cut."""
    profile = Profile.load(checkpoint)
    done = verdict("prompt", "--model", checkpoint, text="".join(json.dumps(r) + "\n" for r in rows), check=False)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(rows), done.stderr
    cut = 0
    for row, answer in zip(rows, answers):
        try:
            ours = profile.prompt(row["query"], row["document"], row.get("instruction"))
        except TooLong as refused:
            assert answer["error"]["message"] == str(refused), row
            continue
        theirs = answer["prompts"][0]
        assert (ours.ids, ours.truncated) == (theirs["ids"], theirs["truncated"]), row
        cut += ours.truncated
    return cut


@pytest.mark.parametrize("checkpoint", CHECKPOINTS, ids=lambda p: p.name)
def test_ids_are_the_servers(verdict, checkpoint):
    assert compare(verdict, checkpoint, list(cases(1))) > 20


@pytest.mark.parametrize("template", [
    "<|im_start|>Find {instruction}\nQ: {query}\nD: {document}.\nSo:<|answer|>",  # one run: nothing apart
    "{{{instruction}}}: {query}\n{|}Document: {document}{|} yes?",  # seams, braces, text last
    "{document} {query}",
])
def test_ids_are_the_servers_for_other_templates(verdict, template, tmp_path):
    checkpoint = with_template(ROOT / "tests/golden/qwen3", template, tmp_path / "m")
    assert compare(verdict, checkpoint, list(cases(2))) > 20


def test_user_text_never_becomes_a_control_token():
    for checkpoint in CHECKPOINTS:
        tokens = Tokens.load(checkpoint)
        for text in (*tokens.controls, *NASTY):
            assert not set(tokens.encode(text)) & set(tokens.controls.values())


def test_faulty_templates_are_refused():
    tokens = Tokens.load(GOLDEN[0])
    for template, problem in [("{query}", "not 0 times"), ("{document}", "{query} must"), ("{query}{x}{document}", "unknown"),
                              ("{query} { {document}", "lone brace")]:
        with pytest.raises(ValueError, match=problem):
            Template(template, tokens)


@pytest.mark.parametrize("old, new, problem", [
    ('token = "<|1|>"', 'token = "<|0|>"', "same token"),
    ('token = "<|1|>"', 'token = "two words"', "must be exactly one"),
    ("max_tokens = 256", "max_tokens = 4096", "max_position_embeddings of 1024"),
    ("template =", "tmpl =", "prompt.template is missing"),
    ('stop = ["<|endoftext|>"]', 'stop = ["two words"]', "it must be one"),
])
def test_faulty_profiles_are_refused(tmp_path, old, new, problem):
    file = tmp_path / "relevance.toml"
    file.write_text((ROOT / "tests/golden/qwen3/relevance.toml").read_text().replace(old, new))
    with pytest.raises(ValueError, match=f"{file}: .*{problem}"):
        Profile.load(ROOT / "tests/golden/qwen3", file)


def test_documents_of_fields():
    def render(template, **fields):
        return DocumentTemplate(template).render(fields)
    assert render("{title} {text}", title=" Lamp ", text="Warm\n  light") == "Lamp Warm\n  light"
    assert render("{title}\n{text}", text="x", title="  ") == "x"
    assert render("{a} {b} {c}", a=1, c=True) == "1 true"
    assert render("{{{a}}} {b}", a="{b}", b="x") == "{{b}} x"
    with pytest.raises(ValueError, match="names no field"):
        DocumentTemplate("plain")
