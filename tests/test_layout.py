"""Checks the layout of the source: which folders may import which, what they may hold, and how files begin."""

import ast
import graphlib
import re
import statistics
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAY_IMPORT = {
    "": {"rewriter", "passes", "solvers", "kernels"},
    "rewriter": {"rewriter", "passes", "solvers", "kernels", "storage", "configs"},
    "passes": {"passes", "solvers", "kernels"},
    "solvers": {"solvers", "storage"},
    "kernels": {"kernels", "storage"},
    "storage": {"storage"},
    "configs": set(),
}
# The subfolders of a folder, lowest first: each may import those before it.
SUBFOLDER_ORDER = {
    "rewriter": "text capture emit noise measure plan run verify display models cli",
    "rewriter/capture": "boundary call watch operands foreign eager",
    "passes": "encodings rewrites",
    "solvers": "problem blocks integer chain candidates encoding",
    "kernels": "backend packing few_bit quantize rows eager exact_codes loss pooling",
}
MOST_FILES, MOST_NAMES = 16, 20  # in a folder: Python files, and all names including subfolders
MOST_LINES, MOST_FUNCTION_LINES, MOST_MEDIAN_LINES = 350, 60, 8  # of a file, of a function, and of half the functions
LEAST_ANNOTATED, LEAST_DOCUMENTED = 0.97, 0.99  # shares of the package's parameters and results, and of public names
MAY_USE_PRIVATE_TORCH = "rewriter/capture/torch_internals.py"
# Operators are schema, not API; the type of an operator has no public name.
PUBLIC_IN_EFFECT = ("torch.ops.", "torch._ops")
MAY_NOT_BE_CALLED = {"utils", "util", "common", "core", "base", "helpers", "misc"}


def package_files(folder: str | None = None) -> list[Path]:
    """Return the Python files of one folder of the package, or of all."""
    folders = MAY_IMPORT if folder is None else [folder]
    return sorted(file for name in folders for file in (ROOT / name).glob("*.py" if not name else "**/*.py"))


def all_files() -> list[Path]:
    """Return the Python files of package, tests and benchmarks."""
    return package_files() + sorted(file for name in ("tests", "benchmarks") for file in (ROOT / name).rglob("*.py"))


def named(files: list[Path]) -> list:
    """Return the files as parameters of a test, each shown by its path."""
    return [pytest.param(file, id=file.relative_to(ROOT).as_posix()) for file in files]


