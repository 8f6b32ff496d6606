"""The sample corpus' body: what makes it look like a person before a detector, and that it stays as it is."""

import numpy as np
import pytest

from synthetic import signer as sample_signer
from synthetic.corpus import SIGNS
from synthetic.signer import Form, Signer, record

FORMS = [
    Form("point", "chest", "up", "up", "one"),
    Form("five", "cheek", "out", "back", "mirror"),
    Form("claw", "belly", "circle", "side", "base"),
]


def signer(seed: int = 0) -> Signer:
    return Signer.draw(np.random.default_rng(seed))


def recordings(n: int = 40):
    for seed in range(n):
        person = signer(seed % 10)
        yield person, record(FORMS, person, np.random.default_rng(seed))


def test_every_sign_is_signed_as_ever():
    """Numbers that follow from all handshapes, places, movements and directions: published results rest on them."""
    forms = [sign.form for sign in SIGNS.values()]
    made = [record(forms[i : i + 4], signer(i), np.random.default_rng(i)) for i in range(0, 60, 4)]
    sums = []
    for field in ("keypoints", "scores", "sign", "settled"):
        values = np.concatenate([getattr(recording, field) for recording in made]).astype(float).ravel()
        sums.append((values * (np.arange(len(values)) % 97 - 48)).sum())
    assert sums == pytest.approx([-383.0325, -1187.9391, -2629, -679], abs=0.01)


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
