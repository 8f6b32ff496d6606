"""Pose extraction: a model detects the people in each image, and one of them is tracked through the clip.

    rtmlib       whole-body models of COCO-WholeBody's 133 points, several people; their ONNX files are the user's
    mediapipe    MediaPipe Holistic, one person, computed on the CPU; release 0.10.21 brings its models along, later
                 ones take a file of the user's

Nothing is ever downloaded, and torch is not imported. Shapes: T images of height H and width W, P people in an image.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.metadata
import io
import os
import pickle
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from pose.files import to_whole_body
from pose.keypoints import N_KEYPOINTS, PART_JOINTS, SCORE_THRESHOLD, Part, Pose
from system.disk import write_bytes
from system.faults import in_one_line
from utils import installed

MODELS = "pretrained_weight"  # with a folder for each extractor's files
_PROJECTS = "https://download.openmmlab.com/mmpose/v1/projects"
RTMLIB_FILES = (  # other pairs: rtmlib.Wholebody.MODE
    f"{_PROJECTS}/rtmposev1/onnx_sdk/yolox_tiny_8xb8-300e_humanart-6f3252f9.zip",
    f"{_PROJECTS}/rtmw/onnx_sdk/rtmw-dw-l-m_simcc-cocktail14_270e-256x192_20231122.zip",
)
HOLISTIC = "holistic_landmarker.task"
HOLISTIC_FILE = (
    f"https://storage.googleapis.com/mediapipe-models/holistic_landmarker/holistic_landmarker/float16/1/{HOLISTIC}"
)
MILLISECONDS = 33  # between two pictures, for the smoothing, as MediaPipe 0.10.21 assumes

HEAD_AND_SHOULDERS = np.arange(7)  # they define a person's size; arms would change it with every sign
JUMP_COST = 2.0  # cost of a jump by one person size, in units of one frame of the largest person
REACH = 1000  # number of earlier detections to search for the predecessor

# -- the models --------------------------------------------------------------------------------------------------------


class Extractor(Protocol):
    """Detects people in images."""

    label: str  # the model's name, recorded beside its pose files

    def start(self) -> None:
        """Begin a new clip: forget earlier images."""

    def __call__(self, picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Detect people in an image, (H, W, 3) uint8: relative keypoints, (P, 133, 2), and scores, (P, 133)."""


def load_extractor(name: str = "", models: str | Path = "", device: str = "") -> Extractor:
    """Load a pose model.

    Args:
        name: one of `config.EXTRACTORS`; default: rtmlib, or MediaPipe if it alone is installed.
        models: folder with rtmlib's two ONNX files, or with MediaPipe's file; default: `MODELS`/{name}.
        device: "cpu" or "cuda", for rtmlib; default: a GPU if onnxruntime can use one.

    Raises:
        ValueError: a package is missing, a model file is unusable, or there is no GPU to use.
        FileNotFoundError: the model files do not exist.
    """
    name = name or ("mediapipe" if installed("mediapipe") and not installed("rtmlib") else "rtmlib")
    folder = Path(models or f"{MODELS}/{name}")
    return Rtmlib(folder, device) if name == "rtmlib" else MediaPipe(folder)


