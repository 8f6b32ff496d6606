"""From pictures to poses: the two models behind one interface, and who is followed where several people are seen."""

import importlib.metadata
import itertools
import pickle
import pickletools
import sys
import types

import numpy as np
import pytest

from pose import extraction
from pose.extraction import MediaPipe, Rtmlib, extract_pose, load_extractor, one_person, write_pose
from pose.files import BODY
from pose.keypoints import PART_JOINTS, Pose, read_pose

PICTURE = np.zeros((40, 80, 3), np.uint8)


def person(x, size=0.1, y=0.5):
    """133 points around a place; head and shoulders are `size` high and wide."""
    keypoints = np.full((133, 2), [x, y])
    keypoints[0], keypoints[6] = [x - size / 2, y - size / 2], [x + size / 2, y + size / 2]
    return keypoints


def follow(frames, number=0):
    """Where the person is in each frame; NaN where not seen. Frames hold the people's keypoints."""
    keypoints, scores = one_person(
        [np.reshape(frame, (-1, 133, 2)) for frame in frames], [np.ones((len(frame), 133)) for frame in frames], number
    )
    assert keypoints.dtype == scores.dtype == np.float32
    return np.where(scores[:, 1] > 0, keypoints[:, 1, 0], np.nan)


# -- who is followed ---------------------------------------------------------------------------------------------------


def test_alone():
    """Nothing to choose: all that is found is kept, after a cut of the film and at any size."""
    frames = [[person(0.2)]] * 3 + [[]] + [[person(0.9, 0.01)]] * 2
    np.testing.assert_allclose(follow(frames), [0.2, 0.2, 0.2, np.nan, 0.9, 0.9], rtol=1e-6)
    with pytest.raises(ValueError, match=r"person 1 \(from 0\) is not there: no frame shows more than one"):
        follow(frames, 1)


@pytest.mark.parametrize("swap", [False, True])
def test_the_larger_one_whatever_the_order(swap):
    """An extractor's order changes; people do not."""
    frames = []
    for t in range(12):
        pair = [person(0.3 + 0.01 * t, 0.2), person(0.7, 0.1)]
        frames.append(pair[::-1] if swap and t % 3 == 1 else pair)
    np.testing.assert_allclose(follow(frames), 0.3 + 0.01 * np.arange(12), rtol=1e-5)
    np.testing.assert_allclose(follow(frames, 1), [0.7] * 12, rtol=1e-6)
    with pytest.raises(ValueError, match=r"person 2 \(from 0\) is not there: 2 people can be followed"):
        follow(frames, 2)


def test_a_person_who_is_missed_is_not_replaced_by_somebody_far_away():
    frames = [[person(0.3, 0.2), person(0.8, 0.15)] for _ in range(20)]
    frames[5:8] = [[person(0.8, 0.15)]] * 3
    places = follow(frames)
    assert np.isnan(places[5:8]).all()
    np.testing.assert_allclose(np.delete(places, [5, 6, 7]), 0.3, rtol=1e-6)


def test_as_the_best_of_all_choices():
    """Against every way to choose, on small clips: sizes summed, less what jumps cost."""
    rng = np.random.default_rng(0)
    for _ in range(30):
        n_frames = 4
        frames = [
            [person(x, size) for x, size in zip(rng.random(2), rng.uniform(0.05, 0.3, 2), strict=True)]
            for _ in range(n_frames)
        ]
        boxes = [[(p[1, 0], np.hypot(*(p[6] - p[0]))) for p in frame] for frame in frames]
        largest = max(size for frame in boxes for _, size in frame)

        def value(choice, boxes=boxes, largest=largest):
            chain = [boxes[t][p] for t, p in enumerate(choice) if p is not None]
            jumps = sum(abs(b[0] - a[0]) / b[1] for a, b in itertools.pairwise(chain))
            return sum(size for _, size in chain) / largest - extraction.JUMP_COST * jumps

        best = max(itertools.product((0, 1, None), repeat=n_frames), key=value)
        wanted = [np.nan if p is None else boxes[t][p][0] for t, p in enumerate(best)]
        np.testing.assert_allclose(follow(frames), wanted, rtol=1e-5)


# -- a clip ------------------------------------------------------------------------------------------------------------


class StandIn:
    """An extractor that finds the given people, picture by picture."""

    label = "stand-in"

    def __init__(self, frames):
        self.frames, self.starts = frames, 0

    def start(self):
        self.starts += 1
        self.left = iter(self.frames)

    def __call__(self, picture):
        people = next(self.left)
        return np.reshape(people, (-1, 133, 2)), np.ones((len(people), 133))


