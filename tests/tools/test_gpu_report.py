"""What is run on the first GPU: all of it at a small size, without one."""

import json

import pytest
import torch

from system.disk import read_lines
from tools import gpu_report


def run(folder):
    gpu_report.main([str(folder), "--size", "tiny"])
    return json.loads((folder / "results.json").read_text())


def test_a_section_that_fails_or_hangs_is_recorded_and_the_next_one_runs(tmp_path, monkeypatch, capsys):
    lines = {
        "fails": "-c \"raise ValueError('of no use')\"",
        "hangs": "-c 'import time; time.sleep(60)'",
        "works": "-c 'print(\"{out}\")'",
    }
    monkeypatch.setattr(gpu_report, "sections", lambda size: lines)
    monkeypatch.setattr(gpu_report, "LONGEST", 2)
    assert run(tmp_path) == {
        "fails": {"done": False, "last_line": "ValueError: of no use"},
        "hangs": {"done": False, "last_line": "not ended after 2 s"},
        "works": {"done": True, "last_line": str(tmp_path)},
    }
    assert "fails: FAILED: ValueError: of no use\n" in capsys.readouterr().out
    lines |= {"fails": "-c \"print('now it works')\"", "works": "-c '1 / 0'"}
    results = run(tmp_path)
    assert [results[name]["last_line"] for name in lines] == ["now it works", "not ended after 2 s", str(tmp_path)]


@pytest.mark.slow
def test_all_sections_on_a_cpu(tmp_path, monkeypatch):
    """The one that needs a GPU says so; nothing else may fail on the day."""
    monkeypatch.setattr(gpu_report, "LONGEST", 3600)
    results = run(tmp_path)
    assert results.keys() == gpu_report.sections("tiny").keys()
    failed = {name: result["last_line"] for name, result in results.items() if not result["done"]}
    if not torch.cuda.is_available():
        assert failed.pop("fp16_zero2") == "error: --dtype fp16 needs a GPU; on a CPU use bf16 or fp32."
    assert not failed
    first, *others = ([line["loss"] for line in read_lines(path)] for path in tmp_path.glob("*/steps.jsonl"))
    assert len(others) >= 3
    for losses in others:
        assert losses == pytest.approx(first, rel=0.01)