class Rtmlib:
    """A person detector, and a whole-body pose model applied to each person.

    The folder holds the detector, `yolox*.onnx`, and one other ONNX file, the whole-body model. Raises what
    `load_extractor` does.
    """

    def __init__(self, folder: str | Path, device: str = "") -> None:
        try:
            import onnxruntime
            from rtmlib import YOLOX, RTMPose
        except ImportError as error:
            raise ValueError(
                f'--extractor rtmlib needs {error.name}: pip install -e ".[rtmlib]"; pip install --no-deps '
                "rtmlib==0.0.16, or take --extractor mediapipe."
            ) from None
        detector, whole_body = self._files(Path(folder))
        can_cuda = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
        if device == "cuda" and not can_cuda:
            raise ValueError("--device cuda: this onnxruntime has no GPU; install onnxruntime-gpu in its place.")
        self.device = device or ("cuda" if can_cuda else "cpu")
        self.detector = self._load(YOLOX, detector)
        self.whole_body = self._load(RTMPose, whole_body)
        # The input size is (height, width) in one of rtmlib's classes, (width, height) in the other.
        self.detector.model_input_size = tuple(self.detector.session.get_inputs()[0].shape[2:])
        self.whole_body.model_input_size = tuple(self.whole_body.session.get_inputs()[0].shape[:1:-1])
        self.label = f"rtmlib {whole_body.stem}"

    @staticmethod
    def _files(folder: Path) -> tuple[Path, Path]:
        files = sorted(folder.glob("*.onnx"))
        detectors = [file for file in files if file.name.startswith("yolox")]
        others = [file for file in files if file not in detectors]
        if len(detectors) != 1 or len(others) != 1:
            seen = ", ".join(file.name for file in files) or ("no ONNX file" if folder.is_dir() else "no such folder")
            raise FileNotFoundError(
                f"--models {folder}: {seen}. Wanted are two files there: a detector of people, yolox*.onnx, and a "
                f"whole-body model, such as {' and '.join(RTMLIB_FILES)}. Unpack, and name each end2end.onnx as its "
                "archive. Or take --extractor mediapipe."
            )
        return detectors[0], others[0]

    def _load(self, kind: Any, path: Path) -> Any:
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # rtmlib prints what it loads
                model = kind(str(path), backend="onnxruntime", device=self.device)
        except Exception as error:  # noqa: BLE001 -- onnxruntime has errors of its own; each becomes one line
            raise ValueError(f"--models: {path} cannot be loaded: {in_one_line(error, 200)}") from None
        if self.device == "cuda" and model.session.get_providers()[0] != "CUDAExecutionProvider":
            raise ValueError("--device cuda: onnxruntime cannot start on the GPU; see its list of CUDA versions.")
        return model

    def start(self) -> None:
        """Do nothing: images are processed independently."""

    def __call__(self, picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Extractor`; if nobody is detected, the pose model is applied to the whole image."""
        blue_first = np.ascontiguousarray(picture[..., ::-1])  # BGR is rtmlib's usual input
        try:
            keypoints, scores = self.whole_body(blue_first, bboxes=self.detector(blue_first))  # (P, 133, 2) in pixels
        except Exception as error:  # noqa: BLE001 -- OpenCV and onnxruntime have errors of their own
            size = f"{picture.shape[1]} x {picture.shape[0]}"
            raise ValueError(f"{self.label} fails at a picture of {size}: {in_one_line(error, 200)}") from None
        if keypoints.shape[1:] != (N_KEYPOINTS, 2):
            raise ValueError(f"--models: {self.label} finds {keypoints.shape[1]} points; wanted {N_KEYPOINTS}.")
        return keypoints / [picture.shape[1], picture.shape[0]], scores


class MediaPipe:
    """MediaPipe Holistic: body, face and hands of one person, tracked from image to image.

    Scores of face and hands are 1, or 0 if not detected; those of the body are continuous. Releases after 0.10.21 need
    the file `HOLISTIC` in the folder. Raises what `load_extractor` does.
    """

    def __init__(self, folder: str | Path) -> None:
        os.environ.setdefault("GLOG_minloglevel", "2")
        try:
            import mediapipe
        except ImportError as error:
            raise ValueError(
                f'--extractor mediapipe needs {error.name}: pip install -e ".[mediapipe]"; pip install --no-deps '
                "mediapipe==0.10.21"
            ) from None
        self.label = f"mediapipe {mediapipe.__version__}"
        kind = _BundledModels if hasattr(mediapipe, "solutions") else _ModelFile
        with _no_native_messages():
            self.model = kind(mediapipe, Path(folder))
        # The names in its enumerations; the face has 10 more points, of the irises, in later releases.
        body = [landmark.name for landmark in self.model.names]
        hand = [str(i) for i in range(21)]
        self.points = {
            "POSE_LANDMARKS": body,
            "FACE_LANDMARKS": [str(i) for i in range(468)],
            "LEFT_HAND_LANDMARKS": hand,
            "RIGHT_HAND_LANDMARKS": hand,
        }

    def start(self) -> None:
        """Reset the tracking state."""
        with _no_native_messages():
            self.model.start()

    def __call__(self, picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Extractor`; P is 1, or 0 if nobody is detected."""
        with _no_native_messages():
            found = self.model.process(picture)
        rows = []  # (x, y, confidence) of each point
        for component, names in self.points.items():
            # A list; before 0.10.30, an object with one, or None.
            landmarks = getattr(found, component.lower()) or []
            landmarks = getattr(landmarks, "landmark", landmarks)[: len(names)]
            graded = component == "POSE_LANDMARKS"
            if graded and not landmarks:
                return np.zeros((0, N_KEYPOINTS, 2), np.float32), np.zeros((0, N_KEYPOINTS), np.float32)
            points = [(p.x, p.y, p.visibility if graded else 1) for p in landmarks]
            rows.append(np.array(points or np.zeros((len(names), 3))))
        table = np.concatenate(rows)[None, None]  # (1, 1, N, 3)
        keypoints, scores = to_whole_body(self.points, table[..., :2], table[..., 2])
        return keypoints[0], scores[0]


class _BundledModels:
    """MediaPipe until 0.10.21, whose package holds the models."""

    def __init__(self, mediapipe: Any, _folder: Path) -> None:
        if int((protobuf := importlib.metadata.version("protobuf")).split(".")[0]) > 4:
            raise ValueError(
                f"mediapipe {mediapipe.__version__} does not work with protobuf {protobuf}: pip install "
                "protobuf==4.25.9, or take mediapipe 1.2.3 (docs/INFERENCE.md)."
            )
        holistic = mediapipe.solutions.holistic
        self.names = holistic.PoseLandmark
        # Only the models of complexity 1 are included in the package; others would be downloaded.
        self.model = holistic.Holistic(model_complexity=1)
        self.process = self.model.process
        self.start()

    def start(self) -> None:
        self.model.reset()
        self.process(np.zeros((64, 64, 3), np.uint8))  # waits until all models are loaded


class _ModelFile:
    """Later MediaPipe, whose one file holds all models; tracking is only forgotten by a new landmarker."""

    def __init__(self, mediapipe: Any, folder: Path) -> None:
        self.mediapipe, self.file = mediapipe, folder / HOLISTIC
        self.names = mediapipe.tasks.vision.PoseLandmark
        if not self.file.is_file():
            raise FileNotFoundError(
                f"--models {folder}: no {HOLISTIC} there, which mediapipe {mediapipe.__version__} needs. Get it from "
                f"{HOLISTIC_FILE}"
            )
        self.model: Any = None
        self.start()
        atexit.register(self._leave)

    def _leave(self) -> None:
        """Leave closing to the system: when Python ends, MediaPipe's own closing prints a traceback."""
        self.model._handle = None

    def start(self) -> None:
        if self.model:
            self.model.close()
        vision, tasks, self.time = self.mediapipe.tasks.vision, self.mediapipe.tasks, 0
        try:
            options = vision.HolisticLandmarkerOptions(
                tasks.BaseOptions(model_asset_path=str(self.file)), vision.RunningMode.VIDEO
            )
            self.model = vision.HolisticLandmarker.create_from_options(options)
        except (ValueError, OSError, RuntimeError) as error:
            raise ValueError(f"--models: {self.file} cannot be loaded: {in_one_line(error, 200)}") from None

    def process(self, picture: np.ndarray) -> Any:
        self.time += MILLISECONDS
        image = self.mediapipe.Image(self.mediapipe.ImageFormat.SRGB, np.ascontiguousarray(picture))
        return self.model.detect_for_video(image, self.time)


@contextlib.contextmanager
def _no_native_messages() -> Iterator[None]:
    """Suppress what C++ code writes to stderr: MediaPipe prints a warning for every model it loads."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


# -- one clip ----------------------------------------------------------------------------------------------------------


class Extraction(NamedTuple):
    """A clip's pose, and the maximum number of people in an image."""

    pose: Pose
    people: int

    def seen(self) -> dict[str, int]:
        """Return the number of frames in which the body and each hand are detected."""
        parts: dict[str, Part] = {"body": "body", "left hand": "left", "right hand": "right"}
        good = self.pose.scores > SCORE_THRESHOLD
        return {name: int((good[:, PART_JOINTS[part]].mean(1) >= 0.5).sum()) for name, part in parts.items()}


def extract_pose(
    pictures: Iterable[np.ndarray], extractor: Extractor, person: int = 0, name: str | Path = "the video"
) -> Extraction:
    """Extract a person's pose (see `one_person`) from T images, (H, W, 3) uint8 RGB; ValueError if nobody is found."""
    extractor.start()
    people = [extractor(picture) for picture in pictures]
    if not people:
        raise ValueError(f"{name}: has no frames.")
    if not any((scores > SCORE_THRESHOLD).any() for _, scores in people):
        raise ValueError(f"{name}: nobody is found in any of its {len(people)} frames.")
    try:
        keypoints, scores = one_person([frame[0] for frame in people], [frame[1] for frame in people], person)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    return Extraction(Pose(keypoints, scores), max(len(scores) for _, scores in people))


def one_person(
    keypoints: Sequence[np.ndarray], scores: Sequence[np.ndarray], person: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Track one person through a clip: 0 is the one who appears largest and longest, 1 the next, and so on.

    Size is that of head and shoulders, summed over frames. Detections may be missing for a while, but jumps have a
    cost, so that the nearest person is chosen, or nobody if all others are too far away. If no frame shows two people,
    all detections are taken.

    Args:
        keypoints, scores: T arrays (P, 133, 2), and T arrays (P, 133); P may vary.

    Returns:
        (T, 133, 2) and (T, 133) float32; 0 where the person is not detected.

    Raises:
        ValueError: fewer people can be tracked.
    """
    left = [(t, p) for t, frame in enumerate(scores) for p in range(len(frame))]
    if any(p for _, p in left):
        for number in range(person + 1):
            chosen = _longest_path(left, keypoints, scores)
            if not chosen:
                raise ValueError(f"person {person} (from 0) is not there: {number} people can be followed.")
            left = [detection for detection in left if detection not in chosen]
    elif person:
        raise ValueError(f"person {person} (from 0) is not there: no frame shows more than one.")
    else:
        chosen = set(left)
    places, sure = (np.zeros((len(scores), *shape), np.float32) for shape in ((N_KEYPOINTS, 2), (N_KEYPOINTS,)))
    for t, p in chosen:
        places[t], sure[t] = keypoints[t][p], scores[t][p]
    return places, sure


def _longest_path(
    detections: Sequence[tuple[int, int]], keypoints: Sequence[np.ndarray], scores: Sequence[np.ndarray]
) -> set[tuple[int, int]]:
    """Return the chain of detections (t, p), at most one per frame, with the largest total size minus jump costs."""
    boxes = []  # size, x and y of the centre
    for t, p in detections:
        seen = keypoints[t][p][HEAD_AND_SHOULDERS][scores[t][p][HEAD_AND_SHOULDERS] > SCORE_THRESHOLD]
        low, high = (seen.min(0), seen.max(0)) if len(seen) > 1 else np.zeros((2, 2))
        boxes.append((np.hypot(*(high - low)), *(low + high) / 2))
    table, times = np.array(boxes).reshape(-1, 3), np.array([t for t, _ in detections])
    size, centre = table[:, 0], table[:, 1:]
    if not size.any():
        return set()
    worth = size / size.max()  # value of the best chain that ends here
    before = np.full(len(size), -1)
    for n in np.flatnonzero(size).tolist():
        end = int(np.searchsorted(times, times[n]))  # detections in earlier frames
        start = max(0, end - REACH)
        if start < end:
            jumps = np.hypot(*(centre[start:end] - centre[n]).T) / size[n]
            values = np.where(size[start:end] > 0, worth[start:end] - JUMP_COST * jumps, 0)
            if values.max() > 0:
                before[n] = start + values.argmax()
                worth[n] += values.max()
    chain, last = set(), int(worth.argmax())
    while last >= 0:
        chain.add(detections[last])
        last = int(before[last])
    return chain


def write_pose(path: str | Path, pose: Pose) -> None:
    """Write a `.pkl` in Uni-Sign's format, {"keypoints": T x (1, 133, 2), "scores": T x (1, 133)}, atomically."""
    content = {"keypoints": list(pose.keypoints[:, None]), "scores": list(pose.scores[:, None])}
    # numpy 2 renamed `core` to `_core`, which numpy 1 does not know; protocol 3 stores names as lines of text.
    data = pickle.dumps(content, protocol=3).replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
    write_bytes(path, data)
