"""Sentences made of posecodes, and where in a clip they stand."""

import hashlib
import json
import re

import numpy as np
import pytest

from clips.error_texts import is_error_text
from describing.sentences import (
    LANGUAGES,
    REVISION,
    SHORTEST,
    UNSEEN,
    VERSION,
    describe_pose,
    stretches,
)
from describing.vlm_client import judge
from pose.keypoints import Pose, read_pose
from temporal_alignment import TemporalAligner
from tests.helpers.poses import hand, make_pose

POINT = hand("FEFFF")


def said(pose, language="en", frame=0):
    return list(describe_pose(pose, language).values())[frame]


def moving(shape, place, step, n_frames=9):
    return [(shape, place + step * frame) for frame in range(n_frames)]


@pytest.mark.parametrize(
    ("pose", "en", "zh"),
    [
        (
            make_pose(9, right=moving(POINT, -0.1 - 0.5j, 0.03)),
            "Right hand at chest height, in front of the body; index finger extended, palm to the camera, pointing up; "
            "moving left.",
            "右手在胸前、身体正前方，食指伸直，掌心朝向镜头，指向上方，向左移动。",
        ),
        (
            make_pose(right=(hand("EEFFE"), 0.45j - 0.6), left=(hand("FFFFF", back=True), 0.5 - 0.5j)),
            "Right hand at mouth height, to the right of the face; thumb, index and little fingers extended, "
            "palm to the camera, pointing up; held still. "
            "Left hand at chest height, on the left; fist, back of the hand to the camera, directed up; held still.",
            "右手在嘴部高度、脸部右侧，拇指、食指、小指伸直，掌心朝向镜头，指向上方，保持不动。"
            "左手在胸前、身体左侧，握拳，手背朝向镜头，手朝上方，保持不动。",
        ),
        (
            make_pose(right=(hand("EFFFF"), -0.5 - 0.5j), left=(hand(), 0.5 - 1.6j)),
            "Right hand at chest height, on the right; fist with the thumb out, palm to the camera, "
            "thumb pointing up-left; held still. Left hand down at the hip.",
            "右手在胸前、身体右侧，握拳，拇指伸出，掌心朝向镜头，拇指指向左上方，保持不动。左手垂在身侧。",
        ),
        (
            make_pose(right=(hand(spread=14), -0.35 - 0.4j), left=(hand(spread=14), 0.35 - 0.4j)),
            "Both hands, mirrored, at chest height; open hand, fingers spread, palm to the camera, "
            "pointing up; held still. The hands are close together.",
            "双手左右对称，在胸前，五指伸直张开，掌心朝向镜头，指向上方，保持不动。双手靠近。",
        ),
    ],
)
def test_sentences(pose, en, zh):
    assert said(pose, "en") == en
    assert said(pose, "zh") == zh


def test_hands_that_part_are_said_to():
    right, left = ([(hand(), side * (0.5 + 0.03 * frame) - 0.4j) for frame in range(9)] for side in (-1, 1))
    assert "; moving apart." in said(make_pose(9, right=right, left=left))
    assert "，相互分开。" in said(make_pose(9, right=right, left=left), "zh")


def test_mirrored_hands_do_not_share_a_sideways_direction():
    pose = make_pose(right=(hand(turn=-90), -0.5 - 0.4j), left=(hand(turn=-90), 0.5 - 0.4j))
    assert said(pose).startswith("Both hands, mirrored")
    assert "pointing" not in said(pose)


def test_head_and_mouth_come_last():
    pose = make_pose(right=(POINT, -0.5 - 0.4j))
    pose.keypoints[:, 53] += [0.02, 0]
    pose.keypoints[:, 88:91] += [0, 0.012]
    assert said(pose).endswith("held still. Head turned to the left. Mouth open.")
    assert said(pose, "zh").endswith("保持不动。头转向左侧。嘴张开。")


def test_touch():
    palm = POINT[[0, 5, 9, 13, 17]].mean()
    pose = make_pose(right=(POINT, 0.44j - (POINT[8] - palm)))
    assert "; fingertips at the mouth, held still." in said(pose)
    assert "，指尖在嘴处，保持不动。" in said(pose, "zh")


# -- in time ---------------------------------------------------------------------------------------------------------


def changing(n_before=12, n_after=20):
    shapes = [POINT] * n_before + [hand("FFFFF")] * n_after
    return make_pose(len(shapes), right=[(shape, -0.5 - 0.4j) for shape in shapes])


