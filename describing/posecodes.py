"""Posecodes: measures of a frame's keypoints, quantised into named steps by one table of rules.

A posecode is a measure of the pose (how far a fingertip reaches, how high a hand is), divided into named steps. All
measures, thresholds and words are in `RULES`; change them there. A measure that needs a point with a low score is NaN
and has no step, so undetected parts are never described.

Shapes: F frames of a clip, C posecodes. Points are complex numbers: the real axis points to
the signer's left (the right of the image), the imaginary axis up, along the body. Lengths are in shoulder widths. The
second axis of hand measures is (right, left). The signer faces the camera; depth is unknown.

Source: the idea of posecodes comes from PoseScript (Delmas et al., 2022), in 3-D; measures, thresholds and words for
signers in 2-D are our own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pose.keypoints import SCORE_THRESHOLD, Pose

HOLD = 3  # frames: shorter changes count as noise
WINDOW = 8  # frames before and after, for movements that repeat; recordings have 24 to 30 frames a second

_INF = float("inf")


class Step(NamedTuple):
    """A posecode's words for values from `start` up to the next step's start."""

    start: float
    en: str
    zh: str


def _directions() -> tuple[Step, ...]:
    en = ["right", "down-right", "down", "down-left", "left", "up-left", "up", "up-right", "right"]
    zh = ["右", "右下", "下", "左下", "左", "左上", "上", "右上", "右"]
    starts = [-_INF, *(45 * i - 202.5 for i in range(1, 9))]
    return tuple(map(Step, starts, en, zh))


# name: (what is measured, its steps). Left and right are the signer's own. A step without words is never mentioned.
RULES: dict[str, tuple[str, tuple[Step, ...]]] = {
    # -- each hand ---------------------------------------------------------------------------------------------------
    "finger": (
        "reach of the tip beyond the knuckle, in the direction from the wrist to the knuckle / length of the finger",
        (Step(-_INF, "folded", "收拢"), Step(0.3, "bent", "弯曲"), Step(0.78, "extended", "伸直")),
    ),
    "thumb": (
        "distance of the tip from the index finger's knuckle / length of the palm",
        (Step(-_INF, "folded", "收拢"), Step(0.4, "", ""), Step(0.5, "extended", "伸直")),
    ),
    "pinch": (
        "distance of the tips of thumb and index finger / length of the palm",
        (Step(-_INF, "touching", "相触"), Step(0.25, "", "")),
    ),
    "spread": (
        "mean angle between neighbouring extended fingers, degrees",
        (Step(-_INF, "", ""), Step(10.0, "spread", "张开")),
    ),
    "palm": (
        "sine of the angle index knuckle - wrist - little finger's knuckle, positive if the palm is seen",
        (
            Step(-_INF, "back of the hand to the camera", "手背朝向镜头"),
            Step(-0.15, "edge of the hand to the camera", "手掌侧对镜头"),
            Step(0.15, "palm to the camera", "掌心朝向镜头"),
        ),
    ),
    "pointing": (
        "direction of the extended fingers, else of an extended thumb, else from wrist to knuckles; degrees",
        _directions(),
    ),
    "height": (
        "of the palm above the line of the shoulders",
        (
            Step(-_INF, "down at the hip", "垂在身侧"),
            Step(-1.25, "at waist height", "在腰前"),
            Step(-0.8, "at chest height", "在胸前"),
            Step(-0.18, "at shoulder height", "在肩部高度"),
            Step(0.12, "at neck height", "在颈部高度"),
            Step(0.35, "at head height", "在头部高度"),
            Step(1.2, "above the head", "在头顶上方"),
        ),
    ),
    "face": (
        "height of the palm above the chin / height of the brows above the chin",
        (
            Step(-_INF, "", ""),
            Step(-0.2, "at chin height", "在下巴高度"),
            Step(0.2, "at mouth height", "在嘴部高度"),
            Step(0.5, "at nose height", "在鼻部高度"),
            Step(0.75, "at eye height", "在眼部高度"),
            Step(1.05, "at forehead height", "在额头高度"),
            Step(1.6, "above the head", "在头顶上方"),
        ),
    ),
    "side": (
        "of the palm, from the middle of the shoulders to the signer's left",
        (
            Step(-_INF, "far out on the right", "身体右侧较远处"),
            Step(-0.8, "on the right", "身体右侧"),
            Step(-0.22, "in front of the body", "身体正前方"),
            Step(0.22, "on the left", "身体左侧"),
            Step(0.8, "far out on the left", "身体左侧较远处"),
        ),
    ),
    "beside": (
        "of the palm, from the middle of the face to the signer's left / half the width of the face",
        (
            Step(-_INF, "to the right of the face", "脸部右侧"),
            Step(-1.1, "in front of the face", "脸部正前方"),
            Step(1.1, "to the left of the face", "脸部左侧"),
        ),
    ),
    "touch": (
        "number of the place on the head that is within TOUCH of a fingertip",
        (
            Step(-_INF, "", ""),
            Step(1, "forehead", "额头"),
            Step(2, "right eye", "右眼"),
            Step(3, "left eye", "左眼"),
            Step(4, "nose", "鼻子"),
            Step(5, "mouth", "嘴"),
            Step(6, "chin", "下巴"),
            Step(7, "right cheek", "右脸颊"),
            Step(8, "left cheek", "左脸颊"),
            Step(9, "right ear", "右耳"),
            Step(10, "left ear", "左耳"),
        ),
    ),
    "speed": (
        "of the palm over 5 frames, per frame",
        (Step(-_INF, "held still", "保持不动"), Step(0.02, "moving", "移动")),
    ),
    "heading": ("direction in which the palm moves, degrees", _directions()),
    "repeat": (
        "number of the movement that repeats within WINDOW frames before and after: see CIRCLE and SWING",
        (
            Step(-_INF, "", ""),
            Step(1, "circling", "画圈移动"),
            Step(2, "moving from side to side", "左右来回移动"),
            Step(3, "moving up and down", "上下来回移动"),
        ),
    ),
    # -- both hands --------------------------------------------------------------------------------------------------
    "gap": (
        "between the two hands' nearest points",
        (
            Step(-_INF, "The hands touch", "双手接触"),
            Step(0.06, "The hands are close together", "双手靠近"),
            Step(0.3, "", ""),
        ),
    ),
    "parting": (
        "change of the distance between the palms per frame, while both move",
        (Step(-_INF, "moving together", "相互靠近"), Step(-0.03, "", ""), Step(0.03, "moving apart", "相互分开")),
    ),
    "mirror": (
        "distance of one palm from the other's mirror image, across the middle of the shoulders",
        (Step(-_INF, "mirrored", "左右对称"), Step(0.2, "", "")),
    ),
    # -- head and mouth ----------------------------------------------------------------------------------------------
    "turn": (
        "of the tip of the nose, from the middle of the face's edges to the signer's left / width of the face",
        (
            Step(-_INF, "turned to the right", "转向右侧"),
            Step(-0.13, "", ""),
            Step(0.13, "turned to the left", "转向左侧"),
        ),
    ),
    "tilt": (
        "of the line of the eyes, degrees; negative if the left eye is the lower one",
        (
            Step(-_INF, "tilted to the left", "偏向左侧"),
            Step(-9.0, "", ""),
            Step(9.0, "tilted to the right", "偏向右侧"),
        ),
    ),
    "nod": (
        "of the tip of the nose below the brows / height of the brows above the chin, beyond the clip's median",
        (Step(-_INF, "raised", "抬起"), Step(-0.07, "", ""), Step(0.07, "lowered", "低下")),
    ),
    "mouth": (
        "distance of the inner lips / width between the inner corners of the mouth",
        (Step(-_INF, "", ""), Step(0.22, "Mouth open", "嘴张开"), Step(0.6, "Mouth wide open", "嘴大张")),
    ),
}
TOUCH = 0.12  # maximum distance of a fingertip from the place on the head it touches
SEEN_LENGTH = 0.4  # of a palm's length: anything shorter in the image points along the line of sight
CIRCLE = 300.0  # minimum turn of a circle in one direction, in degrees
SWING = (0.5, 0.3, 2)  # minimum path length, maximum net / total path, minimum number of reversals
REACH = 2.8  # a hand farther from the middle of the shoulders is a detection error: no arm is so long
PALM = (0.22, 0.27)  # minimum length of a palm (wrist to knuckles), and its assumed length if shoulders are missing

# -- where points are ------------------------------------------------------------------------------------------------

_HANDS = np.stack([np.arange(112, 133), np.arange(91, 112)])  # (2, 21)
_OUTWARDS = np.array([-1, 1], np.float32)  # sign of each hand's side on the real axis
_LEFT_SHOULDER, _RIGHT_SHOULDER = 5, 6
_KNUCKLES = slice(5, 18, 4)  # of index, middle, ring and little finger, within a hand
_PALM = [0, 5, 9, 13, 17]
_NEAR = [0, *range(4, 21, 4), *range(5, 18, 4)]  # wrist, tips and knuckles, for the gap between hands
_RIGHT_JAW, _CHIN, _LEFT_JAW, _NOSE = 23, 31, 39, 53
_BROWS, _RIGHT_EYE, _LEFT_EYE = range(40, 50), range(59, 65), range(65, 71)
_LIPS = range(83, 91)
_CORNERS, _LIP_MIDDLES = (83, 87), (85, 89)
_CHEEKS, _EARS = ((27, 54), (35, 58)), (4, 3)  # right, left

FINGERS = ("thumb", "index", "middle", "ring", "little")
HAND_CODES = (
    *FINGERS, "pinch", "spread", "palm", "pointing",
    "height", "face", "side", "beside", "touch", "speed", "heading", "repeat",
)  # fmt: skip
OTHER_CODES = ("gap", "parting", "mirror", "turn", "tilt", "nod", "mouth")
COLUMNS = (*(f"{side} {name}" for side in ("right", "left") for name in HAND_CODES), *OTHER_CODES)
RULE_OF = dict.fromkeys(FINGERS[1:], "finger")  # default: the column's name


def _angle(x: np.ndarray) -> np.ndarray:
    return np.degrees(np.arctan2(x.imag, x.real))


def _mean(points: np.ndarray, joints: Sequence[int]) -> np.ndarray:
    """Average over joints, (..., V) -> (...)."""
    return points[..., [*joints]].mean(-1)


def _start(rule: str, step: int) -> float:
    return RULES[rule][1][step].start


def _quantile(x: np.ndarray, share: float) -> np.float32:
    """Return a quantile of the finite values; NaN if there are none."""
    values = np.sort(x[np.isfinite(x)], None)
    return np.float32(values[int(share * len(values))] if len(values) else np.nan)


def _around(n_frames: int, reach: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices `reach` frames before and after each frame, clamped to the clip."""
    frames = np.arange(n_frames)
    return np.maximum(frames - reach, 0), np.minimum(frames + reach, n_frames - 1)


