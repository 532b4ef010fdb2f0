"""Published numbers: every file is whole, a number says where it was read, and what is unknown stays unknown."""

from __future__ import annotations

from typing import Any, get_args

import pytest

import methods
from core.validation import RecordError, read
from pipeline.layers import variants
from reports import published
from reports.published import Published, SecondHand, fidelity, read_published, row_of

ROW: dict[str, Any] = {
    **{"dataset": "market1501", "variant": "default", "backbone": "resnet50", "source": "a table"},
    **{"mAP": 80.1, "rank1": 90.2, "rank5": None, "rank10": None, "verified": "paper"},
}
FILE: dict[str, Any] = {
    "paper": {"title": "A", "authors": None, "venue": None, "code": None},
    **{"fidelity": "reconstructed", "rows": [ROW]},
}


@pytest.mark.parametrize("method", methods.available())
def test_every_file_is_read_and_its_numbers_are_percents_of_known_variants(method: str) -> None:
    found = read_published(method)
    assert (found is None) == (method in published.REFERENCES)
    for row in found.rows if found else ():
        assert row.variant in [*variants(method), "default"]
        values = [row.mAP, row.rank1, row.rank5, row.rank10]
        assert all(value is None or 0 < value <= 100 for value in values)
        assert row.first_hand or all(value is None for value in values) or row.verified in get_args(SecondHand)


def test_an_unknown_number_stays_unknown_and_the_sources_kinds_are_told_apart() -> None:
    assert row_of("jcl", "post_nonlocal", "resnet50", "market1501").mAP is None
    assert row_of("spcl", "released", "resnet50", "market1501").first_hand
    assert not row_of("pisl", "released", "resnet50", "market1501").first_hand
    assert row_of("spcl", "released", "resnet50", "nowhere") is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": [{**ROW, "verified": None}]}, r"'rows\[0\]': mAP, rank1 must say where it was read"),
        ({"rows": [{**ROW, "mAP": None, "rank1": None}]}, r"`verified` is paper, but no number is known"),
        ({"rows": [{**ROW, "verified": "rumour"}]}, r"'rows\[0\]\.verified.*' must be .*'paper'.*, not 'rumour'"),
        ({"rows": [{**ROW, "mAp": 1.0}]}, r"unknown key 'rows\[0\]\.mAp'; did you mean 'rows\[0\]\.mAP'"),
        ({"rows": [{**ROW, "mAP": "80"}]}, r"'rows\[0\]\.mAP' must be a valid number, not '80'"),
        ({"fidelity": {"default": "exact"}}, r"'fidelity': must begin with official-code parity or .*, not 'exact'"),
        ({"fidelty": "reconstructed"}, r"unknown key 'fidelty'; did you mean 'fidelity'"),
    ],
)
def test_a_malformed_file_says_where(change: dict[str, Any], message: str) -> None:
    with pytest.raises(RecordError, match=message):
        read(Published, {**FILE, **change}, "published.yaml")


def test_only_the_reference_rows_have_no_fidelity(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fidelity("warm_start", "default") is fidelity("supervised", "bound") is None
    assert fidelity("spcl", "released") == "official-code parity"
    monkeypatch.setattr(published, "read_published", lambda method: None)
    assert fidelity("spcl", "released") == "not stated: no published.yaml"
