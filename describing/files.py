"""Description files as this project writes them, whole; `temporal_alignment` reads them.

A file is the usual array, plus each text's maker, a key that other readers ignore:
`[{"filename": "000012.jpg", "description": "...", "made_by": "rules 1a2b3c4d zh"}, ...]`. Frame numbers refer to the
original recording.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clips.labels import split_labels
from system.disk import to_json, write_text

if TYPE_CHECKING:
    from config import DatasetSpec
    from pose.keypoints import Pose


@dataclass(frozen=True)
class Clip:
    """A clip: the paths of its pose, its video and its description file, and its fields in the labels."""

    name: str
    pose: Path | None  # None for description files whose clips are not known
    video: Path | None
    out: Path
    label: Mapping[str, Any] = field(default_factory=dict)

    def read_pose(self) -> Pose:
        """Read the clip's pose; see `PoseFolder.read`."""
        from pose.keypoints import PoseFolder

        assert self.pose is not None, "an unknown clip has no pose to read"
        return PoseFolder().read(self.pose, self.label)


def clips_of(spec: DatasetSpec, split: str, folder: Path) -> list[Clip]:
    """Return the clips of a split, whose description files lie in `folder`; raises what `split_labels` raises."""
    labels, places = split_labels(spec, split), spec.for_split(split)
    clips = []
    for name, label in labels.items():
        video = places.video_path(label) if spec.rgb_dir else None
        clips.append(Clip(name, places.pose_path(label), video, folder / f"{name}.json", label))
    return clips


def write_descriptions(path: str | Path, texts: Mapping[int, str], made_by: Mapping[int, str]) -> None:
    """Write a clip's texts, {frame number: text}, and their makers, {frame number: maker}, where these are known."""
    entries = [
        {"filename": f"{frame:06d}.jpg", "description": text}
        | ({"made_by": made_by[frame]} if made_by.get(frame) else {})
        for frame, text in sorted(texts.items())
    ]
    lines = ",\n".join(to_json(entry) for entry in entries)
    write_text(path, f"[\n{lines}\n]\n" if entries else "[]\n", sync=False)
