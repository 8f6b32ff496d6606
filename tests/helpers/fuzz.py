"""What readers do with any input: read it, or refuse it in the documented way."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path

FOLDER = Path(tempfile.mkdtemp(prefix="fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))


def _file(name: str, data: bytes) -> Path:
    path = FOLDER / name
    path.write_bytes(data)
    return path


def _refused(read: Callable, path: Path) -> None:
    """`read` gives a value, or a ValueError of one line that names the file."""
    try:
        read(path)
    except ValueError as error:
        text = str(error)
        assert str(path) in text, text
        assert len(text.splitlines()) == 1, text
        assert len(text) < 2000, len(text)


def descriptions(data: bytes) -> None:
    """A description file is read or counted as unreadable; each entry is counted once."""
    from temporal_alignment import DescriptionLoader

    _file("clip.json", data)
    loader = DescriptionLoader(FOLDER)
    texts = loader.load("clip", range(100))
    assert all(isinstance(frame, int) and 0 <= frame < 100 and text.strip() for frame, text in texts.items())
    counts = loader.counts
    assert counts.files_found + counts.files_missing + counts.files_unreadable == 1
    parts = counts.error_texts + counts.blank + counts.not_text + counts.bad_frame + counts.out_of_range
    assert counts.entries == parts + counts.duplicates + counts.frames
    assert counts.frames == len(texts)


def alignment(data: bytes) -> None:
    """Bytes as frame numbers: the first byte says how many are described, the others are sampled."""
    import numpy as np

    from temporal_alignment import TemporalAligner, sample_frames

    numbers = np.frombuffer(data[: len(data) // 8 * 8], "<i8") if len(data) > 8 else np.array(list(data), np.int64)
    numbers = numbers % 10**18
    described = {int(n): f"text {n}" for n in numbers[: data[0] if data else 0]}
    texts, own = TemporalAligner().align(described, numbers)
    assert len(texts) == len(own) == len(numbers)
    for frame, text, flag in zip(numbers.tolist(), texts, own, strict=True):
        assert (text is None) == (not described)
        assert flag == (frame in described)
        assert not flag or text == described[frame]
    kept = sample_frames(len(data) * 7, 1 + len(data) % 50, np.random.default_rng(0))
    assert (np.diff(kept) > 0).all()


def labels(data: bytes) -> None:
    """As a packed pickle, unpacked, as JSON, and as tables."""
    from clips.labels import read_labels

    _refused(read_labels, _file("labels.train", gzip.compress(data, 1)))
    _refused(read_labels, _file("labels.plain", data))
    for kind in ("json", "jsonl", "csv", "tsv", "csv.gz", "xlsx"):
        _refused(read_labels, _file(f"labels.{kind}", data))
    _refused(read_labels, _file("packed.csv.gz", gzip.compress(data, 1)))


def poses(data: bytes) -> None:
    """A pose is usable or refused."""
    import numpy as np

    from pose.keypoints import part_keypoints, read_pose

    def read(path: Path) -> None:
        pose = read_pose(path)
        parts = part_keypoints(pose, np.arange(len(pose)))
        assert all(bool(part.isfinite().all()) for part in parts.values())

    _refused(read, _file("clip.pkl", data))


def weights(data: bytes) -> None:
    """Of --finetune, in both formats."""
    from training.weight_files import read_weights

    for name in ("w.pth", "w.safetensors"):
        _refused(lambda path: read_weights(path, "--finetune"), _file(name, data))


def states(data: bytes) -> None:
    """A state to resume from, of which `state.json` is any file."""
    from training.checkpoint import read_progress

    _file("state.json", data)
    _refused(lambda _: read_progress(FOLDER), FOLDER)


TARGETS = {function.__name__: function for function in (descriptions, alignment, labels, poses, weights, states)}


def seeds(target: str) -> list[bytes]:
    """Good inputs to start from."""
    import numpy as np
    import torch

    from training.checkpoint import TrainState, write_progress

    array = np.linspace(0, 1, 133 * 2, dtype=np.float32).reshape(1, 133, 2)
    pose = {"keypoints": [array] * 2, "scores": [array[..., 0]] * 2}
    table = {"a": {"name": "a", "gloss": ["x"], "text": "t", "video_path": "a.mp4"}, "b": {"video_path": "b"}}
    frames = [{"filename": "000001.jpg", "description": "手"}, {"frame_id": 2, "description": "Error code: 429"}]
    news = [{"video": "a.mp4", "pose": "a.pkl", "text": "t"}]
    documents = [frames, {"frames": {"12": "up"}}, {"descriptions": frames}, {"000012.jpg": "x", "3": None}]
    if target == "poses":
        return [pickle.dumps(pose, protocol) for protocol in (0, 2, 4, 5)]
    if target == "labels":
        return [
            *(pickle.dumps(table, protocol) for protocol in (0, 2, 4)),
            json.dumps(news).encode(),
            b'name,text\na,"b"\n',
        ]
    if target == "descriptions":
        return [json.dumps(document, ensure_ascii=False).encode() for document in documents]
    if target == "weights":
        modern, legacy = io.BytesIO(), io.BytesIO()
        content = {"model": {"a": torch.ones(3), "b": torch.zeros(2, 2)}, "epoch": 1}
        torch.save(content, modern)
        torch.save(content, legacy, _use_new_zipfile_serialization=False)
        header = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
        return [modern.getvalue(), legacy.getvalue(), len(header).to_bytes(8, "little") + header + bytes(8)]
    if target == "states":
        write_progress(FOLDER, TrainState(step=3))
        return [(FOLDER / "state.json").read_bytes()]
    return [bytes(range(64))]