def test_a_clip():
    extractor = StandIn([[person(0.3, 0.2)], [], [person(0.6), person(0.3, 0.2)]])
    found = extract_pose([PICTURE] * 3, extractor)
    np.testing.assert_allclose(found.pose.keypoints[[0, 2], 1, 0], 0.3, rtol=1e-6)
    assert (found.pose.scores[1] == 0).all()
    assert (found.people, extractor.starts) == (2, 1)
    assert found.seen() == {"body": 2, "left hand": 2, "right hand": 2}
    found.pose.scores[2, PART_JOINTS["left"][:11]] = 0.3  # more than half of it is not found
    assert found.seen() == {"body": 2, "left hand": 1, "right hand": 2}
    assert extract_pose([PICTURE] * 3, extractor, 1).pose.keypoints[2, 1, 0] == np.float32(0.6)


@pytest.mark.parametrize(
    ("frames", "number", "said"),
    [
        ([], 0, "a.mp4: has no frames"),
        ([[], []], 0, "a.mp4: nobody is found in any of its 2 frames"),
        ([[person(0.5)]], 1, "a.mp4: person 1 .* no frame shows more than one"),
    ],
)
def test_a_clip_without_a_signer_is_named(frames, number, said):
    with pytest.raises(ValueError, match=said):
        extract_pose([PICTURE] * len(frames), StandIn(frames), number, "a.mp4")


def test_files_as_of_uni_sign(tmp_path):
    rng = np.random.default_rng(0)
    pose = Pose(rng.random((5, 133, 2), np.float32), rng.random((5, 133), np.float32))
    path = tmp_path / "sub" / "a.pkl"
    write_pose(path, pose)
    content = pickle.loads(path.read_bytes())
    assert {key: (len(value), value[0].shape) for key, value in content.items()} == {
        "keypoints": (5, (1, 133, 2)),
        "scores": (5, (1, 133)),
    }
    again = read_pose(path)
    np.testing.assert_array_equal(again.keypoints, pose.keypoints)
    np.testing.assert_array_equal(again.scores, pose.scores)
    named = {argument for op, argument, _ in pickletools.genops(path.read_bytes()) if op.name == "GLOBAL"}
    assert "numpy.core.multiarray _reconstruct" in named  # not the name of numpy 2, which numpy 1 cannot read
    assert not any("_core" in name for name in named)


# -- rtmlib ------------------------------------------------------------------------------------------------------------


def rtmlib_stand_in(monkeypatch, providers=("CPUExecutionProvider",), points=133):
    """Modules of the shapes of rtmlib and onnxruntime; returns the list of the models that were loaded."""
    loaded = []

    class Model:
        def __init__(self, path, backend, device):
            print(f"load {path}")  # noqa: T201 -- as rtmlib does
            size = (416, 416) if "yolox" in path else (256, 192)
            self.path, self.device, self.seen = path, device, []
            self.session = types.SimpleNamespace(
                get_inputs=lambda: [types.SimpleNamespace(shape=["batch", 3, *size])],
                get_providers=lambda: [providers[0]],
            )
            loaded.append(self)

    class Detector(Model):
        def __call__(self, image):
            self.seen.append(image)
            return np.array([[0, 0, 40, 40], [40, 0, 80, 40]])

    class WholeBody(Model):
        def __call__(self, image, bboxes):
            places = np.stack([np.full((points, 2), [(box[0] + box[2]) / 2, 10]) for box in bboxes])
            return places, np.full((len(bboxes), points), 0.9)

    onnxruntime = types.ModuleType("onnxruntime")
    onnxruntime.get_available_providers = lambda: list(providers)
    rtmlib = types.ModuleType("rtmlib")
    rtmlib.YOLOX, rtmlib.RTMPose = Detector, WholeBody
    monkeypatch.setitem(sys.modules, "onnxruntime", onnxruntime)
    monkeypatch.setitem(sys.modules, "rtmlib", rtmlib)
    return loaded


@pytest.fixture
def models(tmp_path):
    for name in ("yolox_tiny.onnx", "rtmw-l.onnx"):
        (tmp_path / name).touch()
    return tmp_path


def test_rtmlib(monkeypatch, models, capsys):
    loaded = rtmlib_stand_in(monkeypatch)
    extractor = load_extractor("rtmlib", models)
    detector, whole_body = loaded
    assert (detector.path, whole_body.path) == (str(models / "yolox_tiny.onnx"), str(models / "rtmw-l.onnx"))
    # Height first for the detector, width first for the other: rtmlib's classes differ.
    assert (detector.model_input_size, whole_body.model_input_size) == ((416, 416), (192, 256))
    assert (extractor.label, extractor.device, capsys.readouterr().out) == ("rtmlib rtmw-l", "cpu", "")
    red = PICTURE + np.array([200, 0, 0], np.uint8)
    keypoints, scores = extractor(red)
    np.testing.assert_allclose(keypoints[:, 0], [[0.25, 0.25], [0.75, 0.25]])  # of a picture of 80 x 40
    assert keypoints.shape == (2, 133, 2)
    assert scores.shape == (2, 133)
    assert detector.seen[0][0, 0].tolist() == [0, 0, 200]  # OpenCV's order


