"""The tutorials, which are marimo notebooks, as pages of the site."""

import ast
import inspect
import textwrap
from pathlib import Path

HEAD = "A notebook, [`{name}`](tutorials/{name}): `marimo edit docs/tutorials/{name}` opens it.\n\n"


def pages(folder: Path) -> dict[str, str]:
    """File name → content of the page of every notebook."""
    return {
        f"tutorial-{file.stem.replace('_', '-')}.md": page(file.read_text(encoding="utf-8"), file.name)
        for file in sorted(folder.glob("*.py"))
    }


def page(source: str, name: str) -> str:
    """The cells of a notebook in their order: its text as text, its code as code."""
    functions = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
    cells = [cell for node in functions if (cell := _cell(source, node))]
    title, _, rest = cells[0].partition("\n\n")
    return f"{title}\n\n{HEAD.format(name=name)}{rest}\n\n" + "\n\n".join(cells[1:]) + "\n"


def _cell(source: str, node: ast.FunctionDef) -> str:
    """One cell: what it passes to `mo.md`, else its statements but imports of marimo and the return."""
    for statement in node.body:
        call = statement.value if isinstance(statement, ast.Expr) else None
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "mo.md":
            return inspect.cleandoc(ast.literal_eval(call.args[0]))
    shown = [s for s in node.body if not isinstance(s, ast.Return)]
    if not shown:
        return ""
    lines = source.splitlines()[shown[0].lineno - 1 : shown[-1].end_lineno]
    return f"```python\n{textwrap.dedent(chr(10).join(lines))}\n```"