def _slope(x: np.ndarray, reach: int = 2) -> np.ndarray:
    """Return the change per frame, over `reach` frames before and after."""
    before, after = _around(len(x), reach)
    span = np.maximum(after - before, 1).astype(np.float32)
    return (x[after] - x[before]) / span.reshape(-1, *[1] * (x.ndim - 1))


def _window_sum(x: np.ndarray) -> np.ndarray:
    """Sum over a window of WINDOW frames before and after, (F, 2) -> (F, 2)."""
    total = np.concatenate([np.zeros((1, 2), np.int64), np.cumsum(np.rint(x * 1e6).astype(np.int64), 0)])
    before, after = _around(len(x), WINDOW)
    return (total[after + 1] - total[before]).astype(np.float32) / np.float32(1e6)


def upright_points(pose: Pose, aspect: float) -> np.ndarray:
    """Return points in shoulder widths, (F, 133), rotated to level shoulders on average; NaN where the score is low.

    The rotation is constant in a clip: a recording on its side becomes upright, but temporary leaning is preserved.
    """
    x, y = np.moveaxis(np.asarray(pose.keypoints, np.float32), -1, 0)
    points = x * np.float32(aspect) - 1j * y  # (F, 133)
    points[~(pose.scores > SCORE_THRESHOLD)] = np.nan  # also catches NaN scores
    shoulders = points[:, _LEFT_SHOULDER] - points[:, _RIGHT_SHOULDER]  # (F,)
    unit = _quantile(np.abs(shoulders), 0.5)
    if not unit > 0:
        unit = _quantile(np.abs(points[:, _HANDS[:, 9]] - points[:, _HANDS[:, 0]]), 0.9) / np.float32(PALM[1])
    level = np.nansum(shoulders)
    return points * (np.complex64(level.conjugate() / abs(level) if level else 1) / unit)