def test_what_opencv_raises_for_a_picture_is_one_line(monkeypatch, models):
    """Its errors, and those of onnxruntime, are no kind of Python's; they must not end the extraction of others."""
    rtmlib_stand_in(monkeypatch)
    extractor = load_extractor("rtmlib", models)

    def resize(_):
        raise type("error", (Exception,), {})("OpenCV:\n!ssize.empty()")

    extractor.detector = resize
    with pytest.raises(ValueError, match=r"^rtmlib rtmw-l fails at a picture of 80 x 40: OpenCV: !ssize\.empty\(\)$"):
        extractor(PICTURE)


def test_rtmlib_on_a_gpu(monkeypatch, models):
    loaded = rtmlib_stand_in(monkeypatch, ("CUDAExecutionProvider", "CPUExecutionProvider"))
    for device, wanted in (("", "cuda"), ("cpu", "cpu"), ("cuda", "cuda")):
        assert (Rtmlib(models, device).device, loaded[-1].device) == (wanted, wanted)
    rtmlib_stand_in(monkeypatch, ("CPUExecutionProvider", "CUDAExecutionProvider"))  # there, and cannot start
    with pytest.raises(ValueError, match="onnxruntime cannot start on the GPU"):
        Rtmlib(models)
    rtmlib_stand_in(monkeypatch)
    with pytest.raises(ValueError, match="--device cuda: this onnxruntime has no GPU; install onnxruntime-gpu"):
        Rtmlib(models, "cuda")


def test_models_that_are_not_there_or_of_another_kind(monkeypatch, models):
    rtmlib_stand_in(monkeypatch)
    with pytest.raises(
        FileNotFoundError, match=r"--models pretrained_weight/rtmlib: no such .* https://download.*\.zip and https"
    ):
        load_extractor("rtmlib")
    (models / "dwpose.onnx").touch()
    with pytest.raises(FileNotFoundError, match="dwpose.onnx, rtmw-l.onnx, yolox_tiny.onnx. Wanted are two files"):
        Rtmlib(models)
    (models / "dwpose.onnx").unlink()
    rtmlib_stand_in(monkeypatch, points=26)
    with pytest.raises(ValueError, match="--models: rtmlib rtmw-l finds 26 points; wanted 133"):
        Rtmlib(models)(PICTURE)
    monkeypatch.setitem(sys.modules, "rtmlib", None)
    with pytest.raises(ValueError, match=r'--extractor rtmlib needs rtmlib: pip install -e "\.\[rtmlib\]"'):
        Rtmlib(models)


# -- MediaPipe ---------------------------------------------------------------------------------------------------------


def mediapipe_stand_in(monkeypatch, found, version, protobuf="4.25.9"):
    """A module of the shape of that MediaPipe, whose model finds what is given; returns its starts."""
    names = [name.replace("big_toe", "foot_index").upper() for name in BODY.split() if "small" not in name]
    enum = [types.SimpleNamespace(name=name) for name in names]
    starts, times = [], []

    class Holistic:
        def __init__(self, model_complexity):
            assert model_complexity == 1, "the others are downloaded"

        def reset(self):
            starts.append("reset")

        def process(self, picture):
            parts = {f"{part}_landmarks": found.get(part) for part in ("pose", "face", "left_hand", "right_hand")}
            wrapped = {part: points and types.SimpleNamespace(landmark=points) for part, points in parts.items()}
            return types.SimpleNamespace(**wrapped)

    class Landmarker:
        close = starts.pop

        @staticmethod
        def create_from_options(options):
            starts.append(options)
            times.clear()
            return Landmarker()

        def detect_for_video(self, image, time):
            assert time > max(times, default=0)
            times.append(time)
            assert image == ("SRGB", (40, 80, 3))
            parts = {f"{part}_landmarks": found.get(part, []) for part in ("pose", "face", "left_hand", "right_hand")}
            return types.SimpleNamespace(**parts)

    module = types.ModuleType("mediapipe")
    module.__version__ = version
    if version.startswith("0"):
        holistic = types.SimpleNamespace(Holistic=Holistic, PoseLandmark=enum)
        module.solutions = types.SimpleNamespace(holistic=holistic)
    else:
        vision = types.SimpleNamespace(
            PoseLandmark=enum,
            HolisticLandmarkerOptions=lambda *options: options,
            HolisticLandmarker=Landmarker,
            RunningMode=types.SimpleNamespace(VIDEO="video"),
        )
        module.tasks = types.SimpleNamespace(vision=vision, BaseOptions=lambda model_asset_path: model_asset_path)
        module.Image, module.ImageFormat = lambda kind, data: (kind, data.shape), types.SimpleNamespace(SRGB="SRGB")
    monkeypatch.setitem(sys.modules, "mediapipe", module)
    installed = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: protobuf if name == "protobuf" else installed(name))
    return starts


