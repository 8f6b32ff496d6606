"""Body model of the sample corpus: converts forms of signs to COCO-WholeBody-133 keypoints.

Body units: 1 is the distance between the shoulders, the origin is midway between them, y points up. Each hand is
computed in its own coordinates, where x points outwards, to the hand's side, so that both hands use the same numbers.
Hand 0 is the right one, hand 1 the left one. Shapes: S signs, T frames.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

RIGHT, LEFT = 0, 1

# The parts of a form, each in the words of a description and in numbers.
# Bend of thumb, index, middle, ring and little finger (0 straight, 1 rolled in), spread, hook (1: the knuckles stay
# straight).
HANDSHAPES = {
    "flat": ("五指并拢伸直", (0.4, 0, 0, 0, 0, 0, 0)),
    "five": ("五指张开", (0, 0, 0, 0, 0, 1, 0)),
    "fist": ("握拳", (0.9, 1, 1, 1, 1, 0, 0)),
    "point": ("食指伸直，其余手指弯曲", (0.9, 0, 1, 1, 1, 0, 0)),
    "vee": ("食指和中指伸直并分开", (0.9, 0, 0, 1, 1, 1, 0)),
    "thumb": ("拇指伸直，其余手指握起", (0, 1, 1, 1, 1, 0, 0)),
    "little": ("小指伸直，其余手指握起", (0.9, 1, 1, 1, 0, 0, 0)),
    "horns": ("拇指和小指伸直，中间三指弯曲", (0, 1, 1, 1, 0, 1, 0)),
    "ell": ("拇指和食指伸直成直角", (0, 0, 1, 1, 1, 0.3, 0)),
    "ring": ("拇指和食指捏成圆圈，其余手指伸直", (0.6, 0.6, 0, 0, 0, 0.7, 0.4)),
    "claw": ("五指弯曲成爪状", (0.3, 0.6, 0.6, 0.6, 0.6, 1, 1)),
    "hook": ("食指弯曲如钩，其余手指握起", (0.9, 0.7, 1, 1, 1, 0, 0.8)),
    "three": ("食指、中指、无名指伸直", (0.9, 0, 0, 0, 1, 0.6, 0)),
    "rest": ("", (0.3, 0.4, 0.4, 0.4, 0.4, 0.2, 0)),
}
PLACES = {  # position of the middle knuckle
    "brow": ("额头前", (0.12, 0.95)),
    "temple": ("太阳穴旁", (0.4, 0.8)),
    "cheek": ("脸颊旁", (0.32, 0.5)),
    "chin": ("下巴前", (0.1, 0.3)),
    "neck": ("颈部前", (0.14, 0.05)),
    "shoulder": ("对侧肩部前", (-0.35, -0.1)),
    "chest": ("胸前", (0.2, -0.4)),
    "side": ("身体外侧", (0.75, -0.3)),
    "belly": ("腹部前", (0.25, -0.85)),
    "rest": ("", (0.22, -1.4)),
}
FINGERS = {  # roll towards the other side, pitch towards the viewer, twist of the palm away from the viewer; radians
    "up": ("指尖朝上", (0.1, 0.2, 0.2)),
    "back": ("指尖朝上，手背朝外", (0.2, 0.2, 2.9)),
    "side": ("指尖朝向另一侧", (1.4, 0.1, 1.3)),
    "forward": ("手指沿前后方向", (0.3, 1.1, 1.2)),
    "rest": ("", (1.2, 0.4, 1.8)),
}
# Progress of the stroke, 0 to 1 -> offsets of x, y, finger bends, and twist.
MOVEMENTS: dict[str, tuple[str, Callable[[np.ndarray], tuple]]] = {
    "hold": ("保持静止", lambda u: (0, 0, 0, 0)),
    "up": ("向上移动", lambda u: (0, 0.5 * (u - 0.5), 0, 0)),
    "down": ("向下移动", lambda u: (0, -0.5 * (u - 0.5), 0, 0)),
    "out": ("向外侧移动", lambda u: (0.5 * (u - 0.5), 0, 0, 0)),
    "in": ("向内侧移动", lambda u: (-0.5 * (u - 0.5), 0, 0, 0)),
    "arc": ("沿弧线向外移动", lambda u: (0.5 * (u - 0.5), 0.25 * np.sin(np.pi * u), 0, 0)),
    "circle": ("画圆圈", lambda u: (0.18 * np.cos(2 * np.pi * u), 0.18 * np.sin(2 * np.pi * u), 0, 0)),
    "wave": ("左右摆动", lambda u: (0.2 * np.sin(2 * np.pi * u), 0, 0, 0)),
    "tap": ("轻点一下", lambda u: (0, -0.2 * np.sin(np.pi * u), 0, 0)),
    "twist": ("转动手腕", lambda u: (0, 0, 0, np.sin(2 * np.pi * u))),
    "open": ("由握拳变为张开", lambda u: (0, 0, 1 - u, 0)),
}

# A hand at one moment: x, y | 5 bends, spread, hook | roll, pitch, twist.
_N = 12
_POSITION, _BENDS, _ANGLES = slice(0, 2), slice(2, 7), slice(9, 12)
_JITTER = np.array([0.04, 0.04, *[0.06] * 5, 0.1, 0.05, 0.1, 0.1, 0.1])  # variation between renditions of a sign
_LEAD = np.array([0.0] * 2 + [0.8] * 7 + [0.4] * 3)  # frames by which fingers and palm precede the wrist

# A hand with straight fingers; 1 is about its length. Palm towards +z (the viewer), thumb towards -x.
_KNUCKLES = np.array([[-0.14, 0.46], [-0.04, 0.48], [0.06, 0.46], [0.15, 0.41]])  # of the four fingers
_SEGMENTS = np.array([[0.24, 0.14, 0.11], [0.26, 0.16, 0.12], [0.24, 0.15, 0.11], [0.19, 0.11, 0.1]])
_FAN = np.array([-0.28, -0.08, 0.12, 0.34])  # radians at full spread
_JOINT_BEND = np.array([1.5, 1.75, 1.1])  # radians of a rolled-in finger
_THUMB = np.array([0.13, 0.19, 0.16, 0.13])  # wrist to the first joint, and on to the tip

_ARM = (0.9, 0.8)  # upper arm, forearm
_HAND_DEPTH = 0.4  # distance of the hands in front of the shoulders
_ELBOW_WISH = np.array([0.5, -1.0, 0.2])  # preferred elbow direction: out, down, slightly forward

# Head: relative to the tip of the nose, x towards the signer's left (the right of the picture).
_RING = np.linspace(np.pi, -np.pi, 13)[:12]  # from the picture's left over the top
_JAW = np.linspace(0, np.pi, 17)
_FACE = np.concatenate(
    [
        np.stack([-0.25 * np.cos(_JAW), 0.1 - 0.375 * np.sin(_JAW)], 1),
        *[np.stack([x + np.linspace(-0.07, 0.07, 5), 0.19 + 0.02 * np.sin(_JAW[::4])], 1) for x in (-0.12, 0.12)],
        np.stack([np.zeros(4), np.linspace(0.12, 0, 4)], 1),
        np.stack([np.linspace(-0.05, 0.05, 5), -0.04 - 0.01 * np.sin(_JAW[::4])], 1),
        *[np.stack([x + 0.045 * np.cos(_RING[::2]), 0.12 + 0.018 * np.sin(_RING[::2])], 1) for x in (-0.105, 0.105)],
        np.stack([0.095 * np.cos(_RING), -0.12 + 0.035 * np.sin(_RING)], 1),
        np.stack([0.075 * np.cos(np.arange(8) * -np.pi / 4 + np.pi), np.full(8, -0.12)], 1),
    ]
)  # (68, 2)
_MOUTH_OPENING = np.zeros(68)  # how far each point moves up when the mouth opens by 1
_MOUTH_OPENING[48:60] = np.sin(_RING)
_MOUTH_OPENING[60:] = np.sin(np.arange(8) * -np.pi / 4 + np.pi)
_HEAD = np.array([[0, 0], [0.09, 0.12], [-0.09, 0.12], [0.23, 0.09], [-0.23, 0.09]])  # nose, eyes, ears
_TRUNK = np.array([[0.5, 0], [-0.5, 0]])  # shoulders, left first
_LEGS = np.array(
    [[0.35, -1.5], [-0.35, -1.5], [0.4, -2.6], [-0.4, -2.6], [0.4, -3.7], [-0.4, -3.7]]  # hips, knees, ankles
    + [[0.45, -3.9], [0.5, -3.9], [0.38, -3.8], [-0.45, -3.9], [-0.5, -3.9], [-0.38, -3.8]]  # toes and heels
)
_SCORES = np.array(
    [0.95] * 5 + [0.93] * 2 + [0.9] * 2 + [0.88] * 2 + [0.6] * 2 + [0.15] * 2 + [0.06] * 8 + [0.92] * 68 + [0.86] * 42
)


class Form(NamedTuple):
    """The visible form of a sign; `hands` is one, mirror or base (the left hand lies flat below the right)."""

    handshape: str
    place: str
    movement: str
    fingers: str
    hands: str


_REST = Form("rest", "rest", "hold", "rest", "mirror")


@dataclass(frozen=True)
class Signer:
    """A person in front of a camera. Lengths are in body units."""

    shoulders: float  # their distance (one body unit) relative to the image size
    centre: tuple[float, float]  # x and y of the point between the shoulders, relative to the image size
    head: float  # scale factor
    arm: float  # scale factor of the arms' length
    hand: float  # length
    nose: float  # height of its tip above the shoulders
    tempo: float  # factor of a sign's duration in frames
    reach: float  # scale factor of movements
    lax: float  # degree of relaxation towards a half-bent hand, 0 to 1
    habit: np.ndarray  # (2,), constant offset from a sign's place

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Signer:
        """Draw a random person."""
        return cls(
            shoulders=rng.uniform(0.24, 0.3),
            centre=(rng.uniform(0.46, 0.54), rng.uniform(0.4, 0.46)),
            head=rng.uniform(0.9, 1.1),
            arm=rng.uniform(0.93, 1.07),
            hand=rng.uniform(0.44, 0.54),
            nose=rng.uniform(0.5, 0.6),
            tempo=rng.uniform(0.85, 1.15),
            reach=rng.uniform(0.85, 1.15),
            lax=rng.uniform(0, 0.25),
            habit=rng.normal(0, 0.05, 2),
        )


@dataclass(frozen=True)
class Recording:
    """A signed clip."""

    keypoints: np.ndarray  # (T, 133, 2) float32, x and y relative to the image, in [0, 1]
    scores: np.ndarray  # (T, 133) float32 in [0, 1]
    sign: np.ndarray  # (T,), index of the current or next sign; -1 before the first, S after the last
    settled: np.ndarray  # (T,), whether that sign is being performed, not approached


def record(forms: Sequence[Form], signer: Signer, rng: np.random.Generator) -> Recording:
    """Let a signer make S signs in order, and simulate the errors of a keypoint detector."""
    hands, sign, settled = _track([_REST, *forms, _REST], signer, rng)  # (T, 2, 12)
    n_frames = len(hands)
    points = np.empty((n_frames, 133, 2))
    own_hands = _hand_points(hands, signer)  # (T, 2, 21, 2)
    wrists = own_hands[:, :, 0]
    # The body's wrist is detected separately, near the hand's wrist.
    body_wrists = wrists + 0.025 * _drift(rng, n_frames, (2, 2))
    to_picture = np.array([[-1, 1], [1, 1]])  # the right hand is on the left of the image
    arms = np.stack([_elbows(wrists, signer), body_wrists], 1) * to_picture  # (T, elbow or wrist, hand, 2)
    points[:, [8, 7, 10, 9]] = arms.reshape(n_frames, 4, 2)
    points[:, 91:112] = own_hands[:, LEFT]
    points[:, 112:] = own_hands[:, RIGHT] * to_picture[RIGHT]
    points[:, 5:7], points[:, 11:23] = _TRUNK, _LEGS
    nose = [0, signer.nose] + 0.025 * _drift(rng, n_frames, (1, 2))
    opening = 0.03 * _drift(rng, n_frames, (1,)) ** 2
    points[:, :5] = nose + signer.head * _HEAD
    points[:, 23:91] = nose + signer.head * _FACE
    points[:, 23:91, 1] += opening * _MOUTH_OPENING
    points += 0.02 * _drift(rng, n_frames, (1, 2))

    scores = _SCORES - np.abs(rng.normal(0, 0.04, (n_frames, 133)))
    speed = np.linalg.norm(np.gradient(wrists, axis=0), axis=-1)  # (T, 2) body units per frame
    down = np.clip((-0.9 - wrists[..., 1]) / 0.4, 0, 1)  # at rest the hands occlude each other
    loss = np.minimum(0.35, speed) + 0.3 * down + 0.5 * (rng.random((n_frames, 2)) < 0.02)
    scores[:, 91:112] -= loss[:, LEFT, None]
    scores[:, 112:] -= loss[:, RIGHT, None]
    points += rng.normal(0, 0.006, points.shape) * (1 + 3 * (1 - scores[..., None]))
    if rng.random() < 0.25:
        _lose_a_hand(points, scores, rng)

    image = np.array(signer.centre) + rng.normal(0, 0.01, 2) + signer.shoulders * points * [1, -1]
    return Recording(
        np.clip(image, 0, 1).astype(np.float32), np.clip(scores, 0.01, 1).astype(np.float32), sign, settled
    )


def _track(
    forms: Sequence[Form], signer: Signer, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return both hands' parameters over time, (T, 2, 12), and `sign` and `settled` of `Recording`."""
    n = len(forms)
    strokes, changes = rng.uniform(3.5, 6, n), rng.uniform(2, 3.5, n - 1)
    strokes[[0, -1]] = rng.uniform(0.5, 2.5, 2)
    lengths = signer.tempo * np.insert(strokes, np.arange(1, n), changes)
    n_frames = int(np.clip(round(lengths.sum()), 20, 60))
    times = np.cumsum(lengths) * n_frames / lengths.sum()
    ends, begins = times[::2], np.append(0, times[1::2])
    frames = np.arange(n_frames) + 0.5

    # Progress of the change to the next sign, per parameter, since the fingers lead: (n - 1, T, 12)
    done = (frames[:, None] + _LEAD - ends[:-1, None, None]) / (begins[1:] - ends[:-1])[:, None, None]
    done = np.clip(done, 0, 1)
    done = done * done * (3 - 2 * done)
    steps = np.concatenate([np.ones((1, n_frames, _N)), done, np.zeros((1, n_frames, _N))])
    weights = steps[:-1] - steps[1:]  # (n, T, 12), sums to 1 over the signs

    targets = np.stack(
        [_aim(form, (frames - b) / (e - b), signer) for form, b, e in zip(forms, begins, ends, strict=True)]
    )  # (n, T, 2, 12)
    targets += rng.normal(0, 1, (n, 1, 2, _N)) * _JITTER
    track = (weights[:, :, None] * targets).sum(0)  # (T, 2, 12)
    padded = np.concatenate([track[:1], track, track[-1:]])
    track = 0.25 * padded[:-2] + 0.5 * padded[1:-1] + 0.25 * padded[2:]
    track[..., _BENDS] = np.clip(track[..., _BENDS] * (1 - signer.lax) + 0.4 * signer.lax, 0, 1)

    sign = np.searchsorted(ends, frames) - 1
    return track, sign, frames >= begins[sign + 1]


