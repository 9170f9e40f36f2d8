"""Markdown of texts that may hold anything."""

import pytest

from w2s_plugins.hub.markdown import code, fenced, markdown_table, plain


@pytest.mark.parametrize(
    "text, expected",
    [
        ("resnet18", "`resnet18`"),
        ("a\n# b\u202e", "`a # b`"),
        ("a|b`<i>", "<code>a&#124;b&#96;&#60;i&#62;</code>"),
        ({"a": 1}, '`{"a": 1}`'),
        ("", "<code></code>"),
    ],
)
def test_code(text: object, expected: str) -> None:
    assert code(text) == expected


def test_plain_is_one_short_line() -> None:
    assert plain(" a\t\x07b \n" + "c" * 400) == "a b " + "c" * 296


def test_a_fence_is_longer_than_those_inside() -> None:
    assert fenced("a\n````\nb", "yaml") == "`````yaml\na\n````\nb\n`````"


def test_table_without_empty_columns() -> None:
    rows = [("1", None, "x"), ("2", "", None)]
    assert markdown_table(["a", "b", "c"], rows) == "| a | c |\n| --- | --- |\n| 1 | x |\n| 2 |  |"
    assert markdown_table(["a"], []) == ""
