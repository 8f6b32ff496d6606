"""Describe a clip from its keypoints alone: posecodes expressed as English or Chinese sentences.

Shapes: F frames of the clip, C posecodes. Left and right are the signer's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from describing import posecodes as rules
from describing.posecodes import FINGERS, HAND_CODES, OTHER_CODES, RULE_OF, RULES, posecodes
from pose.keypoints import Pose

LANGUAGES = ("en", "zh")
SHORTEST = 5  # minimum number of frames per text, except at the clip's end
REVISION = 2  # increment when a change of code (not of the table) changes the texts

# Files record the version, so that texts made by other rules can be recognised.
_MEASURES = (rules.REACH, rules.TOUCH, rules.SEEN_LENGTH, rules.CIRCLE, rules.SWING, rules.PALM)
_SETTINGS = (*_MEASURES, rules.HOLD, rules.WINDOW)
VERSION = hashlib.blake2b(repr((RULES, _SETTINGS, SHORTEST, REVISION)).encode(), digest_size=4).hexdigest()

# Where nothing is known, or the texts before and after would stand for what is not seen.
UNSEEN = {"en": "The hands cannot be made out.", "zh": "看不清双手。"}

# -- sentences -------------------------------------------------------------------------------------------------------

# What joins parts of a sentence, hand and place, and sentences; and what ends one.
_COMMA, _LIST = {"en": ", ", "zh": "，"}, {"en": ", ", "zh": "、"}
_GROUP, _SPACE, _STOP = {"en": "; ", "zh": "，"}, {"en": " ", "zh": ""}, {"en": ".", "zh": "。"}
_NAMES = {
    "en": dict(zip(FINGERS, FINGERS, strict=True)) | {"right": "Right hand", "left": "Left hand", "both": "Both hands"},
    "zh": dict(zip(FINGERS, ("拇指", "食指", "中指", "无名指", "小指"), strict=True))
    | {"right": "右手", "left": "左手", "both": "双手"},
}
_FOLDED, _BENT, _EXTENDED = 1, 2, 3  # codes of a finger
_DOWN, _HEAD_HEIGHT, _ABOVE = 1, 6, 7  # codes of a hand's height; the last also applies to "face"
_REPEATED, _MOVING = 2, 2  # smallest code of "repeat" to mention; code of "speed"
_MIRRORED = 1
Hand = dict[str, int]  # a hand's codes by their names


def _word(rule: str, code: int, language: str) -> str:
    return getattr(RULES[RULE_OF.get(rule, rule)][1][code - 1], language) if code else ""


def _join(separator: dict[str, str], parts: Iterable[str], language: str) -> str:
    """Join the parts that say something."""
    return separator[language].join(filter(None, parts))


def _fingers(names: list[str], language: str) -> str:
    if language == "zh":
        return "、".join(_NAMES["zh"][name] for name in names)
    listed = " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
    return listed if names == ["thumb"] else listed + (" fingers" if len(set(names) - {"thumb"}) > 1 else " finger")


def _shape(hand: Hand, language: str) -> str:
    """Describe the handshape; "" if no finger is known."""
    zh = language == "zh"
    four = [hand[name] for name in FINGERS[1:]]
    thumb_out = hand["thumb"] == _EXTENDED
    spread = _word("spread", hand["spread"], language)
    if not any(four):
        return ""
    if set(four) == {_FOLDED}:
        return ("握拳，拇指伸出" if zh else "fist with the thumb out") if thumb_out else ("握拳" if zh else "fist")
    if set(four) == {_EXTENDED}:
        if zh:
            return f"{'五' if thumb_out else '四'}指伸直{spread}"
        return ("open hand" if thumb_out else "flat hand, thumb in") + (f", fingers {spread}" if spread else "")
    parts = []
    others = list(FINGERS)
    if _word("pinch", hand["pinch"], language) and hand["index"] != _FOLDED:
        parts.append("拇指与食指指尖相触" if zh else "thumb and index finger touching")
        others = others[2:]
    elif set(four) == {_BENT}:
        return "手指弯曲成弧形" if zh else "curved hand"
    for code in (_EXTENDED, _BENT):
        if names := [name for name in others if hand[name] == code and (name != "thumb" or code == _EXTENDED)]:
            between = spread if code == _EXTENDED and len(set(names) - {"thumb"}) > 1 else ""
            how = _word("finger", code, language) + (f"{'' if zh else ' and '}{between}" if between else "")
            parts.append(_fingers(names, language) + _SPACE[language] + how)
    return _join(_COMMA, parts, language)


def _place(hand: Hand, language: str) -> str:
    if not hand["height"]:
        return ""
    by_face = hand["height"] >= _HEAD_HEIGHT - 1 and hand["face"] > 1
    scale = "face" if by_face else "height"
    height = _word(scale, hand[scale], language)
    if hand["height"] == _DOWN:
        return height
    across = "beside" if by_face and hand["face"] != _ABOVE else "side"
    return _join(_LIST, (height, _word(across, hand[across], language)), language)


def _motion(hand: Hand, language: str) -> str:
    if hand["repeat"] >= _REPEATED:
        return _word("repeat", hand["repeat"], language)
    if hand["speed"] == _MOVING and (way := _word("heading", hand["heading"], language)):
        return f"向{way}移动" if language == "zh" else f"moving {way}"
    return "" if hand["height"] == _DOWN else _word("speed", hand["speed"], language)


def _form(hand: Hand, language: str) -> str:
    """Describe handshape, palm and direction; nothing of a hand that hangs down."""
    if hand["height"] == _DOWN:
        return ""
    zh = language == "zh"
    shape = _shape(hand, language)
    way, said = _word("pointing", hand["pointing"], language), ""
    if way and shape:
        if any(hand[name] == _EXTENDED for name in FINGERS[1:]):
            said = f"指向{way}方" if zh else f"pointing {way}"
        elif hand["thumb"] == _EXTENDED:
            said = f"拇指指向{way}方" if zh else f"thumb pointing {way}"
        else:
            said = f"手朝{way}方" if zh else f"directed {way}"
    return _join(_COMMA, (shape, _word("palm", hand["palm"], language), said), language)


def _touch(hand: Hand, language: str) -> str:
    place = _word("touch", hand["touch"], language)
    if not place:
        return ""
    tips = any(hand[name] in (_BENT, _EXTENDED) for name in FINGERS[1:]) or hand["thumb"] == _EXTENDED
    if language == "zh":
        return f"{'指尖' if tips else '手'}在{place}处"
    return f"{'fingertips' if tips else 'hand'} at the {place}"


def _hand_sentence(who: str, hand: Hand, motion: str, language: str) -> str:
    place, form = _place(hand, language), _form(hand, language)
    action = _join(_COMMA, (_touch(hand, language), motion), language)
    if not (place or form or action):
        return ""
    start = _join(_SPACE, (who, place), language)
    return _join(_GROUP, (start, form, action), language) + _STOP[language]


@lru_cache(maxsize=1 << 14)
def _hands(right: tuple[int, ...], left: tuple[int, ...], parting: int, mirrored: bool, language: str) -> str:
    """Describe both hands: as one, if they mirror each other in form and motion."""
    hands = [dict(zip(HAND_CODES, codes, strict=True)) for codes in (right, left)]
    motions = [_motion(hand, language) for hand in hands]
    forms = [
        (_shape(hand, language), _word("palm", hand["palm"], language), hand["height"], hand["face"]) for hand in hands
    ]
    together = _word("parting", parting, language)
    names = _NAMES[language]
    if mirrored and forms[0] == forms[1] and forms[0][0] and (together or motions[0] == motions[1]):
        pointing = hands[0]["pointing"] if hands[0]["pointing"] == hands[1]["pointing"] else 0
        # Their positions mirror each other.
        both = hands[0] | {"side": 0, "beside": 0, "touch": 0, "pointing": pointing}
        mirror = _word("mirror", _MIRRORED, language)
        who = f"{names['both']}{mirror}，" if language == "zh" else f"{names['both']}, {mirror},"
        return _hand_sentence(who, both, together or motions[0], language)
    said = [
        _hand_sentence(names[who], hand, motion, language)
        for who, hand, motion in zip(("right", "left"), hands, motions, strict=True)
    ]
    return _join(_SPACE, said, language)


def sentence(codes: np.ndarray, language: str) -> str:
    """Describe a frame's posecodes, (C,), in words; "" if nothing is known."""
    values = codes.tolist()
    n = len(HAND_CODES)
    right, left = tuple(values[:n]), tuple(values[n : 2 * n])
    other = dict(zip(OTHER_CODES, values[2 * n :], strict=True))
    sentences = [_hands(right, left, other["parting"], other["mirror"] == _MIRRORED, language)]
    up = all(hand[HAND_CODES.index("height")] != _DOWN for hand in (right, left))
    gap, mouth = (_word(name, other[name], language) for name in ("gap", "mouth"))
    head = _join(_COMMA, [_word(name, other[name], language) for name in ("turn", "tilt", "nod")], language)
    if up and gap:
        sentences.append(gap + _STOP[language])
    if head:
        sentences.append(f"头{head}。" if language == "zh" else f"Head {head}.")
    if mouth:
        sentences.append(mouth + _STOP[language])
    return _join(_SPACE, sentences, language)


