"""Description files: written whole, in the usual form, with their makers."""

import json

import pytest

from describing.files import makers, makers_by_frame, write_descriptions
from temporal_alignment import DescriptionLoader


def test_the_form_that_everybody_reads(tmp_path):
    write_descriptions(tmp_path / "train" / "a.json", {12: "右手。", 3: 'a "quoted" text'}, {3: "rules 1 en"})
    assert json.loads((tmp_path / "train" / "a.json").read_text(encoding="utf-8")) == [
        {"filename": "000003.jpg", "description": 'a "quoted" text', "made_by": "rules 1 en"},
        {"filename": "000012.jpg", "description": "右手。"},
    ]
    assert DescriptionLoader(tmp_path / "train").load("a") == {3: 'a "quoted" text', 12: "右手。"}
    assert makers(tmp_path / "train" / "a.json") == {"rules 1 en", ""}
    assert makers_by_frame(tmp_path / "train" / "a.json") == {3: "rules 1 en"}


def test_nothing_to_say(tmp_path):
    write_descriptions(tmp_path / "a.json", {}, {})
    assert json.loads((tmp_path / "a.json").read_text()) == []
    assert makers(tmp_path / "a.json") == set()


@pytest.mark.parametrize(
    ("content", "maker"),
    [
        ('{"12": "text"}', {""}),
        ('[{"filename": "1.jpg", "description": "t"}, 3]', {""}),
        ('"text"', None),
        ('[{"filename": "1.j', None),
        ("", None),
    ],
)
def test_makers_of_strange_files(tmp_path, content, maker):
    (tmp_path / "a.json").write_text(content)
    assert makers(tmp_path / "a.json") == maker
    assert makers_by_frame(tmp_path / "a.json") == {}
    assert makers(tmp_path / "missing.json") is None
