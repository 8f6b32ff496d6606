"""Description files: atomic writing, and who made each text.

A file is the usual array, plus each text's maker, a key that other readers ignore:
`[{"filename": "000012.jpg", "description": "...", "made_by": "rules 1a2b3c4d zh"}, ...]`. Frame numbers refer to the
original recording.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from system.disk import to_json, write_text

if TYPE_CHECKING:
    from pose.keypoints import Pose


@dataclass(frozen=True)
class Clip:
    """A clip to describe: the paths of its pose, its video and its description file, and its fields in the labels."""

    name: str
    pose: Path
    video: Path | None
    out: Path
    label: Mapping[str, Any] = field(default_factory=dict)

    def read_pose(self) -> Pose:
        """Read the clip's pose; see `PoseFolder.read`."""
        from pose.keypoints import PoseFolder

        return PoseFolder().read(self.pose, self.label)


def write_descriptions(path: str | Path, texts: Mapping[int, str], made_by: Mapping[int, str]) -> None:
    """Write a clip's descriptions.

    Args:
        path: the file.
        texts: {frame number: text}.
        made_by: {frame number: maker}, for known makers only.
    """
    entries = [
        {"filename": f"{frame:06d}.jpg", "description": text}
        | ({"made_by": made_by[frame]} if frame in made_by else {})
        for frame, text in sorted(texts.items())
    ]
    lines = ",\n".join(to_json(entry) for entry in entries)
    write_text(path, f"[\n{lines}\n]\n" if entries else "[]\n", sync=False)


def read_entries(path: str | Path) -> Any:
    """Read a file's JSON; None if it cannot be read.

    Raises:
        FileNotFoundError: the file does not exist.
    """
    try:
        return json.loads(Path(path).read_bytes())
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError):
        return None


def makers(path: str | Path) -> set[str] | None:
    """Return the makers of a file's texts, "" for an unknown one; None if the file is missing or unreadable."""
    try:
        entries = read_entries(path)
    except FileNotFoundError:
        return None
    if isinstance(entries, dict) and entries:
        return {""}
    if not isinstance(entries, list):
        return None
    return {str(entry.get("made_by", "")) if isinstance(entry, dict) else "" for entry in entries}


def makers_by_frame(path: str | Path) -> dict[int, str]:
    """Return {frame number: maker} for the texts whose maker is known."""
    entries = read_entries(path)
    found = {}
    for entry in entries if isinstance(entries, list) else []:
        stem = Path(str(entry.get("filename"))).stem if isinstance(entry, dict) else ""
        if stem.isdecimal() and isinstance(entry.get("made_by"), str):
            found[int(stem)] = entry["made_by"]
    return found