def measure(pose: Pose, aspect: float) -> dict[str, np.ndarray]:
    """Compute all measures of `RULES`: name -> (F, 2) for hands, (F, 2, 4) for "finger", (F,) for the rest."""
    points = upright_points(pose, aspect)
    origin = (points[:, _LEFT_SHOULDER] + points[:, _RIGHT_SHOULDER]) / 2  # (F,)
    hands = points[:, _HANDS]  # (F, 2, 21)
    hands[np.abs(_mean(hands, _PALM) - origin[:, None]) > REACH] = np.nan
    centre = _mean(hands, _PALM)  # (F, 2)
    place = centre - origin[:, None]  # (F, 2)
    palm_length = np.fmax(_quantile(np.abs(hands[..., 9] - hands[..., 0]), 0.9), np.float32(PALM[0]))
    found = {"height": place.imag, "side": place.real}
    found |= _measure_hands(hands, palm_length)
    found |= _measure_movement(place)
    found |= _measure_head(points, hands, centre)
    near = hands[..., _NEAR]  # (F, 2, 10)
    between = near[:, 0, :, None] - near[:, 1, None, :]
    found["gap"] = np.fmin.reduce(np.abs(between).reshape(len(between), -1), axis=1)
    apart = np.abs(place[:, 0] - place[:, 1])
    both_move = (found["speed"] > _start("speed", 1)).all(-1)
    found["parting"] = np.where(both_move, _slope(apart), np.where(np.isnan(apart), np.nan, 0))
    found["mirror"] = np.abs(place[:, 0] + place[:, 1].conj())
    return found


