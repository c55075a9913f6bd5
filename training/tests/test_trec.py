"""`verdict eval` on TREC files agrees with pytrec_eval; skipped where either is not there."""

import json
import random

import pytest

pytrec_eval = pytest.importorskip("pytrec_eval")


@pytest.mark.parametrize("depth", [5, 10])
def test_figures_agree(verdict, tmp_path, depth):
    rng = random.Random(depth)
    qrels, run = {}, {}
    for q in range(60):
        docs = [f"d{rng.randrange(1000)}" for _ in range(30)]
        qrels[f"q{q}"] = {d: rng.choice((0, 0, 1, 2, 3)) for d in docs[:20]}
        run[f"q{q}"] = {d: round(rng.random(), 1) for d in docs[5:]}  # ties, and unjudged documents
    del run["q7"]
    lines = [f"{q} 0 {d} {g}" for q, docs in qrels.items() for d, g in docs.items()]
    (tmp_path / "qrels").write_text("\n".join(lines))
    lines = [f"{q} Q0 {d} 0 {s} x" for q, docs in run.items() for d, s in docs.items()]
    (tmp_path / "run").write_text("\n".join(lines))
    want = pytrec_eval.RelevanceEvaluator(qrels, {f"ndcg_cut.{depth}", "recip_rank"}).evaluate(run)
    done = verdict("eval", "--qrels", tmp_path / "qrels", "--run", tmp_path / "run", "--json", "--depth", depth,
                   "--per-query", tmp_path / "table")
    got = json.loads(done.stdout)["runs"][0]
    assert got["queries"] == len(want) == 59
    for ours, theirs in ((f"ndcg_{depth}", f"ndcg_cut_{depth}"), ("mrr", "recip_rank")):
        mean = sum(row[theirs] for row in want.values()) / len(want)
        assert got[ours] == pytest.approx(mean, abs=1e-6)
    for row in (tmp_path / "table").read_text().splitlines()[1:]:
        _, query, _, ndcg, mrr = row.split("\t")
        assert float(ndcg) == pytest.approx(want[query][f"ndcg_cut_{depth}"], abs=1e-6)
        assert float(mrr) == pytest.approx(want[query]["recip_rank"], abs=1e-6)
