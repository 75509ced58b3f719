"""Plain text into the page's type: verdicts, statements, and windows of tokens. Everything that comes in is
escaped."""

import re
from dataclasses import dataclass

from markupsafe import Markup, escape

from deltasae_ray.report.contexts import Context
from deltasae_ray.report.inputs import VerdictLines
from deltasae_ray.report.wording import figure


@dataclass(frozen=True)
class TypesetVerdict:
    """One adapter's verdict in the page's type."""

    css: str
    head: str
    """Such as "r16, layer 12: PARTLY VISIBLE"."""
    answers: tuple[tuple[str, Markup], ...]
    """(question, answer)."""


def verdict(found: VerdictLines) -> TypesetVerdict:
    """Sets the answers of a verdict."""
    answers = tuple(
        (a.question.rstrip(":"), prose(" ".join(map(_sentence, a.sentences)))) for a in found.answers
    )
    return TypesetVerdict(found.label.lower().replace(" ", "-"), found.head, answers)


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


def tokens(context: Context, peak: float) -> Markup:
    """The window's text; a token is shaded by its activation, the centre is bold, the planted marker is
    underlined."""
    parts = []
    for i, (token, value, marker) in enumerate(
        zip(context.tokens, context.activations, context.marker, strict=True)
    ):
        # The space before a word is left unshaded: at the end of a line it would stand alone as a stripe.
        space, word = token[: len(token) - len(token.lstrip(" "))], token.lstrip(" ")
        level = (
            min(9, round(9 * value / peak)) if peak > 0 else 0
        )  # under a twentieth of the peak it is left unshaded
        css = " ".join(filter(None, (f"a{level}" if level else "", "c" if i == context.center else "")))
        html = escape(word.replace("\r", "").replace("\n", "↵ ") or ("␣" if css else ""))
        html = Markup('<b class="{}" title="{}">{}</b>').format(css, figure(value), html) if css else html
        html = escape(space if i else "") + html
        parts.append(Markup("<u>{}</u>").format(html) if marker else html)
    return Markup().join(parts)
