"""Pages of the documentation that are made from the code: `python -m deltasae_ray.command.reference docs`."""

import ast
import dataclasses
import inspect
import re
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import deltasae_ray
from deltasae_ray import errors
from deltasae_ray.command import tutorials
from deltasae_ray.command.main import HELPERS
from deltasae_ray.report.glossary import OF_CARDS
from deltasae_ray.report.wording import TERMS
from deltasae_ray.study.config import StudyConfig
from deltasae_ray.study.main import JOBS

PACKAGE = Path(__file__).parents[1]


def pages() -> dict[str, str]:
    """File name → content of every generated page."""
    return {
        "api.md": _api(),
        "command.md": _command(),
        "configuration.md": _configuration(),
        "errors.md": _errors(),
        "glossary.md": _glossary(),
        "index.md": _home(),
        **tutorials.pages(PACKAGE.parent / "docs" / "tutorials"),
    }


def _home() -> str:
    """The README, with links as they are from within docs/."""
    text = (PACKAGE.parent / "README.md").read_text(encoding="utf-8").replace("](docs/", "](")
    text = re.sub(r"\]\(tutorials/(\w+)\.py\)", lambda m: f"](tutorial-{m[1].replace('_', '-')}.md)", text)
    return re.sub(r" · \[[^\]]*\]\((?:CONTRIBUTING|CHANGELOG)\.md\)", "", text).replace(" ·\n", "\n")


def _command() -> str:
    rows = "\n".join(f"| `deltasae {name}` | {what} |" for name, what in (JOBS | HELPERS).items())
    return (
        "# The command\n\n`pip install` gives the command `deltasae`. Words are `key=value`; later words win.\n"
        "`config=NAME` reads a configuration that comes with the package, `config=FILE.yaml` one of yours.\n\n"
        f"| command | does |\n|---|---|\n{rows}\n\n"
        "`deltasae sweep` and the other stages print a plan first; `dry_run=true` stops there. A command ends\n"
        "with 0, with 2 after an error that names its remedy, with 130 after Ctrl-C, and with 1 after a bug.\n"
    )


def _configuration() -> str:
    head = "# Options, with defaults\n\n[When to set which](options.md).\n"
    sections = [_section(StudyConfig, "")]
    for field in dataclasses.fields(StudyConfig):
        kind = typing.get_type_hints(StudyConfig)[field.name]
        if dataclasses.is_dataclass(kind):
            sections.append(_section(kind, f"{field.name}."))
    return "\n".join([head, *sections])


def _section(cls: Any, prefix: str) -> str:
    """The options of one dataclass that are no sections themselves."""
    words = dict(_attribute_docs(cls))
    hints = typing.get_type_hints(cls)
    rows = [
        f"| `{prefix}{f.name}` | `{_default(f)}` | {words.get(f.name, '')} |"
        for f in dataclasses.fields(cls)
        if not dataclasses.is_dataclass(hints[f.name])
    ]
    title = f"## {prefix.rstrip('.') or 'The study'}\n\n{_one_line(inspect.getdoc(cls) or '')}\n"
    return f"{title}\n| option | default | meaning |\n|---|---|---|\n" + "\n".join(rows) + "\n"


def _default(field: dataclasses.Field) -> str:
    """The default as a configuration writes it."""
    value = field.default
    if value is dataclasses.MISSING:
        value = field.default_factory() if field.default_factory is not dataclasses.MISSING else ""
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(str, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value) if value != "" else '""'


def _attribute_docs(cls: Any) -> Iterator[tuple[str, str]]:
    """Field → the text below it in the source."""
    (tree,) = ast.parse(inspect.cleandoc(inspect.getsource(cls))).body
    assert isinstance(tree, ast.ClassDef)
    for statement, below in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            match below:
                case ast.Expr(value=ast.Constant(value=str(text))):
                    yield statement.target.id, _one_line(text).replace("|", "\\|")


def _errors() -> str:
    """Every error, and all messages it is raised with, in which the remedy stands."""
    kinds = {
        name: kind
        for name, kind in vars(errors).items()
        if inspect.isclass(kind)
        and issubclass(kind, errors.DeltaSaeError)
        and kind is not errors.DeltaSaeError
    }
    messages: dict[str, set[str]] = {name: set() for name in kinds}
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in kinds:
                messages[node.func.id] |= {_message(node)} - {""}
    parts = [
        "# Errors\n\nEvery error that the package raises on purpose derives from `DeltaSaeError` and ends a\n"
        "command with exit code 2. Its message names what is wrong and the remedy; `…` stands for the values.\n"
    ]
    for name, kind in kinds.items():
        standard = kind.__mro__[2].__name__
        lines = "\n".join(f"- {message}" for message in sorted(messages[name]))
        parts.append(f"## {name}\n\n{_one_line(kind.__doc__ or '')} Also a `{standard}`.\n\n{lines}\n")
    return "\n".join(parts)


WORDS = {
    "LoRA adapter": "A small set of weights that changes how a model behaves, beside the model's own.",
    "Base model": "The model without its adapter.",
    "Residual stream": "The running sum that the layers of a transformer read and write.",
    "Delta": "What an adapter adds to the residual stream at a layer: adapted activations minus those of the base.",
    "Dictionary (SAE)": "A sparse autoencoder: directions, few of which sum up to an activation.",
    "Latent": "One direction of a dictionary.",
    "Reference": "The dictionary of the base model that deltas are held against.",
    "Control": "The same measurement where the answer is known: a random adapter, a second base dictionary.",
    "Gang": "Processes that share one model for forward passes.",
    "Verdict": (
        "What is said of an adapter: VISIBLE, PARTLY VISIBLE, NOT VISIBLE, INCONCLUSIVE (the data do not tell), or NO"
        " EFFECT (no change of the model is shown)."
    ),
}
"""Words of the documentation that the page of a study does not explain."""


def _glossary() -> str:
    """Words in the order of the alphabet: those above, and what the page of a study explains."""
    terms = WORDS | dict(OF_CARDS.values()) | TERMS
    lines = [f"**{word[:1].upper() + word[1:]}**: {text}" for word, text in terms.items()]
    body = "\n\n".join(sorted(lines, key=str.lower)).replace("{reference}", "reference")
    return f"# Glossary\n\nMetrics have [a page of their own](metrics.md).\n\n{body}\n"


def _message(call: ast.Call) -> str:
    """The text of an error's first argument, values left out; empty where it is made elsewhere."""
    match call.args[:1]:
        case [ast.Constant(value=str(text))]:
            shown = text
        case [ast.JoinedStr(values=values)]:
            shown = "".join(str(v.value) if isinstance(v, ast.Constant) else "…" for v in values)
        case _:
            return ""
    plain = _one_line(shown)
    return "".join(f"\\{c}" if c in "<*_[`" else c for c in plain) if len(plain.split()) > 3 else ""


def _api() -> str:
    homes = deltasae_ray._HOMES  # noqa: SLF001 - of our own package
    entries = [
        f"::: deltasae_ray.{home}.{name}" for name, home in homes.items() if name in deltasae_ray.__all__
    ]
    return (
        "# Python\n\n`import deltasae_ray as ds` has these names. [Examples](library.md).\n\n"
        + "\n\n".join([*entries, ""])
    )


def _one_line(text: str) -> str:
    return " ".join(text.split())


if __name__ == "__main__":
    for file_name, content in pages().items():
        (Path(sys.argv[1]) / file_name).write_text(content, encoding="utf-8")
