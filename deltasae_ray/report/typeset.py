"""Plain text into the page's type: verdicts and statements. Everything that comes in is escaped."""

import re
from dataclasses import dataclass

from markupsafe import Markup, escape

from deltasae_ray.report.inputs import VerdictLines


@dataclass(frozen=True)
class TypesetVerdict:
    """One adapter's verdict in the page's type."""

    css: str
    head: str
    """Such as "r16, layer 12: PARTLY VISIBLE"."""
    answers: tuple[tuple[str, Markup], ...]
    """(question, answer)."""


def verdict(lines: VerdictLines) -> TypesetVerdict:
    """Sets the answers of a verdict."""
    answers = tuple(
        (a.question.rstrip(":"), prose(" ".join(map(_sentence, a.sentences)))) for a in lines.answers
    )
    return TypesetVerdict(lines.label.lower().replace(" ", "-"), lines.head, answers)


def _sentence(text: str) -> str:
    """Closed by one full stop, and begun by a capital unless by a name such as r16."""
    text = text.strip().rstrip(".")
    begins = text[:1].upper() + text[1:] if re.match(r"[a-z]+\b(?!\d)", text) else text
    return f"{begins}." if begins else ""


def prose(text: str) -> Markup:
    """**bold** and *italic* kept, real minus signs, and no line break between a number and its percent
    sign."""
    html = str(escape(text))
    html = re.sub(r"(?<![\w.\-])-(?=\d)", "−", html)
    html = re.sub(r"(?<=\d) %", "\u00a0%", html)
    html = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", html)
    return Markup(re.sub(r"(?<!\*)\*([^*]+)\*(?!\*)", r"<em>\1</em>", html))
