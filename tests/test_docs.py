"""Checks README, CONTRIBUTING and docs: their Python runs, their commands exist, their sentences are short."""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import typer
from lowtide.rewriter.cli.main import app
from test_layout import OLD_WORDS

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
MOST_WORDS = 24  # in a sentence
# Words that names may not have, but that are everyday English in a text.
EVERYDAY = {"told", "found", "one", "way", "ways", "undone", "wanted"}
# A picture of Python by this line: a reader of the README sees it without scrolling.
PYTHON_ENDS_BY = 35


class Block(NamedTuple):
    """A fenced block: its language ("" if none), the number of its first line, and its text."""

    language: str
    line: int
    text: str


def blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page in order."""
    text = page.read_text(encoding="utf-8")
    matches = re.finditer(r"^ *```(\w*)\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)
    return [Block(match[1], text.count("\n", 0, match.start(2)) + 1, match[2]) for match in matches]


def prose(page: Path) -> str:
    """Return a page without fenced blocks."""
    return re.sub(r"^ *```.*?^ *```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def shown(pages: list[Path]) -> list:
    """Return pages as parameters of a test, each shown by its path."""
    return [pytest.param(page, id=page.relative_to(ROOT).as_posix()) for page in pages]


# CONTRIBUTING shows parts of files to write.
WITH_PYTHON = [page for page in PAGES if "python" in {block.language for block in blocks(page)}]
WITH_PYTHON = [page for page in WITH_PYTHON if page.stem != "CONTRIBUTING"]


@pytest.mark.parametrize("page", shown(WITH_PYTHON))
def test_python_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType(f"blocks_of_{page.stem.replace('-', '_')}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    with warnings.catch_warnings():
        for block in blocks(page):
            if block.language == "python":
                lines = "\n" * (block.line - 1) + block.text  # so that tracebacks show the page's lines
                exec(compile(lines, str(page), "exec"), vars(module))


def command_lines(page: Path) -> Iterator[str]:
    """Yield the command lines of lowtide on a page, without the remarks after them."""
    names = "|".join(command.name or command.callback.__name__ for command in app.registered_commands)  # type: ignore
    for block in blocks(page):
        for line in block.text.replace("\\\n", " ").splitlines():
            command = re.search(rf"(?:^|\s|/)(lowtide (?:{names}) \S.*?)(?:\s{{2,}}|$|&&)", line)
            if block.language in ("", "bash") and command is not None:
                yield command[1]
    for span in re.findall(r"`(lowtide [^`]*)`", prose(page)):
        if re.match(rf"lowtide (?:{names}) [a-z]", span):
            yield span


@pytest.mark.parametrize("page", shown([page for page in PAGES if list(command_lines(page))]))
def test_command_lines_parse(page):
    group = typer.main.get_command(app)
    for line in command_lines(page):
        with group.make_context("lowtide", shlex.split(line)[1:]) as context:
            name, command, arguments = group.resolve_command(context, [*context._protected_args, *context.args])
            command.make_context(name, arguments)


def test_many_command_lines_are_seen():
    assert sum(len(list(command_lines(page))) for page in PAGES) > 15


@pytest.mark.parametrize("page", shown(PAGES))
def test_benchmarks_exist(page):
    for name in re.findall(r"\bbenchmarks(?:\.\w+)+", page.read_text(encoding="utf-8")):
        path = ROOT.joinpath(*name.split("."))
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), f"{name} is no module"


@pytest.mark.parametrize("page", shown(PAGES))
def test_links_and_paths_lead_somewhere(page):
    text = prose(page)
    links = re.findall(r"\]\((?!https?:)([^)#\s]+)", text)
    assert not [link for link in links if not (page.parent / link).exists()]
    paths = re.findall(r"(?<!Write )`([\w.-]+/[\w./-]+(?<!NAME)\.(?:py|toml|txt|md))`", text)
    assert not [path for path in paths if not (ROOT / path).exists()]


def sentences(page: Path) -> Iterator[str]:
    """Yield the sentences of a page's prose, without tables, headings and comments. A span of code is one word."""
    text = re.sub(r"<!--.*?-->", "", prose(page), flags=re.DOTALL)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", re.sub(r"`[^`]*`", "CODE", text))
    text = re.sub(r"^(?:#.*|\|.*|::: .*)$", "\n", text, flags=re.MULTILINE)
    text = re.sub(r"^\s*(?:[-*]|\d+\.) ", "\n\n", text, flags=re.MULTILINE)
    for paragraph in re.split(r"\n\s*\n", text):
        yield from re.split(r"(?<=[.!?])[*)\"]*\s+", " ".join(paragraph.split()))


def words(sentence: str) -> list[str]:
    """Return the words of a sentence: signs such as – and = are none."""
    return [word for word in sentence.split() if re.search(r"\w", word)]


@pytest.mark.parametrize("page", shown(PAGES))
def test_sentences_are_short(page):
    too_long = [f"{len(words(s))} words: {s}" for s in sentences(page) if len(words(s)) > MOST_WORDS]
    assert not too_long, "\n".join(too_long)


def test_long_sentences_are_seen(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"Short `a b c d`.\n\n- {'word ' * 30}end. Next.\n\n```\n{'word ' * 40}\n```\n")
    assert [len(words(sentence)) for sentence in sentences(page) if sentence] == [2, 31, 1]


@pytest.mark.parametrize("page", shown(PAGES))
def test_words_are_those_of_the_field(page):
    assert not set(re.findall(r"[a-z]+", page.read_text(encoding="utf-8").lower())) & (OLD_WORDS - EVERYDAY)


def test_readme_shows_python_first_and_marks_its_commands():
    page = ROOT / "README.md"
    first = next(block for block in blocks(page) if block.language == "python")
    assert first.line + first.text.count("\n") <= PYTHON_ENDS_BY
    text = page.read_text(encoding="utf-8")
    for command in ("test", "run"):
        assert re.search(rf"<!-- command: {command} -->\n```bash\n", text)


def test_pictures_are_what_their_script_draws():
    script = ROOT / "docs" / "pictures" / "draw.py"
    spec = importlib.util.spec_from_file_location("draw", script)
    assert spec is not None and spec.loader is not None
    draw = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(draw)
    for name, picture in draw.PICTURES.items():
        assert script.with_name(f"{name}.svg").read_text(encoding="utf-8") == picture().svg(), f"run {script}"
    shown_pictures = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert all(f"pictures/{name}.svg" in shown_pictures for name in draw.PICTURES)
