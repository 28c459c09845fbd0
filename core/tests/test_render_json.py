"""JSON must be JSON, and be as QEMU writes it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diskwright.render.json_text import json_text, ordered_items, quote

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(VALUES)
def test_any_value_comes_back(value: Any) -> None:
    text = json_text(value)
    assert text.isascii()
    assert json.loads(text) == value


@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        ("", '""'),
        ('n\udcff\nx"\\\x7f\x85€😀', r'"n\uFFFD\nx\"\\\u007F\u0085\u20AC\uD83D\uDE00"'),
        ("t\udce2\udc82x", r'"t\uFFFDx"'),
        ("\x00\b\f\r\t\x1f", r'"\u0000\b\f\r\t\u001F"'),
        ("\ud800!", r'"\uFFFD!"'),
    ],
)
def test_strings_are_ascii_and_bad_bytes_are_replaced(text: str, quoted: str) -> None:
    assert quote(text) == quoted


@pytest.mark.parametrize(
    "keys",
    [
        "limits children backing-filename-format snapshots virtual-size filename cluster-size format actual-size "
        "format-specific full-backing-filename encrypted backing-filename dirty-flag",
        "icount vm-clock-nsec name date-sec date-nsec vm-clock-sec id vm-state-size",
        "compat compression-type lazy-refcounts bitmaps refcount-bits data-file encrypt data-file-raw corrupt "
        "extended-l2",
        "image-end-offset compressed-clusters total-clusters corruptions corruptions-fixed check-errors leaks "
        "leaks-fixed allocated-clusters filename format fragmented-clusters",
        "bitmaps required fully-allocated",
        "ivgen-alg detached-header hash-alg cipher-alg uuid ivgen-hash-alg format cipher-mode slots payload-offset "
        "master-key-iters",
    ],
)
def test_keys_come_in_the_order_of_the_hash_table(keys: str) -> None:
    names = keys.split()
    assert [key for key, _ in ordered_items(dict.fromkeys(sorted(names), 0))] == names


def test_in_one_bucket_the_newest_comes_first() -> None:
    assert [key for key, _ in ordered_items({"k10": 0, "k11": 1})] == ["k11", "k10"]
    assert [key for key, _ in ordered_items({"k11": 1, "k10": 0})] == ["k10", "k11"]


def test_layout() -> None:
    assert json_text({"data": {}, "list": [], "name": [1, "x", True]}) == (
        '{\n    "name": [\n        1,\n        "x",\n        true\n    ],\n'
        '    "list": [\n    ],\n    "data": {\n    }\n}'
    )
