"""The page of the audit."""

import json
import pickle

from describing.audit import SplitReport, examine
from describing.files import Clip
from pages.audit import page_of

FILES = {
    "good": '[{"filename": "0.jpg", "description": "A hand."}, '
    '{"filename": "4.jpg", "description": "右手。", "made_by": "rules 1 zh"}]',
    "again": '[{"filename": "1.jpg", "description": "A hand."}, {"filename": "2.jpg", "description": "A hand."}]',
    "short": '[{"filename": "0.jpg", "descr',
    "script": '[{"filename": "0.jpg", "description": "<script>alert(1)</script> hand"}]',
}


def test_the_page(tmp_path):
    for name, content in FILES.items():
        (tmp_path / f"{name}.json").write_text(content, encoding="utf-8")
    reports = [examine(Clip(name, None, None, tmp_path / f"{name}.json")) for name in FILES]
    page = page_of("texts", [SplitReport("train", reports, False)])
    assert "<h1>Descriptions in texts</h1>" in page
    assert "<li>2 clips: A hand.</li>" in page
    assert "Length of the texts, up to 30 characters" in page
    assert "short: cut short" in page
    assert "rules 1 zh: 1 frames" in page
    assert "<script>" not in page
    assert "://" not in page


def test_a_report_is_small(tmp_path):
    """Half a million of them have to fit into memory."""
    entries = ({"filename": f"{frame}.jpg", "description": f"Hand {frame}." * 40} for frame in range(150))
    (tmp_path / "a.json").write_text(json.dumps([*entries]), encoding="utf-8")
    report = examine(Clip("a", None, None, tmp_path / "a.json"))
    assert len(report.lengths) == len(report.keys) == 150
    assert len(pickle.dumps(report)) < 4000
