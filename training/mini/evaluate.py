"""Measure a model: cross-validated ranking, everyday examples, explanations.

    python -m mini.evaluate folds    --out RUN     the model of each fold on the queries it never saw
    python -m mini.evaluate everyday --out RUN --model final
    python -m mini.evaluate explain  --out RUN     explanations of held-out pairs, checked by rule
    python -m mini.evaluate rerank   --out RUN     BM25's top 50 of all products, held-out queries
    python -m mini.evaluate teachers --out RUN     the teachers themselves on held-out queries
Every figure is taken with weights rounded to bfloat16, as they are exported.
"""

from __future__ import annotations

import argparse
import json
import pickle
import random
from pathlib import Path

import numpy as np
import torch
from transformers import Qwen3ForCausalLM

from mini import data
from mini import explain
from mini import metrics
from mini import pairs
from mini.grounding import Guard
from mini.teacher import Teacher
from mini.text import Bm25, bm25_document, stems
from mini.tokenizer import Encoder

VALUES = np.arange(4.0)
HERE = Path(__file__).parent


def load(path: Path) -> Qwen3ForCausalLM:
    """A model with its weights rounded to bfloat16, computing in float32."""
    net = Qwen3ForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(p.bfloat16().float())
    return net


def fold_models(args) -> dict[int, Qwen3ForCausalLM]:
    """For each fold the model tuned without it: fold1 answers for fold 1, fold12 for folds 1 and 2."""
    nets = {}
    for held in args.held.split(","):
        net = load(Path(args.out) / (args.model or f"fold{held}"))
        nets.update({int(digit): net for digit in held})
    return nets


@torch.no_grad()
def distributions(net, encoder: Encoder, prompts: list[list[int]], tokens: int = 8000) -> np.ndarray:
    """Grade distributions of prompts, computed in batches alike in length."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    out, at = np.zeros((len(prompts), 4)), 0
    head = net.lm_head.weight[encoder.grades]
    while at < len(order):
        size = max(1, tokens // len(prompts[order[at]]))
        while size > 1 and at + size <= len(order) and len(prompts[order[at + size - 1]]) * size > tokens * 1.2:
            size -= 1
        rows = order[at : at + size]
        width = max(len(prompts[i]) for i in rows)
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        for r, i in enumerate(rows):
            ids[r, : len(prompts[i])] = torch.tensor(prompts[i])
        hidden = net.model(input_ids=ids.to(net.device), use_cache=False).last_hidden_state
        last = torch.tensor([len(prompts[i]) - 1 for i in rows])
        out[rows] = torch.softmax(hidden[torch.arange(len(rows)), last] @ head.T, -1).float().cpu().numpy()
        at += size
    return out


def score(net, encoder, triples, max_words: int = 48) -> np.ndarray:
    """Scores in [0, 1] of (instruction, query, document) triples."""
    prompts = [encoder.prompt(i, q, " ".join(d.split()[:max_words])) for i, q, d in triples]
    return distributions(net, encoder, prompts) @ VALUES / 3


def bm25_scores(queries) -> list[list[float]]:
    """The baseline: BM25 over a set's judged documents (2 x title + text, stemmed)."""
    docs = {d.doc_id: d for q in queries for d in q.docs}
    index = {k: i for i, k in enumerate(docs)}
    bm25 = Bm25([bm25_document(d.title, d.text) for d in docs.values()])
    return [[bm25.score(stems(q.text), index[d.doc_id]) for d in q.docs] for q in queries]


def minilm_scores(args, queries) -> list[np.ndarray]:
    """The other baseline: MiniLM's cosine of the query and the first 40 words (a product: its title)."""
    teacher = Teacher(Path(args.cache))
    texts = [[pairs.taught(q.dataset, d) for d in q.docs] for q in queries]
    teacher.prepare([q.text for q in queries] + [t for found in texts for t in found])
    return [teacher.cosine(q.text, found) for q, found in zip(queries, texts)]


def set_figures(args, encoder, name: str, nets: dict, default: bool = False) -> dict[str, list[float]]:
    """Per query nDCG@10 of the model, each query by its fold's, of BM25 and of MiniLM on one set."""
    queries = data.judged(data.data_dir(args.data), name)
    found = {"ndcg10": [], "bm25": [], "minilm": []}
    for query, lexical, cosine in zip(queries, bm25_scores(queries), minilm_scores(args, queries)):
        if query.fold not in nets or not any(query.gains):
            continue
        instruction = data.DEFAULT if default else data.INSTRUCTIONS[name]
        scores = score(nets[query.fold], encoder, [(instruction, query.text, d.render()) for d in query.docs])
        ids = [d.doc_id for d in query.docs]
        for kind, by in (("ndcg10", scores), ("bm25", lexical), ("minilm", cosine)):
            found[kind].append(metrics.ndcg(by, query.gains, doc_ids=ids))
    return found