def _aim(form: Form, done: np.ndarray, signer: Signer) -> np.ndarray:
    """Return both hands' target parameters in a sign, (T, 2, 12); `done`, (T,), is the progress of its stroke."""
    right = np.zeros((len(done), _N))
    right[:] = _numbers(form.place, form.handshape, form.fingers)
    if form.hands == "mirror":
        right[:, 0] += 0.12
    left = right.copy() if form.hands == "mirror" else np.zeros_like(right)
    if form.hands == "one":
        left[:] = _numbers("rest", "rest", "rest")
    elif form.hands == "base":
        left[:] = _numbers(form.place, "flat", "side")
        left[:, _POSITION] = 0, left[0, 1] - 0.35
    x, y, bend, twist = MOVEMENTS[form.movement][1](np.clip(done, 0, 1))
    for hand in (right, left) if form.hands == "mirror" else (right,):
        if form is not _REST:
            hand[:, _POSITION] += signer.habit
        hand[:, 0] += signer.reach * x
        hand[:, 1] += signer.reach * y
        hand[:, _BENDS] = np.clip(hand[:, _BENDS] + np.reshape(bend, (-1, 1)), 0, 1)
        hand[:, 11] += twist
    return np.stack([right, left], 1)


def _numbers(place: str, handshape: str, fingers: str) -> tuple[float, ...]:
    return *PLACES[place][1], *HANDSHAPES[handshape][1], *FINGERS[fingers][1]


