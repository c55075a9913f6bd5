"""Judgments: the one JSONL shape of every stage, which `verdict eval` and `calibrate` read as well.

One judged document a line:

| field | |
|---|---|
| `query_id`, `doc_id` | texts or whole numbers; by default the query itself and the line's number |
| `query` | the text asked |
| `title`, `text`, or `document` | the document: `document` is a text or an object of the fields that the profile's document template names |
| `grade` | the name of one of the model's grades, or a number |
| `max_grade` | the best number of the scale that `grade` is on; without it a number is a value of the model's own scale |
| `distribution` | what a teacher says: probability by grade name, or a list in the profile's order; stands for or beside `grade` |
| `explanation` | the text after the grade, or an object of its sections |
| `instruction` | the rubric, if not the profile's |
| `fold` | a whole number to hold out by; without it a hash of `query_id` |
| `weight` | of this line in every loss; 1 by default |

A number between two grades is shared by them in proportion to nearness, as `verdict calibrate` does.
Further fields are ignored. Errors (ValueError) name path, line, field and what is wrong.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path

from recipe.profile import Profile

FOLDS = 5


@dataclass(frozen=True)
class Judgment:
    """One judged document."""

    query_id: str
    doc_id: str
    query: str
    document: str | dict
    target: tuple[float, ...]  # probability of each grade; sums to 1
    explanation: str | None = None
    instruction: str | None = None
    fold: int = 0
    weight: float = 1.0
    value: float | None = None  # the judged grade as a value of the model's scale, where there is one
    grade: int | None = None  # the place of the grade nearest to it
    place: str = field(default="", compare=False)  # path and line that it was read from

    @property
    def best(self) -> int:
        """The place of the judged grade; without one, of the likeliest in the distribution."""
        return self.grade if self.grade is not None else max(range(len(self.target)), key=self.target.__getitem__)


def spread(value: float, values: list[float]) -> tuple[float, ...]:
    """A place on the scale of grade values as probabilities of the two grades beside it."""
    below = max((i for i, v in enumerate(values) if v <= value), key=lambda i: values[i])
    above = min((i for i, v in enumerate(values) if v >= value), key=lambda i: values[i])
    out, gap = [0.0] * len(values), values[above] - values[below]
    out[below] += (values[above] - value) / gap if gap else 1.0
    out[above] += (value - values[below]) / gap if gap else 0.0
    return tuple(out)


def rows(path: str | Path):
    """(line number, object) of a JSONL file, gzipped or not; blank lines are passed over."""
    path, number = Path(path), 0
    with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as lines:
        try:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield number, _row(line)
        except (ValueError, EOFError, gzip.BadGzipFile, zlib.error) as problem:
            cut = not isinstance(problem, ValueError)  # told only after the last line that could be read
            raise ValueError(f"{path}: line {number + cut}: {problem}") from None


def _row(line: bytes) -> dict:
    try:
        row = json.loads(line.decode(), parse_constant=_no_number)
        if b"\\ud" in line.lower():  # a pair of them is a character, half a pair nothing that can be written
            json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("no text: half a surrogate pair is in it") from None
    except UnicodeDecodeError as problem:
        raise ValueError(f"no UTF-8: {problem.reason} at byte {problem.start}") from None
    except RecursionError:
        raise ValueError("no JSON that can be read: it is nested too deeply") from None
    except ValueError as problem:
        raise ValueError(f"no JSON: {problem}") from None
    if not isinstance(row, dict):
        raise ValueError(f"is a {type(row).__name__}, not an object")
    return row


def _no_number(name: str):
    raise ValueError(f"{name} is no number")


def read(paths, profile: Profile, grades: dict[str, str] | None = None, judged: bool = True) -> list[Judgment]:
    """All judgments of some files. `grades` maps grades as the files write them to the profile's names;
    without `judged` a line may have neither grade nor distribution: all grades are then equally likely."""
    found: list[Judgment] = []
    first: dict[str, Judgment] = {}  # of each query
    for file, path in enumerate(map(Path, paths), 1):
        before = len(found)
        for number, row in rows(path):
            name = str(number) if file == 1 else f"{file}-{number}"  # other files have such lines too
            place = f"{path}: line {number}"
            try:
                found.append(parse(row, profile, grades or {}, name, judged, place))
            except ValueError as problem:
                raise ValueError(f"{place}: {problem}") from None
            known = first.setdefault(found[-1].query_id, found[-1])
            if known.query != found[-1].query:
                raise ValueError(f"{place}: query_id {known.query_id!r} is another query's: {known.query!r} in "
                                 f"{known.place}, and here {found[-1].query!r}")
        if len(found) == before:
            raise ValueError(f"{path}: has no judgments")
    return found


def parse(row: dict, profile: Profile, grades: dict[str, str], name: str = "0", judged: bool = True,
          place: str = "") -> Judgment:
    """One line; ValueError naming the field and what is wrong. A document without `doc_id` has that `name`."""
    row = {k: v for k, v in row.items() if v is not None}
    query = _text(row, "query")
    document = row.get("document")
    if document is None:
        document = {k: row[k] for k in ("title", "text") if k in row}
    if not isinstance(document, (str, dict)) or not profile.render_document(document).strip():
        raise ValueError("document: neither it nor title and text have any text")
    query_id = _id(row, "query_id", query)
    fold = row.get("fold", int.from_bytes(hashlib.md5(query_id.encode()).digest()[:4], "big") % FOLDS)
    weight = row.get("weight", 1.0)
    if not isinstance(fold, int) or isinstance(fold, bool):
        raise ValueError(f"fold: {fold!r} is not a whole number")
    if not _is_number(weight) or not 0 <= weight < math.inf:
        raise ValueError(f"weight: {weight!r} is not a number from 0 up")
    target, value = _target(row, profile, grades, judged)
    nearest = None if value is None else min(range(len(target)), key=lambda i: abs(profile.values[i] - value))
    instruction = row.get("instruction")
    if instruction is not None:
        _text(row, "instruction", blank=True)
    return Judgment(query_id, _id(row, "doc_id", name), query, document, target,
                    _explanation(row, profile), instruction, fold, float(weight), value, nearest, place)


def _text(row: dict, field: str, blank: bool = False) -> str:
    value = row.get(field)
    if not isinstance(value, str) or not (blank or value.strip()):
        raise ValueError(f"{field}: {value!r} is not a text" + ("" if blank else " with something in it"))
    return value


def _id(row: dict, field: str, default: str) -> str:
    value = row.get(field, default)
    if not isinstance(value, (str, int)) or isinstance(value, bool):
        raise ValueError(f"{field}: {value!r} is neither a text nor a whole number")
    return str(value)


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _target(row: dict, profile: Profile, grades, judged: bool) -> tuple[tuple[float, ...], float | None]:
    """The distribution to learn, and the judged value if there is one."""
    value = None if row.get("grade") is None else _value(row["grade"], row.get("max_grade"), profile, grades)
    if row.get("distribution") is not None:
        return _distribution(row["distribution"], profile), value
    if value is None and not judged:
        return (1 / len(profile.grades),) * len(profile.grades), None
    if value is None:
        raise ValueError("grade: missing, and so is distribution; one of them is needed")
    return spread(value, profile.values), value


def _value(grade, most, profile: Profile, grades: dict[str, str]) -> float:
    """A grade as a value of the model's scale. `grades` names what is a name or a bare number: a number
    with a scale of its own says by itself what it is worth."""
    if isinstance(grade, str) or most is None:
        key = f"{grade:g}" if isinstance(grade, float) else str(grade)
        grade = grades.get(key, grade)
    if isinstance(grade, str):
        return profile.values[profile.place(grade)]
    if not _is_number(grade):
        raise ValueError(f"grade: {grade!r} is neither a name nor a number")
    low, high = min(profile.values), max(profile.values)
    if most is not None:
        if not _is_number(most) or not 0 <= grade <= most or not 0 < most < math.inf:
            raise ValueError(f"grade {grade} is not in 0 to max_grade {most}")
        return low + grade / most * (high - low)
    if not low <= grade <= high:
        raise ValueError(f"grade {grade} is not in the model's {low} to {high}; say max_grade if the scale is another")
    return float(grade)


def _distribution(given, profile: Profile) -> tuple[float, ...]:
    names = [g.name for g in profile.grades]
    if isinstance(given, dict):
        unknown = set(given) - set(names)
        if unknown:
            raise ValueError(f"distribution: {sorted(unknown)} are none of the model's grades {names}")
        given = [given.get(n, 0.0) for n in names]
    if not isinstance(given, list) or len(given) != len(names):
        raise ValueError(f"distribution: {given!r} does not have one probability for each of the grades {names}")
    if not all(_is_number(p) and p >= 0 for p in given) or abs(sum(given) - 1) > 1e-2:
        raise ValueError(f"distribution: {given!r} are not probabilities that add up to 1")
    return tuple(p / sum(given) for p in given)


def _explanation(row: dict, profile: Profile) -> str | None:
    given = row.get("explanation")
    if given is None or isinstance(given, str):
        return given
    if not isinstance(given, dict) or list(given) != profile.sections:
        raise ValueError(f"explanation: neither a text nor an object of the sections {profile.sections}")
    return "\n".join(f"{name}: {text}" for name, text in given.items())


def explained(found: list[Judgment], profile: Profile) -> list[Judgment]:
    """Each judgment with an explanation: its own, or the one that the profile's rule writes.

    ValueError if one has none and the profile has no rule."""
    if profile.rule is None and any(j.explanation is None for j in found):
        raise ValueError(f"{profile.origin}: has no [explain.grounding] to write explanations by")
    return [j if j.explanation is not None else replace(j, explanation=profile.rule.write(
        j.query, profile.render_document(j.document), j.best)) for j in found]


def to_row(judgment: Judgment, profile: Profile) -> dict:
    """A judgment as a line that every stage reads, and if it has a grade `verdict eval` and `calibrate` too."""
    low, high, document = min(profile.values), max(profile.values), judgment.document
    flat = isinstance(document, dict) and set(document) <= {"title", "text"} and all(
        isinstance(v, str) for v in document.values())
    shown = document if flat else {"document": document}
    row = {"query_id": judgment.query_id, "query": judgment.query, "doc_id": judgment.doc_id, **shown,
           "fold": judgment.fold}
    if judgment.value is not None:  # a teacher's guess is no grade, and `verdict eval` asks for one
        row |= {"grade": judgment.value - low, "max_grade": high - low}
    if judgment.value is None or judgment.target != spread(judgment.value, profile.values):
        row["distribution"] = {g.name: round(p, 6) for g, p in zip(profile.grades, judgment.target)}
    for field in ("explanation", "instruction"):
        if getattr(judgment, field) is not None:
            row[field] = getattr(judgment, field)
    if judgment.weight != 1:
        row["weight"] = judgment.weight
    return row


def write(path: str | Path, found: list[Judgment], profile: Profile) -> None:
    """Writes judgments as JSONL, with the directories to it."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(to_row(j, profile), ensure_ascii=False) + "\n" for j in found)
