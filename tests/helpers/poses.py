"""Hand-made poses, and poses as other programs write them."""

import numpy as np
import pytest

from pose.keypoints import Pose

UNIT = 0.2  # width of the shoulders in the pictures made here
MIDDLE = np.array([0.5, 0.45])  # of the shoulders
KNUCKLES = np.array([0.09 + 0.26j, 0.03 + 0.27j, -0.03 + 0.26j, -0.09 + 0.24j])
JOINTS = {  # from a knuckle on, of a finger that points up
    "extended": np.array([0.09j, 0.15j, 0.2j]),
    "bent": np.array([0.08j, 0.03 + 0.12j, 0.07 + 0.11j]),
    "folded": np.array([0.07j, 0.01 + 0.02j, 0.01 - 0.03j]),
}
THUMB = {
    "extended": np.array([0.06 + 0.06j, 0.11 + 0.12j, 0.2 + 0.16j, 0.28 + 0.2j]),
    "folded": np.array([0.06 + 0.06j, 0.11 + 0.12j, 0.09 + 0.18j, 0.03 + 0.22j]),
}


def hand(shape="EEEEE", turn=0.0, back=False, spread=0.0):
    """The 21 points of a right hand, palm to the viewer, fingers up, wrist at 0; E, B, F from the thumb on."""
    names = dict(zip("EBF", ("extended", "bent", "folded"), strict=True))
    points = [0, *THUMB[names[shape[0]]]]
    for number, (knuckle, letter) in enumerate(zip(KNUCKLES, shape[1:], strict=True)):
        points += [knuckle, *(knuckle + JOINTS[names[letter]] * np.exp(1j * np.radians(spread * (number - 1.5))))]
    points = np.array(points)
    return (-points.conj() if back else points) * np.exp(1j * np.radians(turn))


def face():
    """The 68 points of a face with the tip of the nose at 0; the chin lies 0.35 below it, the brows 0.2 above."""
    jaw = -0.25 * np.cos(np.linspace(0, np.pi, 17)) + 1j * (0.1 - 0.45 * np.sin(np.linspace(0, np.pi, 17)))
    brows = np.concatenate([np.linspace(-0.18, -0.05, 5), np.linspace(0.05, 0.18, 5)]) + 0.2j
    nose = np.array([0.1j, 0.07j, 0.03j, 0, *(np.linspace(-0.05, 0.05, 5) - 0.04j)])
    eyes = np.concatenate([x + 0.04 * np.exp(1j * np.radians(np.arange(180, -180, -60))) for x in (-0.1, 0.1)]) + 0.12j
    lips = 0.1 * np.exp(1j * np.radians(np.arange(180, -180, -30))) - 0.18j
    inner = np.array([-0.08, -0.05, 0, 0.05, 0.08, 0.05, 0, -0.05]) - 0.18j
    return np.concatenate([jaw, brows, nose, eyes, lips, inner])


def make_pose(n_frames=7, right=None, left=None, scores=None, head=0.62j):
    """A clip: `right` and `left` are (hand of `hand()`, where its palm is), or a list of these, one per frame."""
    points = np.zeros((n_frames, 133), complex)
    found = np.zeros((n_frames, 133))
    points[:, [5, 6]], found[:, [5, 6]] = [0.5, -0.5], 1
    if head is not None:
        points[:, 23:91], found[:, 23:91] = face() + head, 1
    for first, given in ((112, right), (91, left)):
        for frame in range(n_frames if given else 0):
            shape, place = given[frame] if isinstance(given, list) else given
            shape = shape if first == 112 else -shape.conj()
            points[frame, first : first + 21] = shape - shape[[0, 5, 9, 13, 17]].mean() + place
            found[frame, first : first + 21] = 1
    keypoints = np.stack([points.real, -points.imag], -1) * UNIT + MIDDLE
    keypoints[found == 0] = 0
    return Pose(keypoints.astype(np.float32), (found * 0.9).astype(np.float32))


def write_pose(path, components, data, confidence, size=(640, 480), dims="XYC"):
    """Write with the library. components: name -> points; data (F, P, N, 2 or 3) in pixels."""
    library = pytest.importorskip("pose_format", reason="needs the extra pose")
    from pose_format.numpy import NumPyPoseBody
    from pose_format.pose_header import PoseHeader, PoseHeaderComponent, PoseHeaderDimensions

    header = PoseHeader(
        0.2,
        PoseHeaderDimensions(*size, 0),
        [PoseHeaderComponent(name, points, [], [], dims) for name, points in components.items()],
    )
    with open(path, "wb") as file:
        library.Pose(header, NumPyPoseBody(25, data, confidence)).write(file)
    return path