def landmarks(n, x, visibility=0.0):
    return [types.SimpleNamespace(x=x, y=i / 1000, visibility=visibility) for i in range(n)]


@pytest.mark.parametrize("version", ["0.10.21", "1.2.3"])
def test_mediapipe(monkeypatch, tmp_path, version):
    file = tmp_path / "holistic_landmarker.task"
    file.touch()
    found = {"pose": landmarks(21, 0.5, 0.7), "right_hand": landmarks(21, 0.2)}
    starts = mediapipe_stand_in(monkeypatch, found, version)
    extractor = load_extractor("mediapipe", tmp_path)
    extractor(PICTURE)
    extractor.start()
    (keypoints,), (scores,) = extractor(PICTURE)
    np.testing.assert_allclose(scores[:17], 0.7, rtol=1e-6)
    assert (scores[[18, 21]] == 0).all()  # MediaPipe has no small toes
    assert (scores[23:112] == 0).all()  # neither face nor left hand is found
    assert (keypoints[23:112] == 0).all()
    np.testing.assert_allclose(scores[112:], 1)
    np.testing.assert_allclose(keypoints[112:], [[0.2, i / 1000] for i in range(21)], rtol=1e-6)
    # A landmarker that tracks forgets by being made anew, after the one before was closed.
    assert starts == (["reset"] * 2 if version == "0.10.21" else [(str(file), "video")])
    assert extractor.label == f"mediapipe {version}"
    found["face"] = landmarks(478, 0.4)  # with irises
    assert (extractor(PICTURE)[1][0, 23:91] == 1).all()
    del found["pose"]
    assert [len(part) for part in extractor(PICTURE)] == [0, 0]


def test_mediapipe_that_cannot_work(monkeypatch, tmp_path):
    mediapipe_stand_in(monkeypatch, {}, "0.10.21", protobuf="6.33.1")
    with pytest.raises(ValueError, match="not work with protobuf 6.33.1: pip install protobuf==4.25.9, or take"):
        MediaPipe(tmp_path)
    mediapipe_stand_in(monkeypatch, {}, "1.2.3")
    with pytest.raises(
        FileNotFoundError,
        match=r"--models pretrained_weight/mediapipe: no hol.* Get it from https://storage\.google.*task$",
    ):
        load_extractor("mediapipe")
    monkeypatch.setitem(sys.modules, "mediapipe", None)
    with pytest.raises(ValueError, match="--extractor mediapipe needs mediapipe: pip install"):
        MediaPipe(tmp_path)


@pytest.mark.parametrize(
    ("there", "taken"), [("rtmlib mediapipe", "rtmlib"), ("mediapipe", "mediapipe"), ("", "rtmlib")]
)
def test_what_is_installed_is_taken(monkeypatch, there, taken):
    monkeypatch.setattr(extraction, "installed", lambda package: package in there.split())
    for package in ("mediapipe", "rtmlib", "onnxruntime"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=f"--extractor {taken} needs"):
        load_extractor()


def test_mediapipe_itself(shared_real, capfd):
    """A real person: the right hand is the one at the left of the picture, and the left one does nothing."""
    pytest.importorskip("mediapipe", reason="needs the extra mediapipe")
    from pose.video import read_frames

    path = shared_real / "video" / "test_video.mp4"
    some = dict(read_frames(path, set(range(26, 36)), 58))
    extractor = load_extractor("mediapipe")
    first = extract_pose([some[i] for i in sorted(some)], extractor)
    assert capfd.readouterr() == ("", "")
    assert (first.people, len(first.pose)) == (1, 10)
    seen = first.seen()
    assert seen["body"] == 10
    assert seen["left hand"] == 0
    assert seen["right hand"] >= 5
    where = first.pose.keypoints[first.pose.scores[:, 112] > 0]
    assert (where[:, 112, 0] < where[:, 0, 0] - 0.1).all()
    assert (first.pose.keypoints[:, 6, 0] < first.pose.keypoints[:, 5, 0]).all()  # shoulders, right and left
    assert (np.abs(where[:, 112] - where[:, 10]) < 0.1).all()  # the hand begins where the arm ends
    mirrored = extract_pose([some[i][:, ::-1].copy() for i in sorted(some)], extractor)
    assert mirrored.seen()["right hand"] == 0
    assert mirrored.seen()["left hand"] >= 5
    again = extract_pose([some[i] for i in sorted(some)], extractor)  # nothing of the clip before is left
    np.testing.assert_array_equal(again.pose.keypoints, first.pose.keypoints)
