"""Posecodes of hand-made poses whose answer is obvious."""

import numpy as np
import pytest

from describing.posecodes import COLUMNS, FINGERS, HOLD, RULES, posecodes
from pose.keypoints import Pose
from tests.helpers.poses import UNIT, hand, make_pose


def words(pose, frame=3):
    """Column -> the English word of its step, without those that are unknown or silent."""
    row = posecodes(pose)[frame].tolist()
    named = {}
    for column, code in zip(COLUMNS, row, strict=True):
        rule = column.split()[-1]
        rule = "finger" if rule in FINGERS[1:] else rule
        if code and (word := RULES[rule][1][code - 1].en):
            named[column] = word
    return named


# -- hands -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["EEEEE", "FFFFF", "FEFFF", "FEEFF", "EFFFF", "EFFFE", "FBBBB", "EEFFE"])
@pytest.mark.parametrize("turn", [0, 50, -90, 160])
@pytest.mark.parametrize("back", [False, True])
def test_fingers(shape, turn, back):
    said = words(make_pose(right=(hand(shape, turn, back), -0.4 - 0.4j), left=(hand(shape, turn, back), 0.4 - 0.4j)))
    names = dict(zip("EBF", ("extended", "bent", "folded"), strict=True))
    for side in ("right", "left"):
        assert [said[f"{side} {name}"] for name in FINGERS] == [names[letter] for letter in shape]


@pytest.mark.parametrize(
    ("turn", "right", "left"),
    [
        (0, "up", "up"),
        (90, "right", "left"),
        (-90, "left", "right"),
        (180, "down", "down"),
        (45, "up-right", "up-left"),
        (-135, "down-left", "down-right"),
    ],
)
def test_pointing_is_the_signers(turn, right, left):
    said = words(make_pose(right=(hand("FEFFF", turn), -0.4), left=(hand("FEFFF", turn), 0.4)))
    assert (said["right pointing"], said["left pointing"]) == (right, left)


def test_a_thumb_alone_points():
    said = words(make_pose(right=(hand("EFFFF", 60), -0.4 - 0.4j)))
    assert said["right pointing"] == "up"


def test_palm_and_back():
    said = words(make_pose(right=(hand(), -0.4), left=(hand(back=True), 0.4)))
    assert said["right palm"] == "palm to the camera"
    assert said["left palm"] == "back of the hand to the camera"
    edge = hand()
    edge = 0.2 * edge.real + 1j * edge.imag
    assert words(make_pose(right=(edge, -0.4)))["right palm"] == "edge of the hand to the camera"


def test_spread_and_pinch():
    assert words(make_pose(right=(hand(spread=14), -0.4)))["right spread"] == "spread"
    assert "right spread" not in words(make_pose(right=(hand(spread=3), -0.4)))
    ring = hand("EBEEE")
    ring[4] = ring[8] + 0.01
    assert words(make_pose(right=(ring, -0.4)))["right pinch"] == "touching"


def test_a_finger_along_the_line_of_sight_is_not_judged():
    shape = hand("FEFFF")
    shape[5:9] = shape[5] + np.array([0, 0.02j, 0.03j, 0.035j])
    assert "right index" not in words(make_pose(right=(shape, -0.4)))


@pytest.mark.parametrize(
    ("place", "height", "side"),
    [
        (-0.4 - 1.6j, "down at the hip", "on the right"),
        (0 - 1.0j, "at waist height", "in front of the body"),
        (-0.4 - 0.5j, "at chest height", "on the right"),
        (0.5 + 0.0j, "at shoulder height", "on the left"),
        (-1.1 + 0.2j, "at neck height", "far out on the right"),
        (0.9 + 1.6j, "above the head", "far out on the left"),
    ],
)
def test_place(place, height, side):
    said = words(make_pose(right=(hand(), place)))
    assert (said["right height"], said["right side"]) == (height, side)


@pytest.mark.parametrize(
    ("above_nose", "height"),
    [
        (-0.35, "at chin height"),
        (-0.2, "at mouth height"),
        (0.0, "at nose height"),
        (0.15, "at eye height"),
        (0.35, "at forehead height"),
        (0.7, "above the head"),
    ],
)
def test_height_at_the_face(above_nose, height):
    said = words(make_pose(right=(hand(), -0.6 + (0.62 + above_nose) * 1j)))
    assert (said["right face"], said["right beside"]) == (height, "to the right of the face")