def _measure_hands(hands: np.ndarray, palm_length: np.floating) -> dict[str, np.ndarray]:
    """Measure handshape, palm and pointing of hands, (F, 2, 21), given the unforeshortened palm length."""
    along = hands[..., _KNUCKLES] - hands[..., :1]  # (F, 2, 4), the palm's bones
    along_length = np.abs(along)
    fingers = hands[..., 5:].reshape(*hands.shape[:-1], 4, 4)  # (F, 2, 4, joints)
    reach = fingers[..., 3] - fingers[..., 0]  # (F, 2, 4), knuckle to tip
    path = sum(np.abs(fingers[..., joint + 1] - fingers[..., joint]) for joint in range(3))
    extension = (reach.conj() * along).real / along_length / path
    short = SEEN_LENGTH * palm_length
    foreshortened = (path < short) & (extension > _start("finger", 1))
    extension[foreshortened | (along_length < short)] = np.nan

    thumb_tip, thumb_knuckle = hands[..., 4], hands[..., 2]
    thumb = np.abs(thumb_tip - hands[..., 5]) / palm_length
    pinch = np.abs(thumb_tip - hands[..., 8]) / palm_length

    extended = extension >= _start("finger", 2)  # (F, 2, 4)
    side_by_side = extended[..., 1:] & extended[..., :-1]
    angles = np.abs(_angle(reach[..., 1:] * reach[..., :-1].conj()))
    spread = np.where(side_by_side, angles, 0).sum(-1) / side_by_side.sum(-1)

    first, last = along[..., 0], along[..., 3]
    palm = -_OUTWARDS * (first.conj() * last).imag / (along_length[..., 0] * along_length[..., 3])
    palm[(along_length[..., 0] < short) | (along_length[..., 3] < short)] = np.nan

    count = extended.sum(-1)
    fist = np.where(thumb >= _start("thumb", 2), thumb_tip - thumb_knuckle, along[..., 1])
    pointer = np.where(count, np.where(extended, reach, 0).sum(-1) / count, fist)
    pointer[np.abs(pointer) < short] = np.nan
    pointing = _angle(pointer)
    return {"finger": extension, "thumb": thumb, "pinch": pinch, "spread": spread, "palm": palm, "pointing": pointing}


def _measure_movement(place: np.ndarray) -> dict[str, np.ndarray]:
    """Measure speed, heading and repetition of positions, (F, 2)."""
    slow = np.float32(_start("speed", 1))
    velocity = _slope(place)
    speed = np.abs(velocity)
    step = np.nan_to_num(_slope(place, 1))  # an undetected hand does not move
    before, _ = _around(len(place), 1)
    turn = _angle(step * step[before].conj())
    turn[(np.abs(step) < slow) | (np.abs(step[before]) < slow) | (np.abs(turn) > 120)] = 0  # beyond: a reversal
    path = _window_sum(np.abs(step))
    net = np.hypot(_window_sum(step.real), _window_sum(step.imag))
    circle = (np.abs(_window_sum(turn)) > CIRCLE) & (path > SWING[0] / 2)
    # Along the dominant axis; a reversal is a change of sign between clear steps.
    ways, back = [], []
    for way in (step.real, step.imag):
        ways.append(_window_sum(np.abs(way)))
        clear = np.where(np.abs(way) > slow / 2, np.arange(len(way))[:, None], 0)
        latest = np.take_along_axis(way, np.maximum.accumulate(clear, 0), 0)
        back.append(_window_sum((latest * latest[before] < 0).astype(np.float32)))
    turns_back = np.where(ways[0] > ways[1], *back)
    swing = (path > SWING[0]) & (net < SWING[1] * path) & (turns_back >= SWING[2])
    repeat = np.where(circle, 1.0, np.where(swing, np.where(ways[0] > ways[1], 2.0, 3.0), 0.0))
    repeat[np.isnan(speed)] = np.nan
    return {"speed": speed, "heading": _angle(velocity), "repeat": repeat}