def against(sets: dict[str, dict[str, list[float]]]) -> dict:
    """The mean over sets of nDCG@10, and what it is above each baseline with its bootstrap interval."""
    report = {kind: np.mean([np.mean(found[kind]) for found in sets.values()]) for kind in ("ndcg10", "bm25", "minilm")}
    for base in ("bm25", "minilm"):
        pairs_of = {name: (found["ndcg10"], found[base]) for name, found in sets.items()}
        report[f"over_{base}"] = [round(float(x), 4) for x in metrics.bootstrap_macro(pairs_of)]
    return {k: v if isinstance(v, list) else round(float(v), 4) for k, v in report.items()}


def folds(args, encoder) -> dict:
    """Cross-validated nDCG@10 per set and macro, against BM25 and MiniLM."""
    nets, sets, report = fold_models(args), {}, {}
    for name in args.sets.split(","):
        sets[name] = set_figures(args, encoder, name, nets, args.default_instruction)
        report[name] = {"queries": len(sets[name]["ndcg10"]), **against({name: sets[name]})}
        print(name, report[name], flush=True)
    report["macro"] = against(sets)
    print("macro", report["macro"], flush=True)
    return report


def everyday(args, encoder) -> dict:
    """Scores of the everyday examples; how many are ordered right and by what margin."""
    net = load(Path(args.out) / (args.model or "final"))
    rows = [json.loads(line) for line in open(HERE / "everyday.jsonl", encoding="utf-8")]
    kinds, result = ("relevant", "paraphrase", "near", "irrelevant"), []
    for row in rows:
        present = [k for k in kinds if k in row]
        scores = score(net, encoder, [(data.DEFAULT, row["query"], row[k]) for k in present])
        result.append({"field": row["field"], "query": row["query"],
                       **{k: round(float(s), 3) for k, s in zip(present, scores)}})
        print(result[-1], flush=True)
    def margin(a, b):
        return [r[a] - r[b] for r in result if a in r and b in r]
    summary = {"examples": len(result)}
    for a, b in (("relevant", "irrelevant"), ("relevant", "near"), ("paraphrase", "irrelevant"), ("paraphrase", "near")):
        gaps = margin(a, b)
        summary[f"{a}_over_{b}"] = {
            "of": len(gaps), "right": sum(g > 0 for g in gaps), "clear_0.2": sum(g > 0.2 for g in gaps),
            "mean_margin": round(float(np.mean(gaps)), 3), "least_margin": round(float(min(gaps)), 3)}
    print(json.dumps(summary))
    return {"summary": summary, "scores": result}


@torch.no_grad()
def tell(net, encoder, prompt: list[int], grade: int, guard: Guard | None = None, limit: int = 96) -> str:
    """The greedy explanation that follows a grade, as the server decodes it: with the guard, if any."""
    ids = torch.tensor([prompt + [encoder.grades[grade]]])
    out, cache = [], None
    for _ in range(limit):
        step = net(input_ids=ids, past_key_values=cache, use_cache=True)
        token, cache = int(step.logits[0, -1].argmax()), step.past_key_values
        if guard is not None:
            token = guard.take(token)
        if token == encoder.end:
            break
        out.append(token)
        ids = torch.tensor([[token]])
    return encoder.plain.decode(out)


def summary(checks: list[dict]) -> dict:
    """Rates over checked explanations: claims true, form, verdict, and recall of each list."""
    total = lambda part, name: sum(c[part][name] for c in checks)
    claims = sum(c["claims"] for c in checks)
    recall = {name: round(total("listed", name) / max(1, total("due", name)), 4) for name in explain.LISTS}
    rates = {k: round(float(np.mean([c[k] for c in checks])), 4) for k in ("well_formed", "verdict", "whole")}
    all_true = round(float(np.mean([c["true"] == c["claims"] for c in checks])), 4)
    return {"pairs": len(checks), "claims": claims, "claims_true": round(sum(c["true"] for c in checks) / claims, 4),
            "all_true": all_true, **rates, "recall": recall}


