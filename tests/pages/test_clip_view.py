"""A clip's section shows what the model made of it, and where the joints are."""

import json
import re
import shutil

import numpy as np
import pytest

from network.attention import Word
from pages.clip_view import Viewer, clip_section, words_data
from pages.elements import Html
from pages.run_folder import RunFolder
from pose.drawing import picture_points, player_data
from pose.keypoints import read_pose
from translator import Candidate, Explained


def viewer(folder, label="run", style="a"):
    found = Viewer(label, style, RunFolder.read(folder), "test")
    found.open("cpu")
    return found


@pytest.fixture(scope="module")
def fusion(two_runs):
    return viewer(two_runs[1], "fusion", "b")


def changed(run, to, **places):
    """A copy of a run whose data lie elsewhere."""
    shutil.copytree(run, to)
    record = json.loads((to / "run.json").read_text())
    record["starts"][0]["dataset"] |= {key: str(place) for key, place in places.items()}
    (to / "run.json").write_text(json.dumps(record))
    return to


def shown(section):
    return json.loads(re.search(r'class="clip-data">(.*?)</script>', section)[1])


def section(viewers, name):
    return clip_section(name, viewers, "reference", lambda text: Html(f"<i>{text}</i>"), 1.0)


def test_all_frames_of_the_pose_file_are_shown(fusion):
    name = fusion.dataset.names[0]
    pose = read_pose(fusion.dataset.pose_paths[name])
    facts = shown(section([fusion], name))
    wanted = player_data(*picture_points(pose, np.arange(len(pose))))
    assert {key: facts[key] for key in wanted} == json.loads(json.dumps(wanted))
    assert facts["frames"] == list(range(pose.start, pose.start + len(pose)))


def test_the_lane_is_the_models_gate_and_the_aligned_texts(fusion):
    name = next(iter(sorted(fusion.described())))
    pose = fusion.pose(name)
    said, lane = fusion.says(name, pose)
    assert [how for how, _ in said] == ["with descriptions", "without"]
    assert len(lane.gate) == len(lane.texts) == len(lane.own) == len(pose)
    assert all(0 < gate < 1 for gate in lane.gate)
    facts = shown(section([fusion], name))["lanes"][0]
    assert facts == lane._asdict()
    assert 0 < sum(facts["own"]) < len(pose)


def test_the_words_are_the_models(two_runs, fusion):
    pose = viewer(two_runs[0], "pose")
    name = min(fusion.described())
    shown_words = shown(section([pose, fusion], name))["words"]
    for run, given in zip([pose, fusion], shown_words, strict=True):
        [(_, found), *_] = run.says(name, run.pose(name))[0]
        assert (given["text"], given["words"]) == (found.candidates[0].text, [word.text for word in found.words])
        levels = np.array(given["shares"])
        shares = np.array([word.frames for word in found.words])
        assert (levels.argmax(1) == shares.argmax(1)).all()
        assert np.allclose(levels / 255, shares / shares.max(1, keepdims=True), atol=1 / 255)
    of_a_shorter_run = Explained([Candidate("a", 0.0)], None, [Word("a", [0.2, 0.8])])
    assert words_data(of_a_shorter_run, 4)["shares"] == [[63, 63, 255, 255]]


def test_a_clip_without_texts_has_a_gate_all_the_same(fusion):
    name = next(name for name in fusion.dataset.names if name not in fusion.described())
    said, lane = fusion.says(name, fusion.pose(name))
    assert [how for how, _ in said] == ["has no description"]
    assert set(lane.texts) == {None}
    assert "no text" in section([fusion], name)


def test_two_runs_stand_beside_each_other(two_runs, fusion):
    pose = viewer(two_runs[0], "pose")
    name = min(fusion.described())
    made = section([pose, fusion], name)
    assert re.findall(r"</span>(\w+(?:, [a-z ]+)?)</dt>", made) == [
        "pose",
        "fusion, with descriptions",
        "fusion, without",
    ]
    assert len(shown(made)["lanes"]) == 1


def test_without_weights_the_skeleton_is_there(two_runs, tmp_path):
    shutil.copytree(two_runs[1], tmp_path / "run")
    (tmp_path / "run/best_checkpoint.pth").unlink()
    found = viewer(tmp_path / "run")
    assert "has no best_checkpoint.pth" in found.left_out[0]
    made = section([found], found.dataset.names[0])
    assert "as evaluated" in made
    assert shown(made)["lanes"] == []


def test_without_data_the_sentences_are_there(two_runs, tmp_path):
    found = viewer(changed(two_runs[1], tmp_path / "run", pose_dir=tmp_path / "gone"))
    assert "gone not found" in found.left_out[0]
    name = next(iter(found.run.predictions["test"]))
    made = section([found], name)
    assert "as evaluated" in made
    assert "The skeleton is left out" in made


def test_without_descriptions_the_model_speaks_all_the_same(two_runs, tmp_path):
    found = viewer(changed(two_runs[1], tmp_path / "run", description_dir=tmp_path / "gone"))
    assert found.left_out[0].startswith("descriptions: ")
    assert found.described() == set()
    said, lane = found.says(found.dataset.names[0], found.pose(found.dataset.names[0]))
    assert [how for how, _ in said] == ["has no description"]
    assert lane.own == [0] * len(lane.gate)


@pytest.mark.parametrize("error", [ValueError("out of GPU memory"), FileNotFoundError("out of GPU memory")])
def test_a_clip_that_fails_is_told(fusion, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(fusion.translator, "explain", fail)
    monkeypatch.setattr(fusion, "left_out", [])
    name = fusion.dataset.names[0]
    assert [how for how, _ in fusion.says(name, fusion.pose(name))[0]] == ["as evaluated"]
    assert fusion.left_out == [f"gate and new translations of {name}: out of GPU memory"]
    monkeypatch.setattr(fusion, "split", "train")  # which is not evaluated
    with pytest.raises(ValueError, match=r"^out of GPU memory$"):
        fusion.says(name, fusion.pose(name))