@pytest.mark.parametrize(
    ("at", "place"), [(-0.18j, "mouth"), (0, "nose"), (-0.35j, "chin"), (0.1 + 0.12j, "left eye"), (0.28j, "forehead")]
)
def test_touch(at, place):
    shape = hand("FEFFF")
    palm = shape[[0, 5, 9, 13, 17]].mean()
    said = words(make_pose(right=(shape, 0.62j + at - (shape[8] - palm))))
    assert said["right touch"] == place


# -- movement --------------------------------------------------------------------------------------------------------


def moving(path, right=True):
    shape = hand("FEFFF")
    places = [(shape, place) for place in path]
    return make_pose(len(places), **{"right" if right else "left": places})


@pytest.mark.parametrize(
    ("step", "way"),
    [(1, "left"), (-1, "right"), (1j, "up"), (-1j, "down"), (1 + 1j, "up-left"), (-1 - 1j, "down-right")],
)
def test_heading(step, way):
    said = words(moving([-0.5 - 0.5j + 0.05 * step * frame for frame in range(12)]), 6)
    assert (said["right speed"], said["right heading"]) == ("moving", way)


def test_still():
    rng = np.random.default_rng(0)
    said = words(moving([-0.5 - 0.5j + 0.003 * rng.normal() for _ in range(12)]), 6)
    assert said["right speed"] == "held still"


def test_movements_that_repeat():
    frames = np.arange(40)
    assert words(moving(-0.4 - 0.4j + 0.2 * np.exp(0.5j * frames)), 20)["right repeat"] == "circling"
    assert words(moving(-0.4 - 0.4j + 0.2 * np.exp(-0.5j * frames)), 20)["right repeat"] == "circling"
    assert words(moving(-0.4 - 0.4j + 0.2 * np.sin(frames)), 20)["right repeat"] == "moving from side to side"
    assert words(moving(-0.4 - 0.4j + 0.2j * np.sin(frames)), 20)["right repeat"] == "moving up and down"
    assert "right repeat" not in words(moving(-0.8 - 0.8j + 0.03 * frames), 20)


# -- both hands, head, mouth -----------------------------------------------------------------------------------------


def test_hands_together():
    far = words(make_pose(right=(hand(), -0.5 - 0.4j), left=(hand(), 0.5 - 0.4j)))
    near = words(make_pose(right=(hand("FFFFF"), -0.2 - 0.4j), left=(hand("FFFFF"), 0.2 - 0.4j)))
    meet = words(make_pose(right=(hand("FFFFF"), -0.1 - 0.4j), left=(hand("FFFFF"), 0.1 - 0.4j)))
    assert "gap" not in far
    assert (near["gap"], meet["gap"]) == ("The hands are close together", "The hands touch")
    assert far["mirror"] == "mirrored"
    assert "mirror" not in words(make_pose(right=(hand(), -0.5), left=(hand(), 0.5 - 0.6j)))


@pytest.mark.parametrize(("speed", "word"), [(0.04, "moving apart"), (-0.04, "moving together")])
def test_hands_part(speed, word):
    places = [0.6 + speed * (frame - 6) for frame in range(13)]
    pose = make_pose(13, right=[(hand(), -x - 0.4j) for x in places], left=[(hand(), x - 0.4j) for x in places])
    assert words(pose, 6)["parting"] == word


def test_head_and_mouth():
    plain = make_pose()
    assert not {"turn", "tilt", "nod", "mouth"} & set(words(plain))
    for rows, shift, column, word in (
        ([53], [0.1, 0], "turn", "turned to the left"),
        ([53], [-0.1, 0], "turn", "turned to the right"),
        (range(65, 71), [0, 0.06], "tilt", "tilted to the left"),
        (range(88, 91), [0, 0.06], "mouth", "Mouth open"),
        (range(88, 91), [0, 0.16], "mouth", "Mouth wide open"),
    ):
        pose = make_pose()
        pose.keypoints[:, list(rows)] += np.array(shift) * UNIT
        assert words(pose)[column] == word
    pose = make_pose(12)
    pose.keypoints[8:, 53, 1] += 0.08 * UNIT
    assert words(pose, 10)["nod"] == "lowered"


# -- what is not seen ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("low", [0.3, np.nan])
def test_low_scores_are_not_talked_about(low):
    pose = make_pose(right=(hand(), -0.5 - 0.4j), left=(hand(), 0.5 - 0.4j))
    everything = set(words(pose))
    for points, gone in (
        (range(112, 133), "right"),
        (range(91, 112), "left"),
        (range(23, 91), ""),
        ([5], ""),
    ):
        hidden = Pose(pose.keypoints.copy(), pose.scores.copy())
        hidden.scores[:, list(points)] = low
        hidden.keypoints[:, list(points)] = np.random.default_rng(0).normal(size=(len(list(points)), 2))
        said = set(words(hidden))
        assert said <= everything
        assert not gone or not any(column.startswith(gone) for column in said)
    hidden.scores[:] = 0
    assert not words(hidden)