def imported(file: Path) -> Iterator[tuple[int, str]]:
    """Yield (number of leading dots, dotted name) of everything that a file imports."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.level, f"{node.module or ''}.{alias.name}".lstrip(".")) for alias in node.names)


@pytest.mark.parametrize("file", named(package_files()))
def test_imports_go_one_way(file):
    parts = file.relative_to(ROOT).parts[:-1]
    home = parts[0] if parts else ""
    for dots, name in imported(file):
        assert name.split(".")[0] != "lowtide" or dots, f"{name}: inside the package imports are relative"
        if not dots:
            continue
        target = (*parts[: len(parts) - dots + 1], *name.split("."))
        assert dots <= len(parts) + 1 and target[0] in MAY_IMPORT[home], (
            f"{home or 'root'} may not import {'.'.join(target)}"
        )


def targets_of(file: Path) -> set[tuple[str, ...]]:
    """Return the modules of the package that a file imports, each by the parts of its path without the ending."""
    parts = file.relative_to(ROOT).parts[:-1]
    targets = set()
    for dots, name in imported(file):
        target = (*parts[: len(parts) - dots + 1], *name.split("."))
        while dots and len(target) > 1 and not (ROOT.joinpath(*target[:-1]) / f"{target[-1]}.py").is_file():
            target = target[:-1]
        if dots:
            targets.add(target)
    return targets


def children_graph(folder: str) -> dict[str, set[str]]:
    """Return for each file and subfolder of a folder the others that it imports."""
    within = tuple(Path(folder).parts)
    graph: dict[str, set[str]] = {}
    for file in sorted((ROOT / folder).rglob("*.py")):
        own = (*file.relative_to(ROOT).parts[:-1], file.stem)[len(within)]
        others = {target[len(within)] for target in targets_of(file) if target[: len(within)] == within != target}
        graph.setdefault(own, set()).update(others - {own})
    return graph


FOLDERS = sorted({file.parent.relative_to(ROOT).as_posix() for file in package_files() if file.parent != ROOT})


@pytest.mark.parametrize("folder", FOLDERS)
def test_nothing_imports_in_a_circle(folder):
    graphlib.TopologicalSorter(children_graph(folder)).prepare()


@pytest.mark.parametrize("folder", SUBFOLDER_ORDER)
def test_subfolders_import_only_lower_ones(folder):
    subfolders, graph = SUBFOLDER_ORDER[folder].split(), children_graph(folder)
    assert set(subfolders) == {inner.name for inner in (ROOT / folder).iterdir() if any(inner.glob("*.py"))}
    for place, subfolder in enumerate(subfolders):
        assert not graph[subfolder] & set(subfolders[place + 1 :]), (
            f"{folder}/{subfolder} may not import what lies above it"
        )


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_can_be_taken_in_at_a_glance(folder):
    names = [path for path in (ROOT / folder).iterdir() if path.suffix == ".py" or any(path.rglob("*.py"))]
    files = [path for path in names if path.suffix == ".py" and path.stem != "__init__"]
    assert len(files) <= MOST_FILES and len(names) <= MOST_NAMES


Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions_of(file: Path) -> list[Function]:
    """Return all functions of a file, methods and inner functions included."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, Function)]


def length_of(function: Function) -> int:
    """Return the lines of a function, from `def` to its last."""
    return (function.end_lineno or 0) - function.lineno + 1


@pytest.mark.parametrize("file", named(all_files()))
def test_files_are_short(file):
    lines = len(file.read_text(encoding="utf-8").splitlines())
    assert lines <= MOST_LINES, f"{lines} lines: split the file by what belongs together"


@pytest.mark.parametrize("file", named([*package_files(), *sorted((ROOT / "benchmarks").rglob("*.py"))]))
def test_functions_are_short(file):
    long = {function.name: length_of(function) for function in functions_of(file)}
    assert not {name: length for name, length in long.items() if length > MOST_FUNCTION_LINES}


def test_most_functions_are_very_short():
    lengths = [length_of(function) for file in package_files() for function in functions_of(file)]
    assert statistics.median(lengths) <= MOST_MEDIAN_LINES


def annotations_of(function: Function) -> list[ast.expr | None]:
    """Return the annotation of each parameter, and of the result; None where there is none."""
    lists = function.args
    parameters = [*lists.posonlyargs, *lists.args, *lists.kwonlyargs, *filter(None, (lists.vararg, lists.kwarg))]
    return [p.annotation for p in parameters if p.arg not in ("self", "cls")] + [function.returns]


def test_parameters_and_results_are_annotated():
    # Functions in Triton take no annotations but `tl.constexpr`.
    files = [file for file in package_files() if not file.stem.endswith("_triton")]
    annotations = [a for file in files for function in functions_of(file) for a in annotations_of(function)]
    assert sum(a is not None for a in annotations) >= LEAST_ANNOTATED * len(annotations)


def public_definitions(tree: ast.Module | ast.ClassDef) -> Iterator[Function | ast.ClassDef]:
    """Yield the classes and functions without an underscore, and likewise the methods of such classes."""
    for node in tree.body:
        if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from public_definitions(node)


def test_public_names_have_docstrings():
    trees = [(file, ast.parse(file.read_text(encoding="utf-8"))) for file in package_files()]
    public = [(file.stem, node) for file, tree in trees for node in public_definitions(tree)]
    missing = [f"{stem}.{node.name}" for stem, node in public if ast.get_docstring(node) is None]
    assert len(missing) <= (1 - LEAST_DOCUMENTED) * len(public), missing