def _hand_points(hands: np.ndarray, signer: Signer) -> np.ndarray:
    """Return the 21 points of each hand in its own coordinates, (T, 2, 21, 2)."""
    bends, spread, hook = hands[..., _BENDS], hands[..., 7, None], hands[..., 8, None]
    points = np.zeros((*hands.shape[:2], 21, 3))
    joints = bends[..., 1:, None] * _JOINT_BEND  # (T, 2, finger, joint)
    joints[..., 0] *= 1 - hook
    angle = joints.cumsum(-1)
    fan = (0.04 + spread) * _FAN  # (T, 2, finger)
    along = (_SEGMENTS * np.cos(angle)).cumsum(-1)
    x = _KNUCKLES[:, :1] + along * np.sin(fan)[..., None]
    y = _KNUCKLES[:, 1:] + along * np.cos(fan)[..., None]
    z = (_SEGMENTS * np.sin(angle)).cumsum(-1)
    fingers = points[..., 5:, :].reshape(*hands.shape[:2], 4, 4, 3)
    fingers[..., 0, :2] = _KNUCKLES
    fingers[..., 1:, :] = np.stack([x, y, z], -1)
    points[..., 5:, :] = fingers.reshape(*hands.shape[:2], 16, 3)
    # The thumb lies in the plane of the palm; bent, it folds across it.
    thumb = 0.75 - bends[..., :1] * np.array([0.0, 0.5, 1.1, 1.7])  # direction of each segment, from y towards -x
    points[..., 1:5, 0] = (-_THUMB * np.sin(thumb)).cumsum(-1)
    points[..., 1:5, 1] = (_THUMB * np.cos(thumb)).cumsum(-1)
    points[..., 1:5, 2] = (_THUMB * np.sin(0.8 * bends[..., :1])).cumsum(-1)

    roll, pitch, twist = np.moveaxis(hands[..., _ANGLES, None], -2, 0)  # (T, 2, 1) each
    x, y, z = np.moveaxis(points, -1, 0)
    x, z = x * np.cos(twist) + z * np.sin(twist), z * np.cos(twist) - x * np.sin(twist)
    y = y * np.cos(pitch) - z * np.sin(pitch)
    x, y = x * np.cos(roll) - y * np.sin(roll), x * np.sin(roll) + y * np.cos(roll)
    flat = signer.hand * np.stack([x, y], -1)
    return flat - flat[:, :, 9:10] + hands[:, :, None, _POSITION]