def explanations(args, encoder) -> dict:
    """Explanations of held-out pairs, checked: as served, and by the model alone without the rule."""
    rng, report = random.Random(args.seed), {}
    nets = fold_models(args)
    for name in data.SETS:
        queries = [q for q in data.judged(data.data_dir(args.data), name) if q.fold in nets]
        checks = {"served": [], "model_alone": []}
        for query in rng.sample(queries, min(args.count, len(queries))):
            document = rng.choice(query.docs[:3] + rng.sample(query.docs, 1)).render(60)
            net = nets[query.fold]
            prompt = encoder.prompt(data.INSTRUCTIONS[name], query.text, document)
            grade = int(distributions(net, encoder, [prompt])[0].argmax())
            guard = Guard(encoder, query.text, document, grade)
            for kind, rule in (("served", guard), ("model_alone", None)):
                text = tell(net, encoder, prompt, grade, rule)
                checks[kind].append(explain.check(query.text, document, grade, text))
                if len(checks[kind]) <= 2:
                    print(kind, "|", query.text, "|", document[:200], "|", grade, "\n" + text, flush=True)
        report[name] = {kind: summary(found) for kind, found in checks.items()}
        print(name, report[name], flush=True)
    return report


def rerank(args, encoder, depth: int = 50) -> dict:
    """BM25's top of all products re-ranked; unjudged products count as grade 0."""
    items = data.products(data.data_dir(args.data))
    bm25 = Bm25([bm25_document(p["title"], p["text"]) for p in items])
    nets = fold_models(args)
    ours, base = [], []
    for query in (q for q in data.judged(data.data_dir(args.data), "esci") if q.fold in nets):
        grade = {d.doc_id: d.grade / 3 for d in query.docs}
        top = bm25.top(stems(query.text), depth)
        ideal = sorted(grade.values(), reverse=True)
        def measure(order):
            gains = [grade.get(items[i]["doc_id"], 0.0) for i in order[:10]]
            best = sum(g / np.log2(r + 2) for r, g in enumerate(ideal[:10]))
            return sum(g / np.log2(r + 2) for r, g in enumerate(gains)) / best
        text = [(data.INSTRUCTIONS["esci"], query.text, f"{items[i]['title']} {items[i]['text']}") for i in top]
        scores = score(nets[query.fold], encoder, text)
        ours.append(measure([top[i] for i in np.argsort(-scores, kind="stable")]))
        base.append(measure(top))
    diff, low, high = metrics.bootstrap_difference(ours, base)
    report = {"queries": len(ours), "ndcg10_linear": np.mean(ours), "bm25": np.mean(base),
              "difference": diff, "low": low, "high": high}
    report = {k: round(float(v), 4) for k, v in report.items()}
    print("rerank", report)
    return report


def teachers(args, encoder) -> dict:
    """nDCG@10 of the blend, and of a ranker, each query by one that never saw its fold."""
    _, idf = pickle.load(open(Path(args.out) / "generated.pkl", "rb"))
    teacher, report = Teacher(Path(args.cache)), {}
    for name in args.sets.split(","):
        queries = data.judged(data.data_dir(args.data), name)
        found = {"blend": [], "ranker": []}
        for held in args.held.split(","):
            ranker = pairs.ranker_of([q for q in queries if str(q.fold) not in held], teacher, idf)
            for q in (q for q in queries if str(q.fold) in held and any(q.gains)):
                teacher.prepare([q.text, *(pairs.taught(name, d) for d in q.docs)])
                row, ids = pairs.ranked(q, teacher), [d.doc_id for d in q.docs]
                blended = pairs.blend(teacher, idf, name, q.text, row[1], row[1])
                for kind, by in (("blend", blended), ("ranker", ranker.places(*row))):
                    found[kind].append(metrics.ndcg(by, q.gains, doc_ids=ids))
        report[name] = {"queries": len(found["blend"]), **{k: round(float(np.mean(v)), 4) for k, v in found.items()}}
        print(name, report[name], flush=True)
    return report


def main() -> None:
    """Command line; each measurement is kept in RUN/metrics.json under its name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("folds", "everyday", "explain", "rerank", "teachers"))
    parser.add_argument("--out", required=True, help="run directory")
    parser.add_argument("--data", help="data directory (or VERDICT_DATA)")
    parser.add_argument("--cache", default="cache", help="where teacher vectors are kept")
    parser.add_argument("--model", help="one model under RUN for everything, instead of each fold's")
    parser.add_argument("--held", default="1,2,3,4", help="folds held out by each tuned model")
    parser.add_argument("--default-instruction", action="store_true")
    parser.add_argument("--count", type=int, default=100, help="pairs per set for explain")
    parser.add_argument("--key", help="name in metrics.json")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fast", action="store_true", help="compute in bfloat16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sets", default="esci,dbpedia,selqa", help="sets that `folds` and `teachers` measure")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    encoder = Encoder.load(Path(args.out))
    work = {"folds": folds, "everyday": everyday, "explain": explanations, "rerank": rerank, "teachers": teachers}
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=args.fast):
        result = work[args.what](args, encoder)
    file = Path(args.out) / "metrics.json"
    kept = json.loads(file.read_text()) if file.exists() else {}
    kept[args.key or args.what] = result
    file.write_text(json.dumps(kept, indent=1))


if __name__ == "__main__":
    main()
