"""How a document with fields becomes text: the rule of `src/profile/document.rs`."""

from __future__ import annotations

import json
import re

PIECE = re.compile(r"\{\{|\}\}|\{([^{}]+)\}|[{}]")


class DocumentTemplate:
    """A template such as `{title}\\n{text}`. A field that is absent or blank leaves nothing, nor the
    white space on one of its sides; a line all of whose fields are so is left out."""

    def __init__(self, template: str):
        self.lines = [self._line(line) for line in template.split("\n")]
        if not any(field for line in self.lines for field, _ in line):
            raise ValueError(f"prompt.document: {template!r} names no field, such as {{text}}")

    @staticmethod
    def _line(line: str) -> list[tuple[bool, str]]:
        parts, literal, at = [], "", 0
        for match in PIECE.finditer(line):
            literal += line[at : match.start()]
            at = match.end()
            if match.group() in ("{{", "}}"):
                literal += match.group()[0]
            elif match.group(1) is None:
                raise ValueError(f"prompt.document: {line!r} has a lone brace; write {{{{ or }}}}")
            else:
                parts += [(False, literal)] if literal else []
                parts.append((True, match.group(1)))
                literal = ""
        literal += line[at:]
        return parts + ([(False, literal)] if literal else [])

    def render(self, fields: dict) -> str:
        """The text of a document's fields."""
        lines = (self._render(line, fields) for line in self.lines)
        return "\n".join(line for line in lines if line is not None).strip()

    @staticmethod
    def _render(parts, fields: dict) -> str | None:
        line, named, found, gap = "", False, False, False
        for is_field, text in parts:
            if is_field:
                value = _text(fields.get(text)).strip()
                named, found, gap = True, found or bool(value), not value
                line += value
            else:
                doubled = gap and (not line or line[-1].isspace())
                line += text.lstrip() if doubled else text
                gap = False
        return line.rstrip() if found or not named else None


def _text(value) -> str:
    """A value as a reader would write it; lists are joined by commas."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return ", ".join(t for t in map(_text, value) if t)
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
