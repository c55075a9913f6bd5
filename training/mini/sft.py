"""Supervised training: the grade token first, then its explanation.

    python -m mini.sft prepare  --out RUN            tokenizer, initial model, generated pairs' targets
    python -m mini.sft pretrain --out RUN --minutes 20
    python -m mini.sft grade    --out RUN --fold 1               the teachers grade pairs of the other folds
    python -m mini.sft tune     --out RUN --fold 1 --minutes 24  trains on them; without --fold: on all folds
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import pickle
import random
import shutil
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import Qwen3ForCausalLM

from mini import bag
from mini import data
from mini import explain
from mini import model as shapes
from mini import pairs
from mini.batches import Batch, stream
from mini.forward import Forward, norm
from mini.queries import Words
from mini.teacher import Teacher, encode, minilm_dir
from mini.text import Bm25, stems
from mini.tokenizer import Encoder, train as train_tokenizer

VOCABULARY = 12288
VALUES = torch.tensor([0.0, 1.0, 2.0, 3.0])
TOLD = 512  # explanation tokens of a batch that a CPU learns from
SAY = 20  # seconds between lines of progress


def background(args):
    """Unjudged texts that every stage may use: products, WordNet synsets and names of things."""
    names = [line for path in args.names for line in Path(path).read_text().split("\n") if line]
    return data.products(data.data_dir(args.data)), data.wordnet(Path(args.wordnet)), names


def vocabulary() -> list[str]:
    """MiniLM's words, common ones first."""
    return [w for w in (minilm_dir() / "vocab.txt").read_text().split("\n") if w.isalpha()]


def prepare(args) -> None:
    """Write RUN/tokenizer.json, the initial model in RUN/start and RUN/generated.pkl."""
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    items, synsets, names = background(args)
    titles = [f"{p['title']} {p['text']}" for p in items]
    glosses = [f"{', '.join(s['words'])}: {s['gloss']}" for s in synsets]
    sample = [" ".join(t.split()[:40]) for t in titles] + glosses[::4]
    if args.base:  # what was trained without labels before: its tokenizer and the axes that it knows
        for name in ("tokenizer.json", "axes.npy"):
            shutil.copy(Path(args.base) / name, out / name)
    common = vocabulary()
    asking = Words(synsets, names, set(common[:9000]).__contains__)
    shelves = pairs.shelves(items, synsets, names, asking, set(common[:20000]).__contains__, args.seed)
    groups, teacher = generate(args, out, shelves, sample)
    if not args.base:
        begin(args, out, titles + glosses + names, sample, texts_of(groups, shelves, asking, teacher, args))


def begin(args, out: Path, texts, sample, meant: dict[str, np.ndarray]) -> None:
    """The tokenizer, from the texts and from common words (one that is there is kept), and the initial model."""
    forms = "intent: none\nmatch: none yes, none no\ngaps: none\nverdict: " + "\nverdict: ".join(explain.VERDICTS)

    def lines():
        for text in texts:
            yield " " + text
        for rank, word in enumerate(vocabulary()):
            yield f" {word}" * (60 if rank < 6000 else 25 if rank < 11000 else 5)
        for _ in range(3000):
            yield forms

    if not (out / "tokenizer.json").exists():
        train_tokenizer(lines(), VOCABULARY).save(str(out / "tokenizer.json"))
    encoder = Encoder.load(out)
    rare = shapes.rarity(encoder, sample, VOCABULARY)
    single = encode([encoder.plain.decode([i]).strip() or "?" for i in range(VOCABULARY)]) @ np.load(out / "axes.npy").T
    ids = [encoder.text(" ".join(t.split()[:48])) for t in meant]
    vectors, importance = bag.fit(ids, np.stack(list(meant.values())), single, seed=args.seed)
    vectors = shapes.token_vectors(encoder.plain, vectors)
    shapes.start(encoder, vectors, importance, rare, args.seed).save_pretrained(out / "start")


def generate(args, out: Path, shelves, sample):
    """Label-free groups with their targets, and the teacher's main axes; returns groups and teacher."""
    teacher, groups = Teacher(Path(args.cache)), []
    for shelf in shelves:
        teacher.prepare(shelf.texts)
    rng = random.Random(args.seed)
    if args.base:
        teacher.axes = np.load(out / "axes.npy")
    else:
        known = [t for s in shelves for t in rng.sample(s.texts, min(len(s.texts), 10000))]
        np.save(out / "axes.npy", teacher.learn_axes(known, shapes.MEANING))
    shares = (0.25, 0.2, 0.15, 0.15, 0.25)[: len(shelves)]
    for at, (shelf, share) in enumerate(zip(shelves, shares)):
        groups += pairs.shelf_groups(shelf, teacher, int(args.groups * share / sum(shares)), args.seed + at)
        print(f"{len(groups)} generated groups", flush=True)
    idf = Bm25([stems(t) for t in sample])
    pairs.set_targets(groups, teacher, idf)
    idf.tf, idf.length = [], []
    pickle.dump((groups, idf), open(out / "generated.pkl", "wb"))
    return groups, teacher


