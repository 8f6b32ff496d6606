"""Temporal alignment: choose the frames of a clip to keep, and assign each of them a description.

F is the number of frames of the original clip, T that of sampled frames. Frame numbers always refer to the original
clip, from 0.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple

import numpy as np

from system.disk import file_sizes

logger = logging.getLogger(__name__)

MAX_BYTES = 64 << 20  # maximum size of a description file; real ones have some hundred KB

# What an API error or a model's refusal leaves in place of a description. Only the beginning of a text is matched,
# since a true description may contain any of these words. Leading punctuation ("[", "{'", "**") is skipped; case is
# ignored.
_SOURCE = r"(?:api|call|client|https?|internal|model|network|operation|read|requests?|server|system|unexpected|unknown)"
_SOURCE_ZH = (
    r"(?:api|模型|接口|服务器?|网络|请求|调用|连接|获取|生成|描述|处理|识别|分析|图[片像](?:加载|下载|读取|上传)?)"
)
_IMAGE = r"(?:frame|image|photo|picture|video)"
_THE = r"(?:an?|any|the|this|your)"
_NO_IMAGE = rf"(?:there (?:is|was) )?no {_IMAGE}\b"
_CANNOT = r"(?:can ?not|can't|could not|couldn't)"
# A true description may begin with what it cannot tell: I cannot determine the handshape, but the right ...
_HEDGE = r"(?:\w+ )?(?:see\b|(?:determine|discern|make out|tell)\b.*[,;.] \w)"
_SORRY = r"(?:sorry|unfortunately)\W+(?:but\W+)?"
_CANNOT_ZH = r"(?:[无無]法|不能|没法)"
_DO_ZH = r"(?:识别|描述|分析|处理|查看|提供|访问|回答|生成|获取|读取)"
_ERROR_BEGINNINGS = (
    # Error code: 429 ... | An unexpected error occurred | Request timed out. | openai.RateLimitError: ...
    rf"(?:an? |the )?(?:{_SOURCE}[\W_]+){{0,3}}(?:error|exception|failed|time-?out|timed out)\b(?! (?:gesture|sign))",
    r"(?-i:[A-Za-z_.]+(?:Error|Exception|Timeout)\b)|traceback",
    r"(?:the )?connection (?:was )?(?:aborted|closed|error|refused|reset|timed)|https?connectionpool",
    # Max retries exceeded | [Errno 110] ... | Expecting value: line 1 column 1 | list index out of range
    r"max(?:imum)? retries|errno \d|(?:list|string|tuple) index out of range|(?:cuda )?out of memory",
    r"(?:expecting|extra data|invalid|unterminated)[^:]{0,60}: line \d+ column \d",
    # HTTP 503 | status code: 500 | 429 Too Many Requests, but not 429 pixels | {'code': 429, ... | <html>
    r"(?:(?:https?(?:/[\d.]+)?|status|code)\W+){1,3}[45]\d\d\b|(?:bad )?gateway|service (?:temporarily )?unavailable",
    r"[45]\d\d\b\W*(?:$|bad|client|error|forbidden|gateway|internal|not found|server|service|too many|unauth|you )",
    r"""(?:code|detail|message)["']\s*:|(?:doctype )?html\b""",
    # Invalid API key | That model is currently overloaded | This model's maximum context length is 8192 tokens
    r"(?:incorrect|invalid|missing|no) (?:api|authentication|request|token|url)\b|unauthori[sz]ed\b",
    r"(?:(?:that|the|this) )?model(?:'s maximum context| is (?:\w+ )?(?:busy|overloaded|not available|unavailable)\b)",
    # Rate limit reached | You exceeded your current quota, but not: You hit the palm | Input data may contain ...
    r"(?:api |requests? |tokens? )?(?:rate[ _-]?limit|throttl|too many requests)|insufficient[ _](?:balance|quota)",
    r"you(?:'ve| have)? (?:exceeded\b|(?:hit|reached) (?:the|your) (?:\w+ ){0,3}(?:limit|quota))",
    r"access denied|content exists risk|content[ _]filter|data_?inspection",
    r"(?:the |your )?(?:input|output|prompt|request|response)\b.{0,60}\b(?:filtered|inappropriate|not allowed|reject)",
    # I'm sorry, but ... | Sorry, I ..., but not: Sorry, no left hand is visible | I apologize | As an AI model
    r"I(?:'m| am) (?:(?:so|very) )?(?:afraid|an ai|not able|not allowed|sorry|unable)\b|as I am (?:not|unable)\b",
    rf"{_SORRY}(?:I\b(?! {_CANNOT} {_HEDGE})|(?:can't|cannot|unable|we|your)\b|{_NO_IMAGE})",
    rf"{_SORRY}(?:there (?:has been|is|was) )?{_THE} (?:\w+ )?(?:error|{_IMAGE})\b",
    r"I apologi[sz]e|(?:my )?apologies",
    r"as an? (?:ai|artificial|(?:large )?(?:language|multimodal|text|vision) (?:assistant|model))\b",
    # I can't assist, but not: I can't see the left hand | I don't see any image | No image provided | Please upload
    rf"I (?:{_CANNOT}|will not|won't)\b(?! {_HEDGE})|I (?:do not|don't) have\b",
    rf"I (?:{_CANNOT}|do not|don't) (?:\w+ )?see (?:{_THE} )?{_IMAGE}",
    # Unable to analyze the image, but not: Cannot see the left hand
    rf"(?:{_CANNOT}|unable to) \w+ (?:{_THE} )?(?:\w+ )?{_IMAGE}",
    rf"(?:it (?:appears|looks like|seems) (?:that )?)?{_NO_IMAGE}",
    r"please (?:attach|provide|send|share|try again|upload)\b|it (?:looks|seems) like you\b",
    # A script's word for "nothing".
    r"(?:n/a|nan|no description(?: available)?|description (?:is )?(?:not available|unavailable))\W*$",
    r"(?:none|null|undefined|暂?无描述|暂无(?:数据|内容)?)\W*$",
    # 出错: ... | 错误, but not 错误的 | 请求超时 | 服务器内部错误 | 处理时发生错误, but not 描述异常清晰
    r"出[错錯]|[错錯][误誤](?![的地])|超时(?:$|[,，。:：!！\s])|(?:发生|出现)了?(?:未知)?(?:错误|异常)",
    rf"{_SOURCE_ZH}{{1,3}}\s*(?:过程中|时)?(?:发生|出现)?了?(?:内部|未知)?(?:超时|出错|错误|繁忙|失败|异常(?![^\W请])|过于频繁)",
    # 图片无法加载 | 无法连接到服务器, but not 无法连接手腕 | 该模型当前负载过高 | 当前请求过多 | 余额不足
    rf"图[片像]{_CANNOT_ZH}(?:加载|下载|读取|打开|显示|访问)(?!\w)|{_CANNOT_ZH}连接(?:[到至上])?(?:api|服务|模型|接口|网络)",
    r"[该此]?(?:模型|服务器?|系统|接口)?(?:当前|目前)?(?:负载|请求|访问)(?:量|数)?[过太][高多大]|(?:账户)?(?:余额|额度|配额)不足",
    # 您的账户已达到速率限制 | 系统检测到 ...
    r"您的(?:账户|帐户|账号)|已?(?:达到|超过|超出)\w{0,6}(?:速率|频率|配额|限额)|速率限制|系统检测到|内容(?:违规|审核)",
    # 抱歉，... | 对不起，我无法 ..., but not 对不起的手势 | 我无法 ..., but not 我不能看清左手 | 作为AI
    r"(?:很|非常|十分)?(?:抱歉|[对對]不起|不好意思)(?:[,，]|[。.!！:：…\s]*(?:$|[您你但我该暂]|[无無]法|不能|由于|目前))",
    rf"我(?:{_CANNOT_ZH}(?!看|(?:判断|确定|分辨).*[,，;；。]\s*\w)|没有(?:办法|能力)|看不到(?:图|任何))",
    r"作为(?:一[个名款])?\s*(?:ai|人工智能|大?语言|大?模型)",
    # 无法识别该图片, but not 无法看清左手 | 由于图片模糊，我无法描述 | 请提供图片
    rf"(?:由于[^,，。]{{1,20}}[,，]\s*)?我?{_CANNOT_ZH}{_DO_ZH}(?:\W*$|[该此这图您]|人物|内容|请求)",
    rf"我?{_CANNOT_ZH}看[清到见](?:[该此这您]\w{{0,3}})?图",
    r"请您?(?:提供|上传|发送|重新上传|稍后|重试)|(?:未|没有)(?:提供|找到|收到|上传)(?:任何)?图",
)
_ERROR_TEXT = re.compile(rf"[\W_]*+(?:{'|'.join(_ERROR_BEGINNINGS)})", re.IGNORECASE)
_BEGINNING = 400  # characters to match, to bound the time per text

