"""The page of the audit."""

from describing.audit import SplitReport, examine
from describing.files import Clip
from pages.audit import page_of

FILES = {
    "good": '[{"filename": "0.jpg", "description": "A hand."}, '
    '{"filename": "4.jpg", "description": "右手。", "made_by": "rules 1 zh"}]',
    "short": '[{"filename": "0.jpg", "descr',
    "script": '[{"filename": "0.jpg", "description": "<script>alert(1)</script> hand"}]',
}


def test_the_page(tmp_path):
    for name, content in FILES.items():
        (tmp_path / f"{name}.json").write_text(content, encoding="utf-8")
    reports = [examine(Clip(name, None, None, tmp_path / f"{name}.json")) for name in FILES]
    page = page_of("texts", [SplitReport("train", reports, False)])
    assert "<h1>Descriptions in texts</h1>" in page
    assert "short: cut short" in page
    assert "rules 1 zh: 1 frames" in page
    assert "<script>" not in page
    assert "://" not in page
