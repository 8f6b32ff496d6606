"""The sample corpus' body: what makes it look like a person before a detector, and that it stays as it is."""

import numpy as np
import pytest

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


def test_left_is_the_signers_left():
    for _, recording in recordings(10):
        k = recording.keypoints
        for left, right in ((1, 2), (3, 4), (5, 6), (7, 8), (11, 12)):
            assert (k[:, left, 0] > k[:, right, 0]).all()
        assert (k[:, 23, 0] < k[:, 39, 0]).all()  # the jaw runs from the right ear to the left one
        assert (k[:, 0, 1] < k[:, 5, 1]).all()  # y points down
        np.testing.assert_allclose(k[:, 0], k[:, 53], atol=0.03)  # nose of the body and of the face