# "000012.jpg", "clip/12.PNG", "12", "frame_12.jpg", "images0012.png". An extension begins with a letter: "12.5" is not
# a frame. Eighteen digits fit int64.
_FRAME_NAME = re.compile(r"(?:.*[/\\])?(?:[^\d/\\]*[^\W\d_][_-]?)?([0-9]{1,18})(?:\.[A-Za-z][^./\\]*)?", re.DOTALL)
_MAX_FRAME = 10**18

# Invisible characters, and lone surrogates (a tokenizer fails on them): NUL, surrogates, zero-width space, word
# joiner, BOM.
_INVISIBLE = re.compile("[\x00\ud800-\udfff\u200b\u2060\ufeff]")
_LETTER = re.compile(r"[^\W\d_]")  # of any script


class Alignment(NamedTuple):
    """The description assigned to each sampled frame.

    Attributes:
        descriptions: T texts; None where the clip has no description at all.
        has_description: T values: 1 if the text is this frame's own, 0 if it is a neighbour's or None.
    """

    descriptions: list[str | None]
    has_description: list[int]


@dataclass
class DescriptionCounts:
    """Counts of what description files contain; `a += b` adds two of them.

    Each `DescriptionLoader.load` adds 1 to exactly one of the three file counts. Each entry of a file that was read is
    counted as exactly one of: error text, blank, not text, bad frame, out of range, duplicate, frame.

    Attributes:
        files_found: files that were read.
        files_missing: clips without a file.
        files_unreadable: files that cannot be read, are too large, or hold no JSON array or object.
        entries: described frames, valid or not, in the files that were read.
        error_texts: API errors, refusals and words for "nothing", see `is_error_text`.
        blank: texts without any letter: empty, white space, "...".
        not_text: null, a number, a list, or a missing description.
        bad_frame: entries without a valid frame number.
        out_of_range: entries for frames before the clip's start or after its end.
        duplicates: further valid texts of a frame that already has one.
        frames: frames with a valid description.
    """

    files_found: int = 0
    files_missing: int = 0
    files_unreadable: int = 0
    entries: int = 0
    error_texts: int = 0
    blank: int = 0
    not_text: int = 0
    bad_frame: int = 0
    out_of_range: int = 0
    duplicates: int = 0
    frames: int = 0

    def __str__(self) -> str:
        """List the non-zero counts."""
        return ", ".join(f"{n} {kind.replace('_', ' ')}" for kind, n in vars(self).items() if n)

    def __iadd__(self, other: DescriptionCounts) -> DescriptionCounts:
        """Add another count, field by field."""
        for field in dataclasses.fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))
        return self


