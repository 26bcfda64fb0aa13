"""Identifiers, comments and literals of anything: valid Python that means what it was made of."""

import ast
import io
import keyword
import math
import struct
import tokenize
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lowtide.rewriter.emit.bound_names import BoundNames, named_argument
from lowtide.rewriter.text.source_text import comment, identifier, is_reserved, literal

_ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=200)


@pytest.mark.parametrize(
    "text, name",
    [
        ("zip code", "zip_code"),
        ("fr-en", "fr_en"),
        ("w²", "w2"),
        ("\ufb01x", "fix"),
        ("größe", "gro_e"),
        ("3", "value_3"),
        ("", "value"),
        ("温度", "value"),
        ("__class__", "class_"),
        ("values", "values_"),
        ("constant_1", "constant_1_"),
        ("constant", "constant_"),
        ("l.weight", "l_weight"),
    ],
)
def test_an_identifier_reads_like_its_text(text: str, name: str) -> None:
    assert identifier(text) == name


@given(_ANY_TEXT)
def test_an_identifier_is_plain_short_and_free(text: str) -> None:
    name = identifier(text)
    assert name.isidentifier() and name.isascii() and len(name) <= 50
    assert not keyword.iskeyword(name) and not is_reserved(name) and not name.startswith("_")


@given(_ANY_TEXT)
def test_a_comment_is_nothing_but_comment(text: str) -> None:
    made = comment(text)
    assert all(line.startswith("#") and len(line) <= 120 and line.isprintable() for line in made.split("\n"))
    kinds = {token.type for token in tokenize.generate_tokens(io.StringIO(made + "\n").readline)}
    assert kinds <= {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.ENDMARKER}


@given(st.text("# -*coding:=utf-7 ", max_size=60))
def test_a_comment_chooses_no_encoding(text: str) -> None:
    encoding, _ = tokenize.detect_encoding(io.BytesIO(comment(text).encode()).readline)
    assert encoding == "utf-8"


_DTYPES = [value for value in vars(torch).values() if isinstance(value, torch.dtype)]
_FORMATS = [value for value in vars(torch).values() if isinstance(value, (torch.layout, torch.memory_format))]
_PLAIN = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.complex_numbers(),
    _ANY_TEXT,
    st.binary(max_size=20),
    st.sampled_from([*_DTYPES, *_FORMATS]),
    st.builds(torch.device, st.sampled_from(["cpu", "meta", "cuda:3", "mps", "xla:1"])),
)
_VALUES = st.recursive(
    st.one_of(_PLAIN, st.builds(slice, st.integers(), st.none() | st.integers(), st.none())),
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(_ANY_TEXT, inner, max_size=3),
    max_leaves=6,
)


@given(_VALUES)
def test_a_literal_evaluates_to_its_value(value: Any) -> None:
    text = literal(value)
    assert text is not None and text.isprintable() and text.isascii()
    names = {"torch": torch, "device": torch.device, "float": float, "complex": complex, "slice": slice}
    assert _same(eval(text, {"__builtins__": {}, **names}), value), text
    called = {node.func.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)}
    assert called <= set(names)


def _same(left: Any, right: Any) -> bool:
    """Return whether two values have one type and are equal, with equal signs of zeros, and NaN equal to NaN."""
    if type(left) is not type(right):
        return False
    if isinstance(left, float):
        same = math.isnan(left) and math.isnan(right)
        return struct.pack("d", left) == struct.pack("d", right) or (same and _sign(left) == _sign(right))
    if isinstance(left, complex):
        return _same(left.real, right.real) and _same(left.imag, right.imag)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(_same, left, right))
    if isinstance(left, dict):
        return list(left) == list(right) and all(map(_same, left.values(), right.values()))
    return left == right


def _sign(number: float) -> float:
    return math.copysign(1.0, number)


@pytest.mark.parametrize("value", [torch.Generator(), object(), [object()], (1, {2: print}), torch.ones(1)])
def test_what_has_no_literal_is_bound_to_a_name(value: Any) -> None:
    bound = BoundNames()
    assert literal(value) is None
    name = bound.constant(value)
    assert name == bound.constant(value) == "object_1"
    assert bound.objects[name] is value


@given(_ANY_TEXT)
def test_an_argument_of_any_name_is_given_by_that_name(name: str) -> None:
    text = f"(lambda **given: given)({named_argument(name, '1')})"
    assert eval(text, {"__builtins__": {}}) == {name: 1}
