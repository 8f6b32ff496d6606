"""Control descriptions for experiments: none, few, those of other clips, one for all, error messages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from config import DatasetSpec
from describing.files import write_descriptions
from temporal_alignment import DescriptionLoader

Clips = dict[str, dict[int, str]]  # name -> {frame number: text}


def shuffled_texts(clips: Clips, seed: int) -> Clips:
    """Give each clip's described frames the texts of another clip, in their order.

    >>> shuffled_texts({"a": {3: "up", 9: "down"}, "b": {0: "left"}}, 0)
    {'a': {3: 'left', 9: 'left'}, 'b': {0: 'up'}}
    """
    names = [name for name in sorted(clips) if clips[name]]
    order = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
    found = {}
    for name, other in zip(order, order[1:] + order[:1], strict=True):
        frames, texts = sorted(clips[name]), [clips[other][frame] for frame in sorted(clips[other])]
        found[name] = {frame: texts[i * len(texts) // len(frames)] for i, frame in enumerate(frames)}
    return dict(sorted(found.items()))


def constant_texts(clips: Clips, _seed: int) -> Clips:
    """Give every described frame the most frequent text."""
    counts = Counter(text for texts in clips.values() for text in texts.values())
    text = min(counts, key=lambda text: (-counts[text], text), default="")
    return {name: dict.fromkeys(texts, text) for name, texts in clips.items()}


def some_texts(share: int, clips: Clips, seed: int) -> Clips:
    """Keep the texts of one clip in `share`, and of one clip at least."""
    names = np.random.default_rng(seed).permutation(sorted(name for name in clips if clips[name]))
    return {name: clips[name] for name in sorted(names[: max(1, len(names) // share)].tolist())}


def error_texts(clips: Clips, seed: int) -> Clips:
    """Replace every text by an error message of its own, of a form that no filter knows."""
    codes = np.random.default_rng(seed)
    return {
        name: {frame: f"upstream closed the stream, trace {codes.integers(1 << 32):08x}" for frame in texts}
        for name, texts in clips.items()
    }


CONTROLS: dict[str, Callable[[Clips, int], Clips]] = {
    "none": lambda _clips, _seed: {},  # also of a data set that has no descriptions
    "tenth": partial(some_texts, 10),
    "hundredth": partial(some_texts, 100),
    "errors": error_texts,
    "shuffled": shuffled_texts,
    "constant": constant_texts,
}


def write_control_texts(spec: DatasetSpec, kind: str, folder: Path) -> None:
    """Write the descriptions of one kind, a key of `CONTROLS`, for all splits."""
    for split in {spec.folder(split) for split in spec.labels}:
        (folder / split).mkdir(parents=True, exist_ok=True)
        if kind == "none":
            continue
        source = Path(spec.description_dir) / split
        loader = DescriptionLoader(source)
        names = sorted(path.relative_to(source).with_suffix("").as_posix() for path in source.rglob("*.json"))
        clips = {name: loader.load(name) for name in names}
        for name, texts in CONTROLS[kind](clips, 0).items():
            write_descriptions(folder / split / f"{name}.json", texts, dict.fromkeys(texts, f"control: {kind}"))