def sample_frames(n_frames: int, max_length: int, rng: np.random.Generator | None = None) -> np.ndarray:
    """Choose the frames of a clip that the model sees.

    Args:
        n_frames: F.
        max_length: maximum number of frames to keep.
        rng: samples a longer clip at random (training); None takes evenly spaced frames from the first to the last,
            always the same (evaluation).

    Returns:
        int64 (T,) with T = min(F, max_length), sorted, distinct, in [0, F).

    Raises:
        ValueError: F is negative, or max_length is below 1.

    Source: Uni-Sign's official code; it samples at random in evaluation, too.

    >>> sample_frames(4, 256).tolist()
    [0, 1, 2, 3]
    >>> sample_frames(10, 4).tolist()
    [0, 3, 6, 9]
    >>> sample_frames(10, 4, np.random.default_rng(0)).size
    4
    """
    if n_frames < 0:
        raise ValueError(f"a clip cannot have {n_frames} frames.")
    if max_length < 1:
        raise ValueError(f"--max_length {max_length}: must be at least 1.")
    if n_frames <= max_length:
        return np.arange(n_frames, dtype=np.int64)
    if rng is not None:
        return np.sort(rng.choice(n_frames, size=max_length, replace=False)).astype(np.int64)
    # i (F - 1) / (T - 1), rounded with integer arithmetic, so that the result is the same on every machine.
    gaps = max(max_length - 1, 1)
    return (np.arange(max_length, dtype=np.int64) * (n_frames - 1) + gaps // 2) // gaps


def is_error_text(text: str) -> bool:
    """Return whether a text begins like an API error, a refusal or a word for "nothing".

    >>> is_error_text("出错: Error code: 429 - {'error': {'message': 'rate limit'}}")
    True
    >>> is_error_text("I'm sorry, but I can't help with that.")
    True
    >>> is_error_text("429 pixels from the left, the hand stops; the signer looks sorry.")
    False
    """
    return _ERROR_TEXT.match(text[:_BEGINNING].replace("’", "'")) is not None


class DescriptionLoader:
    """Reads the JSON description files of one split.

    Attributes:
        directory: the folder with NAME.json files.
        counts: totals over all calls of `load`. Each worker process of a data loader keeps its own.
    """

    def __init__(self, directory: str | Path) -> None:
        """Check that the folder exists.

        Raises:
            FileNotFoundError: the folder does not exist.
        """
        self.directory = Path(directory)
        self.counts = DescriptionCounts()
        if not self.directory.is_dir():
            fault = "is not a folder" if self.directory.exists() else "does not exist"
            raise FileNotFoundError(
                f"--use_descriptions: {directory} {fault}. Put the JSON files there (with --packed, pack them), "
                "or drop --use_descriptions."
            )

    def sizes(self, names: Sequence[str]) -> np.ndarray:
        """Return the size of each clip's file in bytes: 0 if it is missing, 1 if it exists but is empty."""
        paths = [self.directory / f"{name}.json" for name in names]
        sizes = file_sizes(paths)
        for place in np.flatnonzero(sizes == 0):
            sizes[place] = os.path.isfile(paths[place])
        return sizes

    def load(self, name: str, frames: range | None = None) -> dict[int, str]:
        """Read a clip's valid descriptions; invalid entries are skipped and counted.

        Args:
            name: the clip; its file is NAME.json.
            frames: the clip's frame numbers, `Pose.frames`; entries for other frames are skipped. None keeps all.

        Returns:
            {frame number: text}, sorted by frame; empty if the file is missing or unreadable.

        Raises:
            ValueError: the name points outside the folder.
        """
        document = self._read(name)
        if document is None:
            return {}
        counts = self.counts
        texts: dict[int, str] = {}
        for frame, value in _entries(document):
            counts.entries += 1
            if frame is None:
                counts.bad_frame += 1
            elif not isinstance(value, str):
                counts.not_text += 1
            elif is_error_text(text := _INVISIBLE.sub(" ", value).strip()):
                counts.error_texts += 1
            elif not _LETTER.search(text):
                counts.blank += 1
            elif frames is not None and frame not in frames:
                counts.out_of_range += 1
            elif frame in texts:
                counts.duplicates += 1
            else:
                texts[frame] = text
        counts.frames += len(texts)
        return dict(sorted(texts.items()))

    def _read(self, name: str) -> list | tuple | None:
        """Parse a clip's file and count it; return None if it is missing or unreadable."""
        # Label files may come from strangers. PureWindowsPath splits at both kinds of slash.
        path = PureWindowsPath(name)
        if not path.name or path.anchor or ".." in path.parts or "\0" in name:
            raise ValueError(f"clip name {name!r} leaves {self.directory}. Mend the name in the label file.")
        try:
            with open(self.directory / f"{name}.json", "rb") as file:
                data = file.read(MAX_BYTES + 1)
            if len(data) > MAX_BYTES:
                raise ValueError(f"larger than {MAX_BYTES} bytes")
            # Pass bytes, so that json detects byte order marks and UTF-16 itself. Objects become tuples of pairs: a
            # dict would lose the first of two equal keys.
            document = json.loads(data, object_pairs_hook=tuple)
            if not isinstance(document, (list, tuple)):
                raise ValueError("neither an array nor an object")
        except FileNotFoundError:
            self.counts.files_missing += 1
            return None
        except (OSError, ValueError, RecursionError) as error:
            self.counts.files_unreadable += 1
            logger.debug("%s: %s.json cannot be read: %s", self.directory, name, error)
            return None
        self.counts.files_found += 1
        return document


def _frame_number(value: Any) -> int | None:
    """Extract the frame number from a file name or a string of digits; None if there is none."""
    match = _FRAME_NAME.fullmatch(value) if isinstance(value, str) else None
    return int(match[1]) if match else None


def _entries(document: list | tuple) -> Iterator[tuple[int | None, Any]]:
    """Yield (frame number or None, description of any type) from each supported JSON form; an object is a tuple."""
    while isinstance(document, tuple):
        values = dict(document)
        wrapped = [values[key] for key in ("descriptions", "frames") if isinstance(values.get(key), (list, tuple))]
        if not wrapped:
            yield from ((_frame_number(key), value) for key, value in document)
            return
        document = wrapped[0]
    for entry in document:
        values = dict(entry) if isinstance(entry, tuple) else {}
        frame = values.get("frame_id")
        # A file name is more reliable than `frame_id`, which may be a mere count. A number as file name is invalid.
        if "filename" in values or type(frame) is not int:  # not isinstance: True is not a frame
            frame = _frame_number(values.get("filename", frame))
        elif not 0 <= frame < _MAX_FRAME:
            frame = None
        yield frame, values.get("description")


class TemporalAligner:
    """Assigns a description to each sampled frame."""

    def align(self, descriptions: Mapping[int, str], frame_indices: Sequence[int] | np.ndarray) -> Alignment:
        """Assign each frame its own text, or else that of the nearest described frame (the earlier one of a tie).

        Args:
            descriptions: {frame number: text} from `DescriptionLoader.load`. A frame's text can go to its neighbours
                even if the frame itself was not sampled.
            frame_indices: (T,) frame numbers in the original clip, in any order.

        >>> TemporalAligner().align({2: "up", 6: "down"}, [0, 2, 4, 5])
        Alignment(descriptions=['up', 'up', 'up', 'down'], has_description=[0, 1, 0, 0])
        """
        wanted = np.asarray(frame_indices, dtype=np.int64)  # (T,)
        described = np.array(sorted(descriptions), dtype=np.int64)  # (D,)
        if not described.size:
            return Alignment([None] * len(wanted), [0] * len(wanted))
        after = np.searchsorted(described, wanted)  # (T,), index of the first described frame at or after each
        before = np.maximum(after - 1, 0)
        after = np.minimum(after, len(described) - 1)
        nearest = described[np.where(wanted - described[before] <= described[after] - wanted, before, after)]
        return Alignment([descriptions[frame] for frame in nearest.tolist()], (nearest == wanted).astype(int).tolist())
