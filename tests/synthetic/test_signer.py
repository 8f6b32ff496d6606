"""The sample corpus' body: geometry by hand, and what makes it look like a person before a detector."""

import numpy as np
import pytest

from synthetic import signer as sample_signer
from synthetic.signer import FINGERS, HANDSHAPES, LEFT, MOVEMENTS, PLACES, RIGHT, Form, Signer, record

FORMS = [
    Form("point", "chest", "up", "up", "one"),
    Form("five", "cheek", "out", "back", "mirror"),
    Form("claw", "belly", "circle", "side", "base"),
]


def signer(seed: int = 0) -> Signer:
    return Signer.draw(np.random.default_rng(seed))


def hand(handshape: str, *, roll: float = 0, pitch: float = 0, twist: float = 0) -> np.ndarray:
    """One hand at the origin, 1 long, (21, 2)."""
    person = signer()
    parameters = np.array([0, 0, *HANDSHAPES[handshape], roll, pitch, twist], float)
    points = sample_signer._hand_points(np.tile(parameters, (1, 2, 1)), person)[0, RIGHT]
    return points / person.hand


def recordings(n: int = 40):
    for seed in range(n):
        person = signer(seed % 10)
        yield person, record(FORMS, person, np.random.default_rng(seed))


def test_a_straight_middle_finger_is_as_long_as_its_bones():
    points = hand("flat")
    assert np.allclose(points[9], 0)  # the middle knuckle is where the place says
    np.testing.assert_allclose(np.linalg.norm(points[12]), 0.26 + 0.16 + 0.12)
    np.testing.assert_allclose(points[0], [0.04, -0.48])


def test_the_palm_towards_the_viewer_has_the_thumb_inside():
    palm, back = hand("five"), hand("five", twist=np.pi)
    assert palm[4, 0] < palm[0, 0] < palm[20, 0]
    np.testing.assert_allclose(back[:, 0] - back[0, 0], -(palm[:, 0] - palm[0, 0]), atol=1e-12)
    np.testing.assert_allclose(back[:, 1], palm[:, 1], atol=1e-12)


def test_fingers_rolled_by_a_quarter_point_to_the_other_side():
    up, side = hand("flat"), hand("flat", roll=np.pi / 2)
    np.testing.assert_allclose(side, np.stack([-up[:, 1], up[:, 0]], 1), atol=1e-12)


def test_a_finger_pointing_at_the_viewer_is_a_dot():
    points = hand("flat", pitch=np.pi / 2)
    np.testing.assert_allclose(points[[0, 9, 12], 1], 0, atol=1e-12)


def test_bent_fingers_end_nearer_to_the_wrist():
    reach = {shape: np.linalg.norm(hand(shape)[[8, 12, 16, 20]] - hand(shape)[0], axis=1) for shape in HANDSHAPES}
    assert (reach["fist"] < 0.6 * reach["flat"]).all()
    assert reach["point"][0] == pytest.approx(reach["flat"][0], rel=0.02)
    assert (reach["point"][1:] < 0.6 * reach["flat"][1:]).all()
    assert (reach["claw"] < 0.95 * reach["five"]).all()


def test_projection_never_lengthens_a_bone():
    rng = np.random.default_rng(0)
    person = signer()
    parameters = np.zeros((50, 2, 12))
    parameters[..., 2:9] = rng.uniform(0, 1, (50, 2, 7))
    parameters[..., 9:] = rng.uniform(-3, 3, (50, 2, 3))
    points = sample_signer._hand_points(parameters, person)
    fingers = points[:, :, 5:].reshape(50, 2, 4, 4, 2)
    bones = np.linalg.norm(np.diff(fingers, axis=3), axis=-1)
    assert (bones <= person.hand * sample_signer._SEGMENTS + 1e-12).all()


