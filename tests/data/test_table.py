from __future__ import annotations

from pathlib import Path

import pytest

from odc.data.table import label_of, read_table
from odc.errors import InputError


def test_rows_are_read(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_bytes('\ufeffpath,label,more\r\n"a, b.png",x,\r\n\r\n,,\r\n c.png,-1\r\n'.encode())
    rows = read_table(file, "path", optional=("label", "other"))
    assert rows == [{"path": "a, b.png", "label": "x", "more": ""}, {"path": " c.png", "label": "-1"}]
    assert [label_of(cell) for cell in (" x ", "", " ", "-1", " -1", "-10", "1")] == ["x", "", "", "", "", "-10", "1"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,lable\na.png,1\n", "no column 'label'; did you mean 'lable'"),
        ("path,label,label\na.png,1,2\n", "has 2 columns 'label'"),
        ("path,label\n", "no rows below its heading"),
        ("", "no column 'path'"),
        ("path,label\na.png,1\nb.png\n", r"line 3 of '.*t.csv' has 1 of 2 cells: the one of 'label' is missing"),
        ("path,label\na, b.png,1\n", "line 2 of .* has 3 cells, but the heading has 2: put quotes around"),
        ("path,label\n,1\n", "line 2 of .* names no image"),
        ("path,label\na.png,1\n".encode("utf-16"), "cannot read the table"),
        (None, "cannot read the table"),
    ],
)
def test_damaged_tables_are_told_in_one_line(text: str | bytes | None, message: str, tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    if text is not None:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=message) as error:
        read_table(file, "path", "label")
    assert "\n" not in str(error.value)
