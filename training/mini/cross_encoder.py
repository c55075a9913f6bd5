"""The cross-encoder teacher: MiniLM reads query and document together, fine-tuned on judged pairs.

    python -m mini.cross_encoder --out RUN --fold 1 --minutes 8   (judged pairs of the other folds)

It begins as the label-free blend of `pairs.set_targets` and learns what to add to it, so it is
never worse than the blend by much. Its places on the target scale then teach the small model, on
judged pairs and on many more that nobody judged. Bidirectional, so it can only be a teacher.
"""

from __future__ import annotations

import argparse
import json
import math
import pickle
import random
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AutoModel, AutoTokenizer

from mini import data
from mini import metrics
from mini import pairs
from mini.teacher import Teacher, minilm_dir

SCALE = 8.0  # sharpness of the listwise softmax, as in sft.loss_parts
LONGEST = 96  # word pieces of query and document together


class CrossEncoder(torch.nn.Module):
    """Place of a document for a query on the target scale: a given base plus what MiniLM, reading both, adds."""

    def __init__(self, body, tokenizer):
        super().__init__()
        self.body, self.tokenizer = body, tokenizer
        self.head = torch.nn.Linear(body.config.hidden_size, 1)
        torch.nn.init.zeros_(self.head.weight)
        torch.nn.init.zeros_(self.head.bias)

    @classmethod
    def fresh(cls) -> "CrossEncoder":
        """MiniLM's weights with a head that adds nothing yet."""
        return cls(AutoModel.from_pretrained(minilm_dir(), attn_implementation="sdpa"),
                   AutoTokenizer.from_pretrained(minilm_dir()))

    def forward(self, queries, documents, base):
        """Places of len(queries) pairs; `base` (N) is the label-free blend of each."""
        read = self.tokenizer(list(queries), list(documents), padding=True, truncation="only_second",
                              max_length=LONGEST, return_tensors="pt")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = self.body(**read).last_hidden_state
        mask = read["attention_mask"].unsqueeze(-1).float()
        mean = (hidden.float() * mask).sum(1) / mask.sum(1)
        return base + self.head(mean).squeeze(-1)

    @torch.no_grad()
    def places(self, groups, batch: int = 256) -> None:
        """Set each group's target, so far its base, to this teacher's place in [0, 1]."""
        self.eval()
        flat = [(g.query, d, i, j) for i, g in enumerate(groups) for j, d in enumerate(g.teacher_docs)]
        flat.sort(key=lambda x: len(x[0]) + len(x[1]))
        for at in range(0, len(flat), batch):
            part = flat[at : at + batch]
            base = torch.tensor([groups[i].target[j] for _, _, i, j in part], dtype=torch.float32)
            found = self([q for q, _, _, _ in part], [d for _, d, _, _ in part], base)
            for (_, _, i, j), place in zip(part, found.tolist()):
                groups[i].target[j] = min(1.0, max(0.0, place))

    def blend(self, groups, weight: float) -> None:
        """Weigh this teacher's places into the groups' targets, so far their base."""
        base = [g.target.copy() for g in groups]
        self.places(groups)
        for group, before in zip(groups, base):
            group.target = weight * group.target + (1 - weight) * before


def judged_groups(args, idf, teacher, seed: int, rounds: dict):
    """Judged groups of the training folds with their label-free blend as target."""
    groups = []
    for name in data.SETS:
        queries = [q for q in data.judged(data.data_dir(args.data), name) if str(q.fold) not in args.fold]
        groups += pairs.judged_groups(queries, rounds[name], seed)
    pairs.set_targets(groups, teacher, idf, 0.0)
    return groups


def batches(groups, rng, size: int):
    """Endless lists of `size` groups, alike in length."""
    def length(group):
        return len(group.query) + max(map(len, group.teacher_docs))
    while True:
        order = rng.sample(groups, len(groups))
        for at in range(0, len(order), 64 * size):
            part = sorted(order[at : at + 64 * size], key=length)
            cut = [part[i : i + size] for i in range(0, len(part), size)]
            rng.shuffle(cut)
            yield from cut