def _elbows(wrists: np.ndarray, signer: Signer) -> np.ndarray:
    """Return elbows in each hand's coordinates, (T, 2, 2), modelling an arm as two rods in 3-D."""
    upper, fore = signer.arm * np.array(_ARM)
    shoulder = np.array([0.5, 0.0, 0.0])
    reach = np.concatenate([wrists, np.full((*wrists.shape[:2], 1), _HAND_DEPTH)], -1) - shoulder
    length = np.linalg.norm(reach, axis=-1, keepdims=True)
    towards = reach / length
    length = np.minimum(length, 0.99 * (upper + fore))
    along = (upper**2 - fore**2 + length**2) / (2 * length)
    aside = np.sqrt(np.maximum(upper**2 - along**2, 0))
    wish = _ELBOW_WISH - (towards @ _ELBOW_WISH)[..., None] * towards
    wish /= np.linalg.norm(wish, axis=-1, keepdims=True)
    return (shoulder + along * towards + aside * wish)[..., :2]


def _drift(rng: np.random.Generator, n_frames: int, shape: tuple[int, ...]) -> np.ndarray:
    """Return slow random drift around 0 with amplitude about 1, (T, *shape)."""
    speed, phase = rng.uniform(0.02, 0.25, (3, *shape)), rng.uniform(0, 2 * np.pi, (3, *shape))
    frames = np.arange(n_frames).reshape(-1, 1, *[1] * len(shape))
    return np.sin(speed * frames + phase).sum(1) * 0.8


def _lose_a_hand(points: np.ndarray, scores: np.ndarray, rng: np.random.Generator) -> None:
    """Simulate a lost hand for one to four frames: low scores and scattered points."""
    first = rng.integers(len(points))
    lost = slice(first, first + rng.integers(1, 5))
    hand = slice(91, 112) if rng.random() < 0.5 else slice(112, 133)
    scores[lost, hand] = rng.uniform(0.02, 0.25, scores[lost, hand].shape)
    points[lost, hand] += rng.normal(0, 0.1, points[lost, hand].shape)