def _measure_head(points: np.ndarray, hands: np.ndarray, centre: np.ndarray) -> dict[str, np.ndarray]:
    """Measure head and mouth, (F, 133), and positions of hands, (F, 2, 21), with centres (F, 2), around the head."""
    brows, nose, chin = _mean(points, _BROWS), points[:, _NOSE], points[:, _CHIN]  # (F,) each
    right_eye, left_eye = _mean(points, _RIGHT_EYE), _mean(points, _LEFT_EYE)
    brow_height = (brows - chin).imag
    middle = (points[:, _LEFT_JAW] + points[:, _RIGHT_JAW]) / 2
    width = (points[:, _LEFT_JAW] - points[:, _RIGHT_JAW]).real
    nod = (brows - nose).imag / brow_height
    corners = points[:, _CORNERS[1]] - points[:, _CORNERS[0]]
    opening = points[:, _LIP_MIDDLES[0]] - points[:, _LIP_MIDDLES[1]]
    places = np.stack(  # in the order of "touch"
        [
            brows + (brows - nose) * np.float32(0.4),  # the forehead has no points: extrapolate
            right_eye,
            left_eye,
            nose,
            _mean(points, _LIPS),
            chin,
            *(_mean(points, cheek) for cheek in _CHEEKS),
            *(points[:, ear] for ear in _EARS),
        ],
        1,
    )  # (F, 10)
    tips = hands[..., 4::4]  # (F, 2, 5)
    distances = np.fmin.reduce(np.abs(tips[..., None] - places[:, None, None]), axis=2)  # (F, 2, 10)
    distances[np.isnan(distances)] = _INF
    touch = np.where(distances.min(-1) < TOUCH, distances.argmin(-1) + 1.0, np.where(np.isnan(centre), np.nan, 0))
    return {
        "turn": (nose - middle).real / width,
        "tilt": _angle(left_eye - right_eye),
        "nod": nod - _quantile(nod, 0.5),
        "mouth": np.abs(opening) / np.abs(corners),
        "face": (centre - chin[:, None]).imag / brow_height[:, None],
        "beside": (centre - middle[:, None]).real / (width / 2)[:, None],
        "touch": touch,
    }


# -- codes -----------------------------------------------------------------------------------------------------------

_STARTS = {name: np.array([step.start for step in steps[1:]], np.float32) for name, (_, steps) in RULES.items()}


def posecodes(pose: Pose, aspect: float = 1.0) -> np.ndarray:
    """Quantise all measures of a clip: (F, C) int8 in the order of `COLUMNS`; 0 is unknown, 1 the first step.

    Codes that last fewer than `HOLD` frames count as noise and are replaced by the preceding code. A clip has at least
    one frame; `aspect` is the width of the images / their height.
    """
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        codes = {name: _steps(name, x) for name, x in measure(pose, aspect).items()}
    codes |= dict(zip(FINGERS[1:], np.moveaxis(codes["finger"], -1, 0), strict=True))
    hands = [codes[name][:, side] for side in (0, 1) for name in HAND_CODES]
    return _steady(np.stack([*hands, *(codes[name] for name in OTHER_CODES)])).T


def _steps(name: str, x: np.ndarray) -> np.ndarray:
    codes = np.where(np.isnan(x), 0, 1 + np.searchsorted(_STARTS[name], x, side="right")).astype(np.int8)
    if name in ("pointing", "heading"):
        codes[codes == len(RULES[name][1])] = 1  # "right" is both the first and the last step
    return codes


def _steady(codes: np.ndarray) -> np.ndarray:
    """Replace short runs of a code by the preceding code, (C, F) -> (C, F)."""
    change = np.ones(codes.shape, bool)
    change[:, 1:] = codes[:, 1:] != codes[:, :-1]
    flat = codes.ravel()
    starts = np.flatnonzero(change)
    stays = np.diff(starts, append=len(flat)) >= HOLD
    stays |= starts % codes.shape[1] == 0  # nothing precedes a clip's first frame
    source = np.maximum.accumulate(np.where(stays, np.arange(len(starts)), 0))
    return flat[starts[source]][np.cumsum(change.ravel()) - 1].reshape(codes.shape)