@pytest.mark.parametrize("file", named(package_files("solvers") + package_files("storage")))
def test_solvers_know_no_torch(file):
    assert not {name.split(".")[0] for dots, name in imported(file) if not dots} & {"torch", "transformers"}


def private_torch(file: Path) -> list[str]:
    """Return names below `torch` with a part that starts with an underscore."""
    names = [name for dots, name in imported(file) if not dots and name.startswith("torch.")]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and ast.unparse(node).startswith("torch."):
            names.append(ast.unparse(node))
    return [
        name
        for name in names
        if not name.startswith(PUBLIC_IN_EFFECT)
        and any(part.startswith("_") and not part.endswith("__") for part in name.split("."))
    ]


@pytest.mark.parametrize("file", named(package_files()))
def test_private_torch_is_called_in_one_place_only(file):
    if file.relative_to(ROOT).as_posix() != MAY_USE_PRIVATE_TORCH:
        assert private_torch(file) == []


@pytest.mark.parametrize("file", named(all_files()))
def test_every_file_opens_with_one_sentence_saying_what_it_is_for(file):
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    opening = docstring.split("\n\n")[0]
    assert opening.endswith(".") and len(opening) < 250


@pytest.mark.parametrize("file", named(all_files()))
def test_every_name_says_what_is_inside(file):
    assert not MAY_NOT_BE_CALLED & {file.stem, *file.relative_to(ROOT).parts[:-1]}


def test_the_root_holds_no_stray_module():
    assert {file.name for file in ROOT.glob("*.py")} == {"__init__.py", "__main__.py"}


def test_configurations_are_data_only():
    assert [file.name for file in (ROOT / "configs").rglob("*.py")] == ["__init__.py"]


def test_kernels_has_no_init_file():
    # Run from the root it would hide the package `kernels` that transformers imports.
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_every_folder_of_the_package_is_shipped():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    shipped = set(settings["tool"]["setuptools"]["packages"])
    folders = {file.parent.relative_to(ROOT) for file in package_files()}
    assert shipped == {".".join(("lowtide", *folder.parts)) for folder in folders}


def test_every_package_that_is_asked_for_is_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    requirements = [project["dependencies"], *project["optional-dependencies"].values()]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {line.partition("==")[0].lower() for line in lines if "==" in line}
    assert {re.split(r"[<>=!~;\s]", name)[0].lower() for names in requirements for name in names} <= pinned


def printed(program: str) -> str:
    """Return what a Python program prints when it runs from the repository's root."""
    completed = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert completed.returncode == 0, completed.stderr
    return completed.stdout.strip()


def test_importing_lowtide_imports_no_torch():
    # By location, so that it holds for a checkout that is not installed too.
    load = "spec = u.spec_from_file_location('lowtide', '__init__.py', submodule_search_locations=['.'])"
    run = "module = u.module_from_spec(spec); spec.loader.exec_module(module)"
    program = f"import importlib.util as u, sys; {load}; {run}; print(module.__version__, 'torch' in sys.modules)"
    assert printed(program).split()[1] == "False"


def test_transformers_can_be_used_from_the_root():
    assert printed("from transformers import GPT2LMHeadModel; print(GPT2LMHeadModel.__name__)") == "GPT2LMHeadModel"


# Names that say nothing, or what only this project once said; `docs/glossary.md` has the words that took their place.
OLD_WORDS = {
    *("told", "found", "one", "way", "ways", "rung", "rungs", "ladder", "bench", "gentler", "remade", "beside"),
    *("foretold", "posed", "twin", "recoding", "undone", "strays", "fate", "wanted"),
}


@pytest.mark.parametrize("file", named(all_files()))
def test_names_are_words_of_the_field(file):
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        for field in ("id", "arg", "attr", "name"):
            names.add(str(getattr(node, field, "")).strip("_"))
    assert not names & OLD_WORDS
