"""Walks the imports and holds the floors of the house: no arrow upwards, and each heavy library in its own
room only."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "deltasae_ray"
FLOORS = (
    {
        "sae",
        "metrics",
        "gate",
        "batches",
        "hookpoints",
        "errors",
        "fingerprints",
        "storage",
        "cli",
        "cli_values",
        "json_objects",
        "paths",
        "redaction",
        "credentials",
        "yaml_core",
        "logs",
        "heartbeat",
        "progress",
    },
    {"corpus", "models", "shards", "tracking", "stalls", "gauges"},
    {"runtime"},
    {"adapt", "harvest", "fit", "elicit"},
    {"analyses"},
    {"report"},
    {"study"},
    {"arena"},
    {"command"},
)
ONLY_IN = {  # a room or a file
    "deepspeed": {"models/zero3.py"},
    "mlflow": {"tracking"},
    "sae_lens": {"sae/saelens.py"},
}
HEAVY = {"ray", "mlflow", "deepspeed", "transformers"}
"""Never on the lowest floor, and never in a file of figures."""
PURE = {"analyses/verdict.py", "analyses/controls.py"}
"""Files above the lowest floor that figures read, or that read nothing but figures."""
FORBIDDEN_NAMES = {"utils", "helpers", "common", "misc"}
FILES = sorted(
    p.relative_to(PACKAGE) for p in PACKAGE.rglob("*.py") if p.name != "__init__.py" or p.parent != PACKAGE
)


def room(path: Path) -> str:
    return path.parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse((PACKAGE / path).read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def floor_of(name: str) -> int:
    return next(i for i, names in enumerate(FLOORS) if name in names)


def is_pure(path: Path) -> bool:
    """Whether a file may know neither Ray, MLflow, DeepSpeed nor transformers: the lowest floor, and figures
    of any analysis."""
    return room(path) in FLOORS[0] or path.stem.endswith("figures") or str(path) in PURE


@pytest.mark.parametrize("path", FILES, ids=str)
def test_no_import_points_upwards_or_sideways_between_rooms(path: Path) -> None:
    here = room(path)
    for module in imports(path):
        if not module.startswith("deltasae_ray."):
            continue
        other = module.split(".")[1]
        if other == here or module.endswith(
            ".config"
        ):  # a room's config is plain data that the root config gathers
            continue
        assert floor_of(other) <= floor_of(here), f"{path} imports {module}, a floor above it"
        if floor_of(other) == floor_of(here) > 1:
            raise AssertionError(f"{path} imports {module}: rooms of one floor meet only below")


@pytest.mark.parametrize("path", FILES, ids=str)
def test_heavy_libraries_stay_in_their_rooms(path: Path) -> None:
    modules = imports(path)
    roots = {module.split(".")[0] for module in modules}
    for library, homes in ONLY_IN.items():
        assert library not in roots or {str(path), room(path)} & homes, (
            f"{path} imports {library}, whose only home is {homes}"
        )
    if is_pure(path):
        assert not roots & HEAVY, f"{path} is pure, and imports {roots & HEAVY}"
        ours = {Path(*m.split(".")[1:]) for m in modules if m.startswith("deltasae_ray.")}
        impure = {str(m) for m in ours if not is_pure(m.with_suffix(".py")) and not _is_pure_package(m)}
        assert not impure, f"{path} is pure, and imports {impure}, which need not be"


def _is_pure_package(module: Path) -> bool:
    return (PACKAGE / module).is_dir() and module.parts[0] in FLOORS[0]


LONGEST_FILE, LONGEST_FUNCTION = 300, 60
LONG_FILES: dict[str, str] = {}
LONG_FUNCTIONS: dict[str, str] = {}
"""What is longer, with the reason."""


@pytest.mark.parametrize("path", FILES, ids=str)
def test_files_and_functions_are_short(path: Path) -> None:
    text = (PACKAGE / path).read_text()
    lines = text.count("\n")
    assert (lines > LONGEST_FILE) == (str(path) in LONG_FILES), f"{path} has {lines} lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno:
            length, name = node.end_lineno - node.lineno + 1, f"{path} {node.name}"
            assert (length > LONGEST_FUNCTION) == (name in LONG_FUNCTIONS), f"{name} has {length} lines"


NO_NAMES = {"told", "found", "said", "made"}
"""Words that say that there is a value and not which: no identifier of the package is one of them."""


@pytest.mark.parametrize("path", FILES, ids=str)
def test_names_say_what_a_value_is(path: Path) -> None:
    names = set()
    for node in ast.walk(ast.parse((PACKAGE / path).read_text())):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.arg(arg=name):
                names.add(name)
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                names.add(name)
    assert not {name for name in names if name.strip("_").lower() in NO_NAMES}


def distribution(requirement: str) -> str:
    return re.split(r"[^\w-]", requirement)[0].lower().replace("_", "-")


def test_what_the_package_imports_is_declared_once() -> None:
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    named = [distribution(line) for line in project["dependencies"]]
    assert len(named) == len(set(named)), "a dependency stands twice"
    extra = {distribution(line) for lines in project["optional-dependencies"].values() for line in lines}
    modules = {module.split(".")[0] for path in FILES for module in imports(path)} - sys.stdlib_module_names
    distributions = packages_distributions()
    for module in modules - {"deltasae_ray"}:
        makers = {distribution(name) for name in distributions.get(module, [module])}
        assert makers & (set(named) | extra), f"{module} of {makers} is imported and not declared"


def test_every_room_has_a_floor_and_no_room_is_a_drawer() -> None:
    for path in FILES:
        floor_of(room(path))
        assert not FORBIDDEN_NAMES & {part.removesuffix(".py") for part in path.parts}
