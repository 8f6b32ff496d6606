"""What a run leaves in its folder, and how the next one clears it."""

import json

import pytest

from training import run_folder


def test_curves_are_cut_to_where_the_state_stands(tmp_path):
    (tmp_path / "log.txt").write_text("".join(json.dumps({"epoch": n}) + "\n" for n in range(3)))
    (tmp_path / "steps.jsonl").write_text(
        "".join(json.dumps({"step": n}) + "\n" for n in range(1, 9)) + '{"step": 9, "l'
    )
    run_folder.trim_curves(tmp_path, epochs=1, steps=5)
    assert (tmp_path / "log.txt").read_text() == '{"epoch": 0}\n'
    assert [json.loads(line)["step"] for line in (tmp_path / "steps.jsonl").read_text().splitlines()] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(("keep", "left"), [(0, [8, 9, 10, 17]), (1, [10, 17]), (2, [9, 10, 17]), (9, [8, 9, 10, 17])])
def test_newest_checkpoints_are_kept(tmp_path, keep, left):
    for epoch in (8, 9, 10, 17):
        (tmp_path / f"checkpoint_{epoch}.pth").touch()
    (tmp_path / "checkpoint_mine.pth").touch()
    run_folder.forget_checkpoints(tmp_path, 10, keep)
    assert {path.name for path in tmp_path.iterdir()} == {f"checkpoint_{n}.pth" for n in left} | {"checkpoint_mine.pth"}