@pytest.mark.filterwarnings("error")
def test_a_point_at_the_end_of_the_world_is_no_news():
    pose = make_pose(right=(hand(), -0.5 - 0.4j), left=(hand(), 0.5 - 0.4j))
    pose.keypoints[:, 112:133] = 1e30
    said = words(pose)
    assert not any(column.startswith("right") for column in said)
    assert "left height" in said


def test_a_hand_out_of_reach_is_no_hand():
    assert "right height" in words(make_pose(right=(hand(), -2.5 + 0j)))
    assert not any(column.startswith("right") for column in words(make_pose(right=(hand(), -3 + 0j))))


def test_no_place_without_shoulders_but_a_handshape():
    pose = make_pose(right=(hand("FEFFF"), -0.5 - 0.4j), head=None)
    pose.scores[:, [5, 6]] = 0
    said = words(pose)
    assert said["right index"] == "extended"
    assert not {"right height", "right side", "right speed", "mirror"} & set(said)


# -- invariance ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clips():
    rng = np.random.default_rng(3)
    made = []
    for n_frames in (1, 2, 9, 30, 57):
        path = np.cumsum(0.04 * (rng.normal(size=n_frames) + 1j * rng.normal(size=n_frames))) - 0.4 - 0.3j
        shapes = rng.choice(["EEEEE", "FEFFF", "FFFFF"], n_frames)
        right = [(hand(shape), place) for shape, place in zip(shapes, path, strict=True)]
        made.append(make_pose(n_frames, right=right, left=(hand(), 0.4 - 0.4j)))
        made[-1].scores[rng.random(made[-1].scores.shape) < 0.02] = 0
    return made


def test_size_and_place_in_the_picture_do_not_matter(clips):
    for clip in clips:
        moved = Pose(clip.keypoints * 0.5 + np.float32(0.125), clip.scores)
        same = (posecodes(moved) == posecodes(clip)).mean()
        assert same > 0.999  # a measure that lies on a threshold may round to its other side


def test_a_person_who_lies_on_the_side_is_set_upright(clips):
    lying = Pose(np.stack([clips[3].keypoints[..., 1], 1 - clips[3].keypoints[..., 0]], -1), clips[3].scores)
    assert (posecodes(lying) == posecodes(clips[3])).mean() > 0.999


def test_a_mirrored_signer_swaps_hands_and_sides():
    pose = make_pose(right=(hand("FEFFF", -70), -0.5 - 0.4j))
    swap = np.arange(133)
    swap[[5, 6]] = [6, 5]
    swap[91:133] = np.concatenate([np.arange(112, 133), np.arange(91, 112)])
    swap[23:40] = swap[23:40][::-1]
    mirrored = Pose((pose.keypoints * [-1, 1] + [1, 0])[:, swap].astype(np.float32), pose.scores[:, swap])
    there, here = words(pose), words(mirrored)
    assert (there["right side"], there["right pointing"], there["right palm"]) == (
        "on the right",
        "left",
        "palm to the camera",
    )
    assert (here["left side"], here["left pointing"], here["left palm"]) == (
        "on the left",
        "right",
        "palm to the camera",
    )


def test_the_aspect_of_the_picture():
    """A square picture of a scene and a wide one of the same scene say the same, once the aspect is known."""
    pose = make_pose(right=(hand("FEFFF", 30), -0.5 - 0.4j))
    wide = Pose((pose.keypoints * [0.5, 1] + [0.25, 0]).astype(np.float32), pose.scores)
    np.testing.assert_array_equal(posecodes(wide, aspect=2.0), posecodes(pose))
    assert (posecodes(wide) != posecodes(pose)).any()


def test_short_changes_are_noise():
    shapes = ["FEFFF"] * 10 + ["FFFFF"] * (HOLD - 1) + ["FEFFF"] * 10 + ["FFFFF"] * HOLD + ["FEFFF"] * 10
    pose = make_pose(len(shapes), right=[(hand(shape), -0.5 - 0.4j) for shape in shapes])
    index = posecodes(pose)[:, COLUMNS.index("right index")]
    assert (index == 1).nonzero()[0].tolist() == list(range(20 + HOLD - 1, 20 + 2 * HOLD - 1))


def test_rules_are_well_formed():
    for name, (measured, steps) in RULES.items():
        starts = [step.start for step in steps]
        assert starts[0] == -np.inf, name
        assert starts == sorted(set(starts)), name
        assert measured, name
        assert all(bool(step.en) == bool(step.zh) for step in steps), name
