"""Typed records: a fault of a file is one sentence with the file, the key and the nearest known one."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from core.names import unknown
from core.validation import Record, RecordError, read, read_json, read_yaml


class Row(Record):
    mAP: float | None
    source: str = ""


class Table(Record):
    name: str
    kind: Literal["image", "text"] = "image"
    seeds: tuple[int, ...] = (0,)
    rows: tuple[Row, ...] = ()
    best: Row | None = None
    by_name: dict[str, Row] | None = None


def test_a_file_becomes_its_model(tmp_path: Path) -> None:
    file = tmp_path / "table.yaml"
    file.write_text("name: market\nseeds: [1, 2]\nrows:\n- {mAP: 82}\n- {mAP: null, source: unknown}\n")
    table = read_yaml(Table, file)
    assert (table.seeds, table.rows[0].mAP, table.rows[1].mAP) == ((1, 2), 82.0, None)
    (tmp_path / "table.json").write_text(table.model_dump_json())
    assert read_json(Table, tmp_path / "table.json") == table


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "a", "sedes": [0]}, r"file: unknown key 'sedes'; did you mean 'seeds'\? known: best, by_name"),
        (
            {"name": "a", "rows": [{"mAP": 1, "sorce": "x"}]},
            r"unknown key 'rows\[0\]\.sorce'; did you mean .*\.source'",
        ),
        ({"name": "a", "best": {"mAP": 1, "sorce": ""}}, r"unknown key 'best\.sorce'; did you mean 'best\.source'"),
        ({"name": "a", "by_name": {"b": {"mAP": 1, "sorce": "x"}}}, r"'by_name\.b\.sorce'; did you mean .*b\.source'"),
        ({}, "file: 'name' is missing"),
        ({"name": "a", "seeds": ["1"]}, r"'seeds\[0\]' must be a valid integer, not '1'"),
        ({"name": "a", "seeds": [True]}, r"'seeds\[0\]' must be a valid integer, not True"),
        ({"name": "a", "rows": [{"mAP": "high"}]}, r"'rows\[0\]\.mAP' must be a valid number, not 'high'"),
        ({"name": "a", "kind": "video"}, r"'kind' must be 'image' or 'text', not 'video'"),
        ({"name": 3, "sedes": [0]}, r"'name' must be a valid string, not 3; unknown key 'sedes'"),
        ([1], r"file: must be an object, not \[1\]"),
    ],
)
def test_a_fault_names_file_key_and_what_would_be_right(values: object, message: str) -> None:
    with pytest.raises(RecordError, match=message):
        read(Table, values, "file")


def test_a_file_that_cannot_be_parsed_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad").write_text("{'name':")
    for reader, kind in ((read_json, "JSON"), (read_yaml, "YAML")):
        with pytest.raises(RecordError, match=f"bad is not valid {kind}"):
            reader(Table, tmp_path / "bad")


def test_an_unknown_name_suggests_the_nearest_and_lists_what_there_is() -> None:
    assert unknown("dataset", "market1510", ["market1501", "csv"]) == (
        "unknown dataset 'market1510'; did you mean 'market1501'? known: csv, market1501"
    )
    assert unknown("dataset", "x", ["market1501"]) == "unknown dataset 'x'; known: market1501"
