"""The report of the first GPU: all of it at a small size, without one."""

import json

import pytest
import torch

from tools import benchmark, gpu_report


def run(folder, *flags):
    gpu_report.main([str(folder), "--size", "tiny", *flags])
    return json.loads((folder / "results.json").read_text()), (folder / "report.html").read_text()


def test_a_section_that_fails_or_hangs_is_recorded_and_the_next_one_runs(tmp_path, monkeypatch, capsys):
    commands = {
        "fails": ["-c", "raise ValueError('of no use')"],
        "hangs": ["-c", "import time; time.sleep(60)"],
        "works": ["-c", "print('{out}')"],
    }
    monkeypatch.setattr(gpu_report, "sections", lambda size: commands)
    monkeypatch.setattr(gpu_report, "LONGEST", 2)
    results, page = run(tmp_path)
    assert {name: result["done"] for name, result in results.items()} == {"fails": False, "hangs": False, "works": True}
    assert results["fails"]["last_line"] == "ValueError: of no use"
    assert results["hangs"]["last_line"] == "not ended after 2 s"
    assert "of no use" in page
    commands |= {"fails": ["-c", "print('now it works')"], "works": ["-c", "1 / 0"]}
    results, _ = run(tmp_path)
    assert [results[name]["last_line"] for name in commands] == [
        "now it works",
        "not ended after 2 s",
        str(tmp_path / "works"),
    ]
    results, _ = run(tmp_path, "--minutes", "0.1")
    assert results["hangs"]["last_line"] == "no time was left: call the command again"
    assert "2 of 3; see" in capsys.readouterr().out


def test_what_a_gpu_measures_is_on_the_page():
    base = {"batch_size": 16, "hidden_dim": 256, "frames": 256, "texts": 30, "mt5": benchmark.MT5_BASE}
    facts = dict.fromkeys(("device", "torch", "ceiling_tflops", "batch_size", "frames"), 1)
    row = {"stage": "training step with trained texts", "seconds": 0.5, "clips_per_second": 32, "share_of_ceiling": 0.4}
    traced = {"kernels": 2184, "launches": 2200, "busy_seconds": 0.25, "waits": {"here.py:7": 3}}
    row |= {"in_use_mib": 10 * 1024, "peak_mib": 20 * 1024, **traced}
    page = gpu_report.to_page(
        {
            "it": {"done": True, "last_line": "", "run": facts | {"dtype": "bf16", "model": base}, "stages": [row]},
            "no step": {"done": True, "last_line": "", "losses": [None, None]},  # of a training that skips them all
        }
    )
    cells = ["500.0", "32.0", "40", "2,184", "2,200", "50", "3 x here.py:7", "30.0", "38.2"]
    assert "".join(f"<td>{cell}</td>" for cell in cells) in page


@pytest.mark.slow
def test_all_sections_on_a_cpu(tmp_path):
    """The one that needs a GPU says so; nothing else may fail on the day."""
    results, page = run(tmp_path, "--minutes", "60")
    assert results.keys() == gpu_report.sections("tiny").keys()
    failed = {name: result["last_line"] for name, result in results.items() if not result["done"]}
    if not torch.cuda.is_available():
        assert failed.pop("fp16, ZeRO 2") == "error: --dtype fp16 needs a GPU; on a CPU use bf16 or fp32."
    assert not failed
    stages = [row["stage"] for result in results.values() for row in result.get("stages", ())]
    assert {*stages} == {*benchmark.STAGES[2:]}
    losses = [result["losses"] for result in results.values() if "losses" in result]
    assert len(losses) >= 4
    for other in losses[1:]:
        assert other == pytest.approx(losses[0], rel=0.01)
    assert all(name in page for name in (*results, *stages))