def test_described_where_something_changes():
    texts = describe_pose(changing(), "en")
    assert list(texts) == [0, 11, 12, 31]
    assert texts[0] == texts[11]
    assert texts[12] == texts[31]
    assert "index finger extended" in texts[11]
    assert "fist" in texts[12]


def test_the_nearest_described_frame_says_what_holds():
    pose = changing(9, 40)
    texts = describe_pose(pose, "en")
    every = {frame: cut.text for cut in stretches(pose, "en") for frame in range(cut.first, cut.last + 1)}
    assert TemporalAligner().align(texts, range(len(pose))).descriptions == [every[frame] for frame in range(len(pose))]


def test_numbers_are_those_of_the_recording():
    pose = changing()
    late = Pose(pose.keypoints, pose.scores, start=100)
    assert describe_pose(late, "en") == {frame + 100: text for frame, text in describe_pose(pose, "en").items()}


def test_stretches_cover_the_clip():
    rng = np.random.default_rng(0)
    places = -0.4 - 0.3j + np.cumsum(0.08 * (rng.normal(size=50) + 1j * rng.normal(size=50)))
    pose = make_pose(50, right=[(POINT, place) for place in places])
    cuts = stretches(pose, "en")
    assert [cut.first for cut in cuts] == [0, *(cut.last + 1 for cut in cuts[:-1])]
    assert cuts[-1].last == 49
    assert all(cut.last - cut.first + 1 >= SHORTEST for cut in cuts[:-1])
    assert all(a.text != b.text for a, b in zip(cuts, cuts[1:], strict=False))


def test_nothing_seen_nothing_said():
    pose = make_pose(head=None)
    pose.scores[:] = 0
    assert describe_pose(pose, "en") == {}
    assert list(describe_pose(make_pose(1, right=(POINT, -0.5)), "zh")) == [0]


def test_what_is_not_seen_between_texts_is_not_described_by_them():
    pose = make_pose(40, head=None, right=(POINT, -0.5))
    pose.scores[20:] = 0
    first, last = (frame for frame, text in describe_pose(pose, "en").items() if text == UNSEEN["en"])
    assert (abs(first - 20) <= 5, last) == (True, 39)


# -- on many poses ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def corpus_poses(corpus):
    return [read_pose(path) for path in sorted(corpus.glob("dataset/*/pose_format/*.pkl"))]


@pytest.mark.parametrize("language", LANGUAGES)
def test_texts_are_fit_to_be_stored(corpus_poses, language):
    texts = {text for pose in corpus_poses for text in describe_pose(pose, language).values()}
    assert len(texts) > 100
    for text in texts:
        assert judge(text, language) == ""
        assert not is_error_text(text)
        assert not re.search(r"  | [.,;]|;;|,,|，，|。。|、，|，。", text)
        assert text[-1] == ("。" if language == "zh" else ".")


def test_both_languages_describe_the_same_frames(corpus_poses):
    """The stretches may be cut at other places where one language has the same words for two codes."""
    for pose in corpus_poses[:8]:
        en, zh = (describe_pose(pose, language) for language in LANGUAGES)
        assert len(en.keys() ^ zh.keys()) <= 0.1 * len(en)


def test_what_is_said_changes_only_with_the_version(corpus_poses):
    """If this fails: raise REVISION if only code changed, then put the new pair here."""
    said = json.dumps(
        [[describe_pose(pose, language) for pose in corpus_poses[:8]] for language in LANGUAGES], ensure_ascii=False
    )
    assert (REVISION, VERSION, hashlib.blake2b(said.encode(), digest_size=4).hexdigest()) == (2, "9fe83811", "c86b5df7")


def test_of_real_people(shared_real):
    """A person who counts: thumb; thumb and index finger; thumb, index and middle finger."""
    pose = read_pose(shared_real / "isolated" / "pose_format" / "mediapipe.pkl")
    texts = TemporalAligner().align(describe_pose(pose, "en"), range(len(pose))).descriptions
    assert "fist with the thumb out" in texts[30]
    assert "thumb and index finger extended" in texts[60]
    assert "thumb, index and middle fingers extended" in texts[90]
    assert all("Right hand at shoulder height" in texts[frame] for frame in (30, 60, 90))
    assert "Left hand" not in " ".join(texts)