def texts_of(groups, shelves, asking: Words, teacher, args) -> dict[str, np.ndarray]:
    """The teacher's coordinates of the groups' texts, of every name, and of queries about them."""
    rng = random.Random(args.seed)
    asked = [asking.query(rng) for _ in range(4 * args.groups)]
    texts = {t: m for g in groups for t, m in zip((g.query, *g.teacher_docs), g.meaning)}
    names = [t for s in shelves for t in s.texts if s.domain == "dbpedia"]  # each says little, and many are needed
    more = sorted({*names, *asked} - set(texts))
    teacher.prepare(more)
    texts.update(zip(more, teacher.coordinates(more)))
    return texts


def grade(args) -> None:
    """Write RUN/graded<fold>.pkl: judged and unjudged groups of the training folds, graded by the teachers and,
    the judged ones, by their labels; and a share of the label-free ones."""
    generated, idf = pickle.load(open(Path(args.out) / "generated.pkl", "rb"))
    root, rng = data.data_dir(args.data), random.Random(args.seed)
    teacher, judged, unjudged, rankers = Teacher(Path(args.cache)), [], [], {}
    teacher.axes = np.load(Path(args.out) / "axes.npy")
    rounds = {"esci": (8, 6, 0), "dbpedia": (8, 6, 2000), "selqa": (1, 1, 700)}
    for name in data.SETS:
        queries = [q for q in data.judged(root, name) if str(q.fold) not in args.fold]
        labelled, near, made = rounds[name]
        judged += pairs.judged_groups(queries, labelled, args.seed)
        unjudged += pairs.unjudged_groups(queries, teacher, near, made, args.seed)
        if name in pairs.RANKED:
            rankers[name] = pairs.ranker_of(queries, teacher, idf)
    pairs.set_targets(judged + unjudged, teacher, idf, rankers)
    for group in judged:
        group.target = pairs.with_labels(group, args.label_weight)
    groups = judged + unjudged + rng.sample(generated, min(2000, len(generated)))
    pickle.dump(groups, open(Path(args.out) / f"graded{args.fold}.pkl", "wb"))
    print(f"{len(groups)} graded groups")


def meaning_loss(net, entering, batch: Batch):
    """How far the comparing layer's queries at <|answer|> are from the teacher's vector of the
    query, and its keys at the second <|query|> from that of the document: 1 - cosine, by head."""
    layer, rows, total = net.model.layers[shapes.COMPARING], shapes.meaning_rows(), 0.0
    attention = layer.self_attn
    for places, matrix, wanted in ((batch.answer, attention.q_proj, batch.query),
                                   (batch.second, attention.k_proj, batch.document)):
        got = norm(entering[places], layer.input_layernorm.weight) @ matrix.weight[rows].T
        got, wanted = (x.view(len(places), -1, 4) for x in (got, wanted))
        total = total + (1 - F.cosine_similarity(got, wanted, dim=1)).mean()
    return total / 2


def loss_parts(forward: Forward, batch: Batch, grades):
    """Grade cross-entropy, listwise divergence within groups, explanation cross-entropy, meaning."""
    net = forward.net
    hidden, entering = forward(batch.ids, shapes.COMPARING)
    flat, table = hidden.flatten(0, 1), net.lm_head.weight
    logits = flat[batch.answer] @ table[grades].T
    grade = -(batch.soft * F.log_softmax(logits, -1)).sum(-1).mean()
    expected = (F.softmax(logits, -1) @ VALUES.to(logits.device)).view(batch.target.shape)
    wanted = F.log_softmax(batch.target * 8, -1)
    ranked = F.kl_div(F.log_softmax(expected * 2.0, -1), wanted, log_target=True, reduction="batchmean")
    shuffled = lambda n: torch.randperm(n, device=flat.device)
    some = batch.answer[shuffled(len(batch.answer))[:32]]  # the first token is to be a grade, not any word
    every = flat[some] @ table.T
    grade = grade + 0.3 * (every.logsumexp(-1) - every[:, grades].logsumexp(-1)).mean()
    told, places, words = flat.new_zeros(()), batch.told, batch.words
    if len(places) > TOLD and not flat.is_cuda:  # a sample is enough, and the vocabulary is wide
        kept = shuffled(len(places))[:TOLD]
        places, words = places[kept], words[kept]
    if len(places):
        out = flat[places].to(forward.kind) @ table.to(forward.kind).T
        told = F.cross_entropy(out.float(), words)
    return grade, ranked, told, meaning_loss(net, entering.flatten(0, 1), batch)


def optimizer(net, rate: float):
    """AdamW; token vectors, which start well, move more slowly; gains have no decay."""
    table = net.model.embed_tokens.weight
    matrices = [p for p in net.parameters() if p.ndim == 2 and p is not table]
    gains = [p for p in net.parameters() if p.ndim < 2]
    return torch.optim.AdamW(
        [{"params": matrices, "lr": rate, "weight_decay": 0.02},
         {"params": gains, "lr": rate, "weight_decay": 0.0},
         {"params": [table], "lr": rate * 0.2, "weight_decay": 0.0}], betas=(0.9, 0.98), fused=True)