def test_arms_keep_their_lengths():
    person = signer()
    wrists = np.random.default_rng(0).uniform(-0.6, 0.9, (200, 2, 2))
    elbows = sample_signer._elbows(wrists, person)
    upper, fore = person.arm * np.array(sample_signer._ARM)
    assert (np.linalg.norm(elbows - [0.5, 0], axis=-1) <= upper + 1e-9).all()
    within = np.hypot(np.linalg.norm(wrists - [0.5, 0], axis=-1), 0.4) < 0.99 * (upper + fore)
    assert (np.linalg.norm(elbows - wrists, axis=-1)[within] <= fore + 1e-9).all()


def test_hands_hang_on_wrists():
    gaps = []
    for person, recording in recordings():
        k, found = recording.keypoints, recording.scores
        for hand_wrist, wrist in ((91, 9), (112, 10)):
            seen = found[:, hand_wrist : hand_wrist + 21].mean(1) > 0.3
            gaps.append(np.linalg.norm(k[:, hand_wrist] - k[:, wrist], axis=1)[seen] / person.shoulders)
    gaps = np.concatenate(gaps)
    assert np.quantile(gaps, 0.95) < 0.13  # of the shoulders' distance, as in real poses
    assert np.median(gaps) > 0.005  # but two detections


def test_left_is_the_signers_left():
    for _, recording in recordings(10):
        k = recording.keypoints
        for left, right in ((1, 2), (3, 4), (5, 6), (7, 8), (11, 12)):
            assert (k[:, left, 0] > k[:, right, 0]).all()
        assert (k[:, 23, 0] < k[:, 39, 0]).all()  # the jaw runs from the right ear to the left one
        assert (k[:, 0, 1] < k[:, 5, 1]).all()  # y points down
        np.testing.assert_allclose(k[:, 0], k[:, 53], atol=0.03)  # nose of the body and of the face


def test_only_the_right_hand_moves_in_a_one_handed_sign():
    person = signer()
    k = record([Form("fist", "brow", "hold", "up", "one")], person, np.random.default_rng(1)).keypoints
    middle = len(k) // 2
    assert k[middle, 112, 1] < k[middle, 6, 1] - 0.1  # above the shoulder
    assert k[middle, 91, 1] > k[middle, 5, 1] + 0.2  # at rest


def test_both_hands_do_the_same_in_a_mirrored_sign():
    form = Form("five", "side", "hold", "up", "mirror")
    done = np.linspace(0, 1, 5)
    aims = sample_signer._aim(form, done, signer())
    np.testing.assert_array_equal(aims[:, RIGHT], aims[:, LEFT])


@pytest.mark.parametrize(("movement", "axis", "sign"), [("up", 1, 1), ("down", 1, -1), ("out", 0, 1), ("in", 0, -1)])
def test_movements_go_where_they_say(movement, axis, sign):
    aims = sample_signer._aim(Form("flat", "chest", movement, "up", "one"), np.array([0.0, 1.0]), signer())
    moved = aims[1, RIGHT, :2] - aims[0, RIGHT, :2]
    assert sign * moved[axis] == pytest.approx(0.5 * signer().reach)
    assert moved[1 - axis] == 0


def test_a_hand_opens_and_turns():
    def aims(movement, done):
        form = Form("vee", "chest", movement, "up", "one")
        return sample_signer._aim(form, np.array(done), signer())[:, RIGHT]

    closed, opened = aims("open", [0.0, 1.0])
    np.testing.assert_array_equal(closed[2:7], 1)
    np.testing.assert_array_equal(opened[2:7], HANDSHAPES["vee"][:5])
    there, back = aims("twist", [0.25, 0.75])
    np.testing.assert_allclose([there[11], back[11]], FINGERS["up"][2] + np.array([1, -1]))


def test_a_base_lies_below_the_right_hand():
    aims = sample_signer._aim(Form("fist", "chest", "tap", "up", "base"), np.linspace(0, 1, 3), signer())
    np.testing.assert_allclose(aims[:, LEFT, :2], np.tile([0, PLACES["chest"][1] - 0.35], (3, 1)))
    np.testing.assert_array_equal(aims[:, LEFT, 2:9], np.tile(HANDSHAPES["flat"], (3, 1)))