def loss_of(net, group_batch):
    """Squared distance to the labels' places, and the listwise divergence within groups."""
    queries = [g.query for g in group_batch for _ in g.teacher_docs]
    documents = [d for g in group_batch for d in g.teacher_docs]
    base = torch.tensor(np.concatenate([g.target for g in group_batch]), dtype=torch.float32)
    wanted = torch.tensor([[pairs.LABEL_TARGET[x] for x in g.grades] for g in group_batch], dtype=torch.float32)
    got = net(queries, documents, base).view(wanted.shape)
    ranked = F.kl_div(F.log_softmax(got * SCALE, -1), F.log_softmax(wanted * SCALE, -1), log_target=True,
                      reduction="batchmean")
    return 4 * F.mse_loss(got, wanted) + ranked


def fit(net, groups, minutes: float, rate: float, seed: int, size: int = 6) -> None:
    """Fine-tune for a span of processor minutes."""
    torch.manual_seed(seed)
    stream = batches(groups, random.Random(seed), size)
    slow = list(net.body.parameters())
    tuner = torch.optim.AdamW([{"params": slow, "lr": rate}, {"params": net.head.parameters(), "lr": 20 * rate}],
                              weight_decay=0.01, fused=True)
    base, cpu, step, total = [g["lr"] for g in tuner.param_groups], time.process_time(), 0, 0.0
    net.train()
    while (done := (time.process_time() - cpu) / 60 / minutes) < 1:
        step += 1
        for group, lr in zip(tuner.param_groups, base):
            group["lr"] = lr * min(1.0, step / 50) * 0.5 * (1 + math.cos(math.pi * done))
        loss = loss_of(net, next(stream))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        tuner.step()
        tuner.zero_grad(set_to_none=True)
        total += loss.item()
        if step % 100 == 0:
            print({"step": step, "done": round(done, 3), "loss": round(total / 100, 4)}, flush=True)
            total = 0.0


def check(net, args, idf, teacher) -> dict:
    """nDCG@10 on the held-out folds: the blend alone, then this teacher."""
    report = {}
    for name in data.SETS:
        queries = [q for q in data.judged(data.data_dir(args.data), name) if str(q.fold) in args.fold]
        groups = []
        for q in queries:
            docs = [d.title if name == "esci" else d.render(40) for d in q.docs]
            groups.append(pairs.Group(name, q.text, docs, docs, [0.0] * len(docs)))
        pairs.set_targets(groups, teacher, idf, 0.0)
        def figure():
            found = [metrics.ndcg(g.target, q.gains, doc_ids=[d.doc_id for d in q.docs]) for g, q in zip(groups, queries)]
            return round(float(np.mean([x for x in found if x is not None])), 4)
        before = figure()
        net.places(groups)
        report[name] = {"blend": before, "cross": figure()}
        print(name, report[name], flush=True)
    return report


def load(path: Path) -> CrossEncoder:
    """A fine-tuned teacher from its file."""
    net = CrossEncoder.fresh()
    net.load_state_dict({k: v.float() for k, v in torch.load(path, weights_only=True).items()})
    return net


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="run directory")
    parser.add_argument("--data", help="data directory (or VERDICT_DATA)")
    parser.add_argument("--cache", default="cache")
    parser.add_argument("--fold", default="", help="folds held out, as digits")
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--rate", type=float, default=5e-5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    out = Path(args.out)
    _, idf = pickle.load(open(out / "generated.pkl", "rb"))
    teacher = Teacher(Path(args.cache))
    teacher.axes = np.load(out / "axes.npy")
    groups = judged_groups(args, idf, teacher, args.seed, {"esci": 8, "dbpedia": 6, "selqa": 2})
    print(len(groups), "groups", flush=True)
    net = CrossEncoder.fresh()
    fit(net, groups, args.minutes, args.rate, args.seed)
    torch.save({k: v.half() for k, v in net.state_dict().items()}, out / f"cross{args.fold}.pt")
    if args.fold:
        (out / f"cross{args.fold}.json").write_text(json.dumps(check(net, args, idf, teacher)))


if __name__ == "__main__":
    main()
