"""The rows of tables: `.csv`, `.tsv`, `.xlsx`; and the text of files that may be packed with gzip."""

from __future__ import annotations

import csv
import gzip
import io
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

from system.disk import check_zip, read_unpacked
from system.faults import in_one_line

SUFFIXES = (".csv", ".tsv", ".xlsx")
MAX_ROWS, MAX_CELLS = 1 << 20, 20_000_000  # of a spreadsheet, which need not hold all that it spans

Rows = Iterator[tuple[str, list[str] | ValueError]]


def suffix_of(path: str | Path) -> str:
    """Return a file's suffix in lower case, without that of gzip: ".csv" for LABELS.CSV.gz."""
    return os.path.splitext(str(path).lower().removesuffix(".gz"))[1]


def read_rows(path: str | Path) -> Rows:
    """Read the rows of a table that are not blank, the header first.

    Yields:
        The row's place in the file, and its cells without blanks around them, or an error that says what is wrong.

    Raises:
        ValueError: not a table; one line that names the file.
    """
    for where, row in _sheet(path) if suffix_of(path) == ".xlsx" else _lines(path):
        cells = row if isinstance(row, ValueError) else [cell.strip() for cell in row]
        if isinstance(cells, ValueError) or any(cells):
            yield where, cells


def read_text(path: str | Path) -> str:
    r"""Read a text file, packed or not, with \n at the end of lines; ValueError if it is too large or damaged."""
    try:
        data = read_unpacked(path, packed=str(path).lower().endswith(".gz"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}. This is no label file.") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: cannot be unpacked: {error}. Copy or make it again.") from None
    try:
        # Spreadsheets also write UTF-16, which begins with a mark.
        text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path}: is not UTF-8 text. Save it as UTF-8 (in Excel: CSV UTF-8).") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _lines(path: str | Path) -> Rows:
    lines = read_text(path).split("\n")
    # Spreadsheets use semicolons in locales with a decimal comma; some corpora use tabs or bars.
    sign = max("\t" if suffix_of(path) == ".tsv" else ",;\t|", key=lines[0].count)
    for number, line in enumerate(lines, start=1):
        try:
            row: list[str] | ValueError = next(csv.reader([line], delimiter=sign, strict=True), [])
        except csv.Error as error:
            if sign == "\t":  # no text has tabs: the mark belongs to the text
                row = line.split(sign)
            else:
                wrong = f"has a quotation mark too many or too few ({error}). A cell that begins with one ends with one"
                row = ValueError(f'{wrong}, in the same line; within it, "" stands for one')
        yield f"line {number}", row


def _sheet(path: str | Path) -> Rows:
    try:
        import openpyxl
    except ImportError:
        raise ValueError(
            f"{path}: .xlsx files are read with openpyxl, which is not installed. "
            'pip install -e ".[tables]", or save the table as .csv.'
        ) from None
    width = 0  # of the header: other rows lack empty cells at their ends, and what stands beside has no name
    try:
        data = read_unpacked(path, packed=False)
        check_zip(data)
        sheet = openpyxl.load_workbook(io.BytesIO(data), read_only=True, data_only=True).worksheets[0]
        sheet.reset_dimensions()  # as stated, which openpyxl would fill with empty cells
        for number, row in enumerate(sheet.values, start=1):
            if number > MAX_ROWS:
                raise ValueError(f"it spans more than {MAX_ROWS} rows. Remove what lies far below")
            cells = ["" if cell is None else str(cell) for cell in row]
            width = width or max((i for i, cell in enumerate(cells, start=1) if cell), default=0)
            if number * width > MAX_CELLS:
                raise ValueError(
                    f"it spans more than {MAX_CELLS} cells, with {width} columns. Remove those without use"
                )
            yield f"row {number}", [*cells[:width], *[""] * (width - len(cells))]
    except Exception as error:  # noqa: BLE001 -- a damaged file raises nearly anything; each becomes one line
        reason = in_one_line(error, 300)
        raise ValueError(f"{path}: not a readable .xlsx file: {reason}. Save it again, or as .csv.") from None
