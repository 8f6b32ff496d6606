"""Animated picture of a clip: its skeleton, the description of each frame, the gate, and the sentence of the model.

Shapes: T sampled frames.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import config
from utils import Parser, cannot_be_written, require_packages, run

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont

    from pages.clip_view import Lane
    from pose.keypoints import Pose

FONTS = ("NotoSansCJK-Regular.ttc", "wqy-zenhei.ttc", "msyh.ttc", "PingFang.ttc", "DejaVuSans.ttf")
WIDTH, HEIGHT, MARGIN = 640, 360, 16
SKELETON = (264, 240)  # largest width and height
COLUMN = 296  # where text and gate begin
PLOT = (COLUMN, 188, WIDTH - 60, 236)  # left, top (gate 1), right, bottom (gate 0)
SENTENCES = 272  # top of the band of sentences
INK, FAINT, BAND, GATE, PALE = "#1a1a1a", "#767676", "#f0f0f0", "#0a7d55", "#b9dccf"
FPS = 25  # of the video
STEP = 2  # every second frame is drawn
END_MS = 2000  # how long the last frame stays

EXAMPLES = """examples:
  python -m tools.picture output_demo/with --out docs/fusion.gif
  python -m tools.picture output_demo/with --out clip.gif --clip S001104_P0008_T00