WEIGHTS = {"pretrain": (1.0, 0.5, 0.4, 2.0), "tune": (1.0, 0.5, 0.6, 1.0)}  # of the parts of the loss
PARTS = ("grade", "rank", "explain", "meaning")


def fit(net, grades, stream, minutes: float, rate: float, seed: int, log, floor: float = 0.0,
        max_steps: int = 10**9, keep_at: Path | None = None, fuse: bool = True, weights=WEIGHTS["pretrain"]):
    """Train for a span of processor minutes (all cores added up), or of a GPU's; returns the moving average of
    the weights."""
    torch.manual_seed(seed)
    gpu = net.device.type == "cuda"
    clock = time.monotonic if gpu else time.process_time
    tuner, forward = optimizer(net, rate), Forward(net, fuse and not gpu)  # compiled it was not tried on a GPU
    base = [g["lr"] for g in tuner.param_groups]
    average, began, said, seen = copy.deepcopy(net), clock(), time.monotonic(), 0
    sums, counts = torch.zeros(4, device=net.device), np.zeros(4)
    for step in range(1, max_steps + 1):
        done = (clock() - began) / 60 / minutes
        if done >= 1:
            break
        scale = min(1.0, step / 100) * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done)))
        for group, lr in zip(tuner.param_groups, base):
            group["lr"] = lr * scale
        batch = next(stream).to(net.device)
        losses = loss_parts(forward, batch, grades)
        sum(w * p for w, p in zip(weights, losses)).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        tuner.step()
        tuner.zero_grad(set_to_none=True)
        seen += batch.ids.numel()
        sums += torch.stack(losses).detach()
        counts += [1, 1, bool(len(batch.told)), 1]
        keep = min(0.998, step / (step + 20))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(net.parameters()), 1 - keep)
        if step % 50 == 0:
            row = {"step": step, "minutes": round((clock() - began) / 60, 2), "tokens": seen,
                   **dict(zip(PARTS, np.round(sums.cpu().numpy() / np.maximum(counts, 1), 4).tolist()))}
            log.write(json.dumps(row) + "\n")
            log.flush()
            sums.zero_()
            counts[:] = 0
            if time.monotonic() - said > SAY:
                said = time.monotonic()
                print(row, flush=True)
                if keep_at is not None:
                    average.save_pretrained(keep_at)
    return average


STAGES = {  # start from, name, rate, floor of the rate, share of groups with explanations
    "pretrain": ("start", "pretrained", 5e-4, 0.05, 0.15),
    "tune": ("pretrained", "final", 2.5e-4, 0.0, 0.3),
}


def run(args) -> None:
    """The stages pretrain and tune."""
    out = Path(args.out)
    encoder = Encoder.load(out)
    source, name, rate, floor, told = STAGES[args.stage]
    if args.stage == "tune":
        groups = pickle.load(open(out / f"graded{args.fold}.pkl", "rb"))
        name = f"fold{args.fold}" if args.fold else name
    else:
        groups = pickle.load(open(out / "generated.pkl", "rb"))[0]
    net = Qwen3ForCausalLM.from_pretrained(out / (args.source or source), dtype=torch.float32).to(args.device)
    target = out / (args.name or name)
    target.mkdir(exist_ok=True)
    with open(target / "log.jsonl", "w") as log:
        batches = stream(groups, encoder, net.device.type, args.seed, told)
        average = fit(net, encoder.grades, batches, args.minutes, args.rate or rate, args.seed, log, floor,
                      keep_at=target, weights=WEIGHTS[args.stage])
    average.save_pretrained(target)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("prepare", "grade", *STAGES))
    parser.add_argument("--out", required=True, help="run directory")
    parser.add_argument("--data", help="data directory (or VERDICT_DATA)")
    parser.add_argument("--wordnet", help="directory with WordNet's data.noun and data.verb")
    parser.add_argument("--names", nargs="*", default=[], help="files with a name of some thing on each line")
    parser.add_argument("--cache", default="cache", help="where teacher vectors are kept")
    parser.add_argument("--groups", type=int, default=40000, help="generated groups of eight pairs")
    parser.add_argument("--minutes", type=float, default=10, help="processor minutes, all cores added up; or a GPU's")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--rate", type=float)
    parser.add_argument("--fold", default="", help="folds held out, as digits: 12; none by default")
    parser.add_argument("--base", help="prepare for going on from this directory, as models/verdict-mini-base")
    parser.add_argument("--label-weight", type=float, default=0.6)
    parser.add_argument("--source", help="start from this model under RUN, or elsewhere by a whole path")
    parser.add_argument("--name", help="name of the resulting model under RUN")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2, help="1 is faster where cores are shared")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    {"prepare": prepare, "grade": grade}.get(args.stage, run)(args)


if __name__ == "__main__":
    main()