# -- descriptions of a clip --------------------------------------------------------------------------------------------


class Stretch(NamedTuple):
    """Frames `first` to `last`, counted from the clip's start, with their common text ("" if nothing is known)."""

    first: int
    last: int
    text: str


def stretches(pose: Pose, language: str, aspect: float = 1.0) -> list[Stretch]:
    """Divide a clip where its description changes."""
    codes = posecodes(pose, aspect)
    starts = [0]
    for change in (np.flatnonzero((codes[1:] != codes[:-1]).any(1)) + 1).tolist():
        start = max(change, starts[-1] + SHORTEST)  # delay a change that follows soon after another
        if start < len(codes) and change > starts[-1]:
            starts.append(start)
    found: list[Stretch] = []
    for first, end in zip(starts, [*starts[1:], len(codes)], strict=True):
        text = sentence(codes[(first + end - 1) // 2], language)
        if found and found[-1].text == text:
            first = found.pop().first
        found.append(Stretch(first, end - 1, text))
    return found


def describe_pose(pose: Pose, language: str = "zh", aspect: float = 1.0) -> dict[int, str]:
    """Describe a clip where something changes; return {frame number in the original recording: text}.

    Each stretch without change is described at its first and last frame, so the nearest described frame is valid for
    all frames in between; where nothing is known the text says so, unless that is the whole clip.

    `aspect` is width / height of the images, which relative keypoints do not contain.
    """
    cuts = stretches(pose, language, aspect)
    if not any(cut.text for cut in cuts):
        return {}
    return {pose.start + frame: cut.text or UNSEEN[language] for cut in cuts for frame in (cut.first, cut.last)}