def test_the_fingers_run_ahead_of_the_wrist(monkeypatch):
    """Between two signs, by 0.8 frames: the area between the two courses from 0 to 1."""
    monkeypatch.setattr(sample_signer, "_JITTER", 0)
    forms = [Form("fist", "chest", "hold", "up", "one"), Form("five", "brow", "hold", "up", "one")]
    for seed in range(5):
        track, *_ = sample_signer._track(forms, signer(seed), np.random.default_rng(seed))
        wrist, finger = ((x - x[0]) / (x[-1] - x[0]) for x in (track[:, RIGHT, 1], track[:, RIGHT, 3]))
        assert (finger >= wrist - 1e-12).all()
        assert (finger - wrist).sum() == pytest.approx(0.8, abs=0.05)


def test_a_detector_is_less_sure_of_hands_that_move_or_rest():
    falls, rests = [], []
    for seed in range(10):
        form = Form("fist", "chest", "hold", "up", "one")
        recording = record([form], signer(seed), np.random.default_rng(seed))
        left, right = (recording.scores[:, hand : hand + 21].mean(1) for hand in (91, 112))
        held, on_the_way = recording.settled & (recording.sign == 0), ~recording.settled & (recording.sign == 0)
        falls.append(np.median(right[held]) - right[on_the_way].min())
        rests.append(np.median(right[held]) - np.median(left))
    assert np.median(rests) == pytest.approx(0.3, abs=0.05)
    assert np.median(falls) > 0.1


def test_signs_follow_each_other_in_order():
    for _, recording in recordings(10):
        sign = recording.sign
        assert (np.diff(sign) >= 0).all()
        assert set(range(len(FORMS))) <= set(sign) <= set(range(-1, len(FORMS) + 1))
        assert all(recording.settled[sign == i].any() for i in range(len(FORMS)))


def test_one_rendition_is_one_stream_of_numbers():
    first, second, other = (record(FORMS, signer(), np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.keypoints, second.keypoints)
    assert first.keypoints.shape != other.keypoints.shape or not np.array_equal(first.keypoints, other.keypoints)


def test_movement_is_smooth():
    steps = np.concatenate([np.abs(np.diff(r.keypoints[:, 9:11], axis=0)).ravel() for _, r in recordings()])
    assert steps.max() < 0.25
    assert np.median(steps) < 0.02


def test_scores_look_like_a_detectors():
    lost = []
    for _, recording in recordings():
        scores = recording.scores
        assert scores.min() >= 0
        assert scores.max() <= 1
        assert scores[:, :11].min() > 0.5
        assert scores[:, 13:23].max() < 0.3  # legs below the picture
        lost += [scores[:, 91:112].mean(1) < 0.3, scores[:, 112:].mean(1) < 0.3]
    assert 0.01 < np.concatenate(lost).mean() < 0.15


def test_a_lost_hand_is_low_and_astray_and_nothing_else_is():
    points, scores = np.zeros((30, 133, 2)), np.ones((30, 133))
    sample_signer._lose_a_hand(points, scores, np.random.default_rng(0))
    low = scores < 0.3
    frames, joints = np.where(low)
    assert 1 <= np.ptp(frames) + 1 <= 4
    assert set(joints) in (set(range(91, 112)), set(range(112, 133)))
    assert low.sum() == 21 * (np.ptp(frames) + 1)
    np.testing.assert_array_equal((points != 0).any(-1), low)


def test_tables_fit_together():
    assert {len(shape) for shape in HANDSHAPES.values()} == {7}
    assert {len(place) for place in PLACES.values()} == {2}
    assert {len(angles) for angles in FINGERS.values()} == {3}
    assert {len(move(np.array([0.5]))) for move in MOVEMENTS.values()} == {4}
    assert sample_signer._FACE.shape == (68, 2)
    assert sample_signer._SCORES.shape == (133,)
