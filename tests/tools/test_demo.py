"""The demonstration, on a corpus of a few clips."""

import re

import pytest

from synthetic.corpus import MARKER
from tools import demo


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr("config.SAMPLE_CLIPS", {"train": 24, "dev": 4, "test": 7})
    monkeypatch.setattr(demo, "BATCH", 12)
    monkeypatch.setattr(demo, "EPOCHS", 1)
    monkeypatch.setattr(
        "training.experiments.SMALL_MODEL",
        "--hidden_dim 8 --epochs 1 --batch-size 12 --gradient-accumulation-steps 1 --dtype fp32 --num_workers 0 "
        "--num_beams 1 --max_new_tokens 4",
    )


def test_it_trains_compares_and_reports(small, tmp_path, capsys):
    (tmp_path / "sample").mkdir()
    (tmp_path / "sample" / MARKER).write_text("{}")  # a corpus whose making was stopped is made again
    line = ["--root", str(tmp_path / "sample"), "--out", str(tmp_path / "out")]
    demo.main(line)
    out = capsys.readouterr().out
    assert re.search(r"^epoch 1 of 1 on dev \| without texts: BLEU-4 +[\d.]+ \| with texts: BLEU-4 +[\d.]+$", out, re.M)
    assert "test BLEU-4 of 7 clips" in out
    rows = re.findall(r"^( *t[\w', ]+?) +(\d+\.\d)$", out, re.M)
    assert [row.strip() for row, _ in rows] == [
        "trained and tested without texts",
        "trained and tested with texts",
        "the same, tested without texts",
        "the same, tested with other clips' texts",
    ]
    assert len(re.findall(r"^  with texts     ", out, re.M)) >= demo.SHOWN
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "without" in page
    assert str(tmp_path / "out" / "report.html") in out
    demo.main(line)  # nothing is run again
    assert capsys.readouterr().out.splitlines()[-5:] == out.splitlines()[-5:]