RUN_DIR is the --output_dir of a training with descriptions. Its run.json says where the data lie."""


class Clip(NamedTuple):
    """What the picture shows of a clip: pose, frames (T,), texts and gate, the model's sentence and the reference."""

    pose: Pose
    frames: np.ndarray
    lane: Lane
    sentence: str
    reference: str


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line and reject invalid values, before any slow import."""
    what = "Draw a clip as an animated GIF: skeleton, descriptions, gate and sentences."
    parser = Parser(prog="python -m tools.picture", description=what, epilog=EXAMPLES)
    add = parser.add_argument
    add("run", metavar="RUN_DIR", help="a run with descriptions")
    add("--out", required=True, metavar="FILE", help="the picture, a .gif")
    add("--clip", default="", metavar="NAME", help="of the test split; default: the first one with a description")
    add("--font", default="", metavar="FILE", help="default: a known one of this computer that has the characters")
    add("--aspect", type=float, default=1.0, metavar="W/H", help="width of the videos / their height; default: 1")
    args = parser.parse_args(argv)
    parser.check(args, cannot_be_written("--out", args.out, ".gif"), aspect=config.ASPECTS)
    return args


# -- the clip ----------------------------------------------------------------------------------------------------------


def read_clip(folder: str, name: str) -> Clip:
    """Read and translate a test clip of a run, by default the first that has a description.

    ValueError or FileNotFoundError if there is no model with descriptions, or no such clip.
    """
    from pages.run_folder import RunFolder

    run_ = RunFolder.read(folder)  # before torch is imported
    from pages.clip_view import Viewer
    from temporal_alignment import sample_frames

    viewer = Viewer("", "", run_, "test")
    viewer.open("cpu")
    if viewer.left_out or viewer.dataset is None:
        raise ValueError(f"{folder}: {' '.join(viewer.left_out)}")
    if viewer.descriptions is None:
        raise ValueError(f"{folder}: was trained without descriptions, so there is no gate; name a run with them.")
    names = viewer.dataset.names
    described = [clip for clip, size in zip(names, viewer.descriptions.sizes(names), strict=True) if size]
    name = name or next(iter(described), "")
    if name not in described:
        raise ValueError(f"--clip {name}: is no clip of the test split with a description.")
    pose = viewer.pose(name)
    said, lane = viewer.says(name, pose)
    if lane is None:
        raise ValueError(" ".join(viewer.left_out))
    frames = sample_frames(len(pose), len(lane.gate))
    return Clip(pose, frames, lane, said[0].found.candidates[0].text, viewer.dataset.target(name))


# -- text --------------------------------------------------------------------------------------------------------------


def choose_font(path: str, characters: str) -> str:
    """Return a font file that has all characters; ValueError if there is none, or `path` is no font."""
    from PIL import ImageFont

    for candidate in [path] if path else FONTS:
        try:
            font = ImageFont.truetype(candidate, 20)
        except OSError:
            if path:
                raise ValueError(f"--font {path}: is not there, or is no font.") from None
            continue
        absent = bytes(font.getmask("\U0010ffff"))  # the box for what a font lacks
        missing = [character for character in characters if bytes(font.getmask(character)) == absent]
        if not missing or missing == [" "]:
            return candidate
    raise ValueError(
        f"{path or 'every known font here'} has not all of the characters {characters[:20]} ...: name a font file "
        "with --font, or install one, for Chinese: apt install fonts-noto-cjk."
    )


def wrap(text: str, font: FreeTypeFont, width: float) -> list[str]:
    """Break a text into lines of at most `width` pixels, between words or Chinese characters."""
    lines = [""]
    for piece in re.findall(r"[^\x00-\u2e7f][，。；、：！？]*|[\x00-\u2e7f]+?(?:\s+|(?=[^\x00-\u2e7f])|$)", text):
        if lines[-1] and font.getlength(lines[-1] + piece.rstrip()) > width:
            lines.append("")
        lines[-1] += piece
    return [line.strip() for line in lines]


# -- the picture -------------------------------------------------------------------------------------------------------


def draw_gate(draw: ImageDraw, gate: Sequence[float], own: Sequence[int], now: int) -> None:
    """Draw the gate over time, dark up to the current frame, with a tick below every frame that is described."""
    left, top, right, bottom = PLOT
    step = (right - left) / len(gate)
    for i, value in enumerate(gate):
        box = [left + i * step, bottom - max(1, value * (bottom - top)), left + (i + 1) * step, bottom]
        draw.rectangle(box, fill=GATE if i <= now else PALE)
        if own[i]:
            draw.rectangle([box[0] + 1, bottom + 4, box[2] - 1, bottom + 7], fill=INK)
    draw.line([left, bottom + 1, right, bottom + 1], fill=FAINT)


def draw_frame(clip: Clip, now: int, box: tuple[float, float, float, float], aspect: float, font: str) -> Image:
    """Draw one of the T frames, the one at index `now`; `box` is that of `picture_box`."""
    from PIL import Image, ImageDraw, ImageFont

    from pose.drawing import draw_pose

    tiny, small, middle, large = (ImageFont.truetype(font, size) for size in (11, 13, 18, 21))
    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(image)
    skeleton = draw_pose(clip.pose, int(clip.frames[now]), box, 2 * SKELETON[1], aspect)  # twice as large: smooth lines
    skeleton.thumbnail(SKELETON)
    image.paste(skeleton, (MARGIN + (SKELETON[0] - skeleton.width) // 2, SENTENCES - skeleton.height - 4))

    frame = clip.frames[now] + clip.pose.start
    draw.text((MARGIN, MARGIN), "keypoints", FAINT, small)
    draw.text((COLUMN, MARGIN), f"description of frame {frame}", FAINT, small)
    for number, line in enumerate(wrap(clip.lane.texts[now] or "", middle, WIDTH - MARGIN - COLUMN)[:5]):
        draw.text((COLUMN, MARGIN + 22 + 25 * number), line, INK, middle)
    draw.text((COLUMN, PLOT[1] - 22), "gate: the weight of the description (0 to 1), over time", FAINT, small)
    draw_gate(draw, clip.lane.gate, clip.lane.own, now)
    draw.text((COLUMN, PLOT[3] + 11), "marked: described frames; the others take the nearest text", FAINT, tiny)
    draw.text((PLOT[2] + 8, PLOT[1] + 10), f"{clip.lane.gate[now]:.2f}", GATE, middle)

    draw.rectangle([0, SENTENCES, WIDTH, HEIGHT], fill=BAND)
    for number, (title, text, colour) in enumerate(
        [("the model writes", clip.sentence, GATE), ("reference", clip.reference, INK)]
    ):
        middle_of_line = SENTENCES + 26 + 36 * number
        draw.text((MARGIN, middle_of_line), title, FAINT, small, anchor="lm")
        sentence = wrap(text, large, WIDTH - MARGIN - 150)
        line = sentence[0] if len(sentence) == 1 else f"{sentence[0]} ..."
        draw.text((150, middle_of_line), line, colour, large, anchor="lm")
    return image


def write_gif(path: str, images: Sequence[Image], milliseconds: float) -> None:
    """Write an animation that repeats; its last frame stays for a while."""
    from PIL import Image

    # One palette for all frames; this method keeps the colours of thin lines.
    palette = images[len(images) // 2].quantize(128, Image.Quantize.MAXCOVERAGE)
    frames = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    durations = [round(milliseconds)] * (len(frames) - 1) + [END_MS]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations, loop=0, optimize=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Draw the picture."""
    args = parse_args(argv)
    require_packages("tools.picture", "PIL")
    clip = read_clip(args.run, args.clip)
    from pose.drawing import picture_box

    texts = [clip.sentence, clip.reference, *(text or "" for text in clip.lane.texts)]
    font = choose_font(args.font, "".join(sorted(set("".join(texts)))))
    box = picture_box(clip.pose)
    shown = range(0, len(clip.frames), STEP)
    images = [draw_frame(clip, now, box, args.aspect, font) for now in shown]
    # A clip of more than max_length frames is sampled: its frames lie further apart.
    write_gif(args.out, images, 1000 / FPS * STEP * len(clip.pose) / len(clip.frames))
    sys.stdout.write(f"{args.out}: {len(images)} frames, {Path(args.out).stat().st_size / 1000:.0f} kB\n")


if __name__ == "__main__":
    run(main)
