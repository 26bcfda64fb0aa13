"""JSON that anyone may have written: read exactly, or refused with ValueError before it costs much."""

import json
import time

import pytest
from lowtide.storage.bounded_json import read_json


def test_the_content_of_json_is_returned():
    content = {"a": [1, -2.5, None, True, "größe"], "b": {"c": 10**18, "d": []}}
    assert read_json(json.dumps(content).encode(), 100) == content
    assert read_json("[Infinity]", 100, finite=False) == [float("inf")]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[" * 100_000,
        '{"a":' * 50_000,
        "9" * 5000,
        f"[-{'9' * 30}]",
        "[1e999]",
        "[NaN]",
        "[-Infinity]",
        f"[0.{'1' * 5000}]",
        "[1,2,3,4,5,6,7,8,9,10,11]",
        b"\xff\xfe\x00",
        "\ufeff[]",
    ],
    ids=repr,
)
def test_anything_else_is_a_value_error(text):
    started = time.perf_counter()
    with pytest.raises(ValueError):
        read_json(text, 10 if "11]" in str(text) else 10**6)
    assert time.perf_counter() - started < 2
