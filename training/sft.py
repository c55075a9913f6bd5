"""Supervised training: the grade token first, then its explanation.

    python sft.py prepare  --out RUN            tokenizer, initial model, generated pairs' targets
    python sft.py pretrain --out RUN --minutes 20
    python sft.py tune     --out RUN --fold 12 --minutes 12   (trains without folds 1 and 2)
    python sft.py tune     --out RUN --minutes 12             (all folds: the model to export)
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import pickle
import random
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import Qwen3ForCausalLM

import data
import explain
import model as shapes
import pairs
from teacher import Teacher, minilm_dir
from text import Bm25, stems, words
from tokenizer import Encoder, train as train_tokenizer

VOCABULARY = 12288
VALUES = torch.tensor([0.0, 1.0, 2.0, 3.0])


def background(root: Path, wordnet: Path):
    """Unjudged texts that every stage may use: products and WordNet synsets."""
    return data.products(root), data.wordnet(wordnet)


def corpus(items, synsets):
    """Texts for the tokenizer, token rarity and idf; common English words first."""
    glosses = [f"{', '.join(s['words'])}: {s['gloss']}" for s in synsets]
    titles = [f"{p['title']} {p['text']}" for p in items]
    return titles, glosses


def prepare(args) -> None:
    """Write RUN/tokenizer.json, the initial model in RUN/start and RUN/generated.pkl."""
    out, root = Path(args.out), data.data_dir(args.data)
    out.mkdir(parents=True, exist_ok=True)
    items, synsets = background(root, Path(args.wordnet))
    titles, glosses = corpus(items, synsets)
    vocabulary = [w for w in (minilm_dir() / "vocab.txt").read_text().split("\n") if w.isalpha()]
    forms = "intent: none\nmatch: none, none\ngaps: none\nverdict: " + "\nverdict: ".join(explain.VERDICTS)
    def lines():
        for text in titles + glosses:
            yield " " + text
        for rank, word in enumerate(vocabulary):
            yield f" {word}" * (60 if rank < 6000 else 25 if rank < 11000 else 5)
        for _ in range(3000):
            yield forms
    tokenizer = train_tokenizer(lines(), VOCABULARY)
    tokenizer.save(str(out / "tokenizer.json"))
    encoder = Encoder.load(out)
    sample = [" ".join(t.split()[:40]) for t in titles] + glosses[::4]
    vectors = shapes.token_vectors(encoder.plain)
    rare = shapes.rarity(encoder, sample, VOCABULARY)
    shapes.start(encoder, vectors, rare, args.seed).save_pretrained(out / "start")
    common = set(vocabulary[:20000]).__contains__
    half = args.groups // 2
    groups = list(pairs.product_groups(items, half, args.seed))
    groups += list(pairs.gloss_groups(synsets, common, args.groups - half, args.seed))
    print(f"{len(groups)} generated groups", flush=True)
    idf = Bm25([stems(t) for t in sample])
    teacher = Teacher(Path(args.cache))
    pairs.set_targets(groups, teacher, idf, 0.0)
    idf.tf, idf.length = [], []
    pickle.dump((groups, idf), open(out / "generated.pkl", "wb"))


def tune_groups(args, idf, generated):
    """Judged and generated groups of the training folds, with a share of the label-free ones."""
    root, rng = data.data_dir(args.data), random.Random(args.seed)
    teacher, groups = Teacher(Path(args.cache)), []
    rounds = {"esci": 8, "dbpedia": 3, "selqa": 1}
    for name in data.SETS:
        queries = [q for q in data.judged(root, name) if str(q.fold) not in args.fold]
        labelled = list(pairs.judged_groups(queries, rounds[name], args.seed))
        pairs.set_targets(labelled, teacher, idf, args.label_weight)
        groups += labelled
        if name != "esci":
            made = list(pairs.sentence_groups(queries, 700, args.seed))
            pairs.set_targets(made, teacher, idf, 0.0)
            groups += made
    made = rng.sample(generated, min(1600, len(generated)))
    pairs.set_targets(made, teacher, idf, 0.0)
    return groups + made


class Batches:
    """An endless stream of batches of about `tokens` tokens, alike in length."""

    def __init__(self, groups, encoder: Encoder, tokens: int, seed: int, explain_share: float = 0.5):
        self.groups, self.encoder, self.tokens = groups, encoder, tokens
        self.rng, self.explain_share = random.Random(seed), explain_share
        self.noise = np.random.default_rng(seed)

    def _rows(self, group):
        default = self.rng.random() < 0.4
        name = data.DEFAULT if default else data.INSTRUCTIONS.get(group.domain, data.DEFAULT)
        soft = pairs.soft_grades(group.target)
        told = range(0)
        if self.rng.random() < self.explain_share:
            told = self.rng.sample(range(len(group.docs)), 3)
        rows, size = [], self.rng.choices((30, 45, 90, 300), (5, 4, 0.8, 0.1))[0]
        for i, document in enumerate(group.docs):
            document = " ".join(document.split()[:size])
            ids = self.encoder.prompt(name, group.query, document, 420)
            tail = []
            if i in told:
                grade = int(self.noise.choice(4, p=soft[i] / soft[i].sum()))
                text = explain.write(group.query, document, grade)
                tail = [self.encoder.grades[grade], *self.encoder.explanation(text)]
            rows.append((ids, tail))
        return rows, soft

    def __iter__(self):
        pending = []
        while True:
            for group in self.rng.sample(self.groups, len(self.groups)):
                rows, soft = self._rows(group)
                longest = max(len(p) + len(t) for p, t in rows)
                pending.append((longest, rows, soft, group.target))
                if len(pending) == 256:
                    yield from self._flush(pending)
                    pending = []

    def _flush(self, pending):
        pending.sort(key=lambda x: x[0])
        batches, current = [], []
        for item in pending:
            if current and item[0] * pairs.GROUP * (len(current) + 1) > self.tokens:
                batches.append(current)
                current = []
            current.append(item)
        batches.append(current)
        self.rng.shuffle(batches)
        for batch in batches:
            yield self._tensors(batch)

    def _tensors(self, batch):
        rows = [row for _, group, _, _ in batch for row in group]
        width = max(len(p) + len(t) for p, t in rows)
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        where, at, target = [], [], []
        for r, (prompt, tail) in enumerate(rows):
            whole = prompt + tail
            ids[r, : len(whole)] = torch.tensor(whole)
            for j in range(1, len(tail)):
                where.append(r * width + len(prompt) + j - 1)
                target.append(tail[j])
            at.append(r * width + len(prompt) - 1)
        soft = torch.tensor(np.concatenate([b[2] for b in batch]), dtype=torch.float32)
        place = torch.tensor(np.stack([b[3] for b in batch]), dtype=torch.float32)
        return ids, torch.tensor(at), torch.tensor(where, dtype=torch.long), torch.tensor(target), soft, place


def loss_parts(net, batch, grades):
    """Grade cross-entropy, listwise divergence within groups, explanation cross-entropy."""
    ids, at, where, target, soft, place = batch
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = net.model(input_ids=ids, use_cache=False).last_hidden_state
    flat = hidden.reshape(-1, hidden.shape[-1])
    logits = flat[at].float() @ net.lm_head.weight[grades].T
    grade = -(soft * F.log_softmax(logits, -1)).sum(-1).mean()
    expected = (F.softmax(logits, -1) @ VALUES).view(place.shape)
    wanted = F.log_softmax(place * 8, -1)
    ranked = F.kl_div(F.log_softmax(expected * 2.0, -1), wanted, log_target=True, reduction="batchmean")
    some = at[torch.randperm(len(at))[:32]]  # the first token is to be a grade, not just any word
    every = flat[some].float() @ net.lm_head.weight.T
    grade = grade + 0.3 * (every.logsumexp(-1) - every[:, grades].logsumexp(-1)).mean()
    told = torch.zeros(())
    if len(where) > 320:  # a sample is enough, and the vocabulary is wide
        kept = torch.randperm(len(where))[:320]
        where, target = where[kept], target[kept]
    if len(where):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            words_out = flat[where] @ net.lm_head.weight.T
        told = F.cross_entropy(words_out.float(), target)
    return grade, ranked, told


def optimizer(net, rate: float):
    """AdamW; token vectors, which start well, move more slowly; gains have no decay."""
    table = net.model.embed_tokens.weight
    matrices = [p for p in net.parameters() if p.ndim == 2 and p is not table]
    gains = [p for p in net.parameters() if p.ndim < 2]
    return torch.optim.AdamW(
        [{"params": matrices, "lr": rate, "weight_decay": 0.02},
         {"params": gains, "lr": rate, "weight_decay": 0.0},
         {"params": [table], "lr": rate * 0.2, "weight_decay": 0.0}], betas=(0.9, 0.98), fused=True)


def fit(net, encoder, groups, minutes: float, rate: float, seed: int, log, floor: float = 0.0,
        tokens: int = 5000, max_steps: int = 10**9, keep_at: Path | None = None):
    """Train for a span of processor minutes (all cores added up); returns the moving average of the weights."""
    torch.manual_seed(seed)
    stream, tuner = iter(Batches(groups, encoder, tokens, seed)), optimizer(net, rate)
    base = [g["lr"] for g in tuner.param_groups]
    average, begin, cpu, seen, sums = copy.deepcopy(net), time.time(), time.process_time(), 0, np.zeros(4)
    step = 0
    while step < max_steps:
        done = (time.process_time() - cpu) / 60 / minutes
        if done >= 1:
            break
        scale = min(1.0, (step + 1) / 30) * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done)))
        for group, lr in zip(tuner.param_groups, base):
            group["lr"] = lr * scale
        batch = next(stream)
        parts = loss_parts(net, batch, encoder.grades)
        loss = parts[0] + 0.5 * parts[1] + 0.6 * parts[2]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        tuner.step()
        tuner.zero_grad(set_to_none=True)
        step, seen = step + 1, seen + batch[0].numel()
        sums += [1, *(float(p.detach()) for p in parts)]
        keep = min(0.995, step / (step + 20))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(net.parameters()), 1 - keep)
        if step % 25 == 0:
            row = {"step": step, "minutes": round((time.time() - begin) / 60, 2), "tokens": seen,
                   "grade": sums[1] / sums[0], "rank": sums[2] / sums[0], "explain": sums[3] / sums[0],
                   "cpu_minutes": round((time.process_time() - cpu) / 60, 2)}
            log.write(json.dumps(row) + "\n")
            log.flush()
            sums[:] = 0
            if step % 100 == 0:
                print(row, flush=True)
                if keep_at is not None:
                    average.save_pretrained(keep_at)
    return average


def run(args) -> None:
    """The stages pretrain and tune."""
    out = Path(args.out)
    encoder = Encoder.load(out)
    generated, idf = pickle.load(open(out / "generated.pkl", "rb"))
    if args.stage == "pretrain":
        source, target, groups, rate, floor = out / (args.source or "start"), out / (args.name or "pretrained"), generated, args.rate or 1.5e-3, 0.3
    else:
        source, target = out / (args.source or "pretrained"), out / (args.name or (f"fold{args.fold}" if args.fold else "final"))
        groups, rate, floor = tune_groups(args, idf, generated), args.rate or 8e-4, 0.0
    net = Qwen3ForCausalLM.from_pretrained(source, dtype=torch.float32)
    target.mkdir(exist_ok=True)
    with open(target / "log.jsonl", "w") as log:
        average = fit(net, encoder, groups, args.minutes, rate, args.seed, log, floor, keep_at=target)
    average.save_pretrained(target)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("prepare", "pretrain", "tune"))
    parser.add_argument("--out", required=True, help="run directory")
    parser.add_argument("--data", help="data directory (or VERDICT_DATA)")
    parser.add_argument("--wordnet", help="directory with WordNet's data.noun and data.verb")
    parser.add_argument("--cache", default="cache", help="where teacher vectors are kept")
    parser.add_argument("--groups", type=int, default=24000, help="generated groups of eight pairs")
    parser.add_argument("--minutes", type=float, default=10, help="processor minutes, all cores added up")
    parser.add_argument("--rate", type=float)
    parser.add_argument("--fold", default="", help="folds held out, as digits: 12; none by default")
    parser.add_argument("--label-weight", type=float, default=0.6)
    parser.add_argument("--source", help="start from this model under RUN")
    parser.add_argument("--name", help="name of the resulting model under RUN")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2, help="1 is faster where cores are shared")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    prepare(args) if args.stage == "prepare" else run(args)


if __name__ == "__main__":
    main()
