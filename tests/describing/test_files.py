"""Description files: in the usual form, with their makers."""

import json

from describing.files import write_descriptions
from temporal_alignment import read_descriptions


def test_the_form_that_everybody_reads(tmp_path):
    path = tmp_path / "train" / "a.json"
    write_descriptions(path, {12: "右手。", 3: 'a "quoted" text'}, {3: "rules 1 en"})
    assert json.loads(path.read_text(encoding="utf-8")) == [
        {"filename": "000003.jpg", "description": 'a "quoted" text', "made_by": "rules 1 en"},
        {"filename": "000012.jpg", "description": "右手。"},
    ]
    texts, made_by, *_ = read_descriptions(path)
    assert texts == {3: 'a "quoted" text', 12: "右手。"}
    assert made_by == {3: "rules 1 en", 12: ""}
    write_descriptions(path, {}, {})
    assert json.loads(path.read_text()) == []
