"""`.npz` and `.pose` files: the points land where they belong, whatever system they come from."""

import json
import pickle
import zipfile

import numpy as np
import pytest

from pose.files import BODY, SYSTEMS
from pose.keypoints import PART_JOINTS, part_keypoints, read_pose
from tests.helpers.poses import write_pose


def some(n_frames=6, seed=0):
    """Keypoints and scores that differ everywhere."""
    rng = np.random.default_rng(seed)
    return rng.random((n_frames, 133, 2)).astype(np.float32), rng.uniform(0.01, 1, (n_frames, 133)).astype(np.float32)


# -- .npz --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("people", [None, 1, 2])
def test_npz(tmp_path, people):
    keypoints, scores = some()
    extra = [np.stack([x, x * 0.5][:people], axis=1) if people else x for x in (keypoints, scores)]
    np.savez_compressed(tmp_path / "a.npz", keypoints=extra[0], scores=extra[1], start=1, end=np.int16(5))
    pose = read_pose(tmp_path / "a.npz")
    np.testing.assert_array_equal(pose.keypoints, keypoints[1:5])
    np.testing.assert_array_equal(pose.scores, scores[1:5])
    assert (pose.start, len(pose)) == (1, 4)


def test_endings_in_capitals(tmp_path):
    keypoints, scores = some()
    np.savez(tmp_path / "a.npz", keypoints=keypoints, scores=scores)
    (tmp_path / "a.PKL").write_bytes(pickle.dumps({"keypoints": keypoints[:, None], "scores": scores[:, None]}))
    for path in (tmp_path / "a.npz").rename(tmp_path / "a.NPZ"), tmp_path / "a.PKL":
        np.testing.assert_array_equal(read_pose(path).keypoints, keypoints)


def test_of_an_npz_only_what_is_needed_is_read(tmp_path):
    """Other arrays may be of any kind, and numbers may be arrays of one, as MATLAB's are."""
    keypoints, scores = some()
    more = {"meta": np.array([{"fps": 25}], object), "start": np.array([1]), "end": np.array([5])}
    np.savez(tmp_path / "a.npz", keypoints=keypoints, scores=scores, **more)
    pose = read_pose(tmp_path / "a.npz")
    np.testing.assert_array_equal(pose.keypoints, keypoints[1:5])
    assert (pose.start, pose.n_after) == (1, 1)
    np.savez(tmp_path / "a.npz", keypoints=keypoints, scores=scores, start=[0, 1])
    with pytest.raises(ValueError, match=r"start has the shape \(2,\); wanted one number"):
        read_pose(tmp_path / "a.npz")


class Payload:
    def __reduce__(self):
        return open, ("PWNED", "w")


def bad_npz(kind, path):
    keypoints, scores = some()
    if kind == "text":
        path.write_text("no archive")
    elif kind == "pickle":
        np.savez(path, keypoints=np.array([Payload()], object), scores=scores)
    elif kind == "truncated":
        np.savez(path, keypoints=keypoints, scores=scores)
        path.write_bytes(path.read_bytes()[:2000])
    elif kind == "people":
        np.savez(path, keypoints=np.empty((1, 70_000, 0, 2)), scores=np.empty((1, 70_000, 0)))
    elif kind == "start":
        np.savez(path, keypoints=keypoints, scores=scores, start=np.zeros(99))
    elif kind == "huge":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file, file.open("keypoints.npy", "w") as part:
            for _ in range(1025):
                part.write(bytes(1 << 20))


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("text", "not a readable .npz file: File is not a zip file"),
        ("pickle", "not a readable .npz file: Object arrays"),
        ("truncated", "not a readable .npz file"),
        ("people", "it has an empty array of the shape (1, 70000, 0, 2)"),
        ("start", "start has the shape (99,); wanted one number"),
        pytest.param("huge", "bytes unpacked", marks=pytest.mark.slow),
    ],
)
def test_damaged_npz_is_one_line(tmp_path, monkeypatch, kind, said):
    monkeypatch.chdir(tmp_path)
    bad_npz(kind, tmp_path / "a.npz")
    with pytest.raises(ValueError, match=r"a\.npz: ") as error:
        read_pose(tmp_path / "a.npz")
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "PWNED").exists()


def test_files_of_another_kind_and_missing_ones(tmp_path):
    (tmp_path / "a.txt").write_text("?")
    with pytest.raises(ValueError, match=r"a\.txt: pose files end in \.pkl, \.npz or \.pose"):
        read_pose(tmp_path / "a.txt")
    pytest.importorskip("pose_format", reason="needs the extra pose")
    for name in ("none.npz", "none.pose"):
        with pytest.raises(FileNotFoundError, match="none"):
            read_pose(tmp_path / name)


# -- .pose -------------------------------------------------------------------------------------------------------------

# Where points must land, from the numbering of COCO-WholeBody. All names are of the signer's own left and right.
HOLISTIC = {
    ("POSE_LANDMARKS", "NOSE"): 0,
    ("POSE_LANDMARKS", "LEFT_EYE"): 1,
    ("POSE_LANDMARKS", "RIGHT_EAR"): 4,
    ("POSE_LANDMARKS", "LEFT_SHOULDER"): 5,
    ("POSE_LANDMARKS", "RIGHT_SHOULDER"): 6,
    ("POSE_LANDMARKS", "LEFT_WRIST"): 9,
    ("POSE_LANDMARKS", "RIGHT_WRIST"): 10,
    ("POSE_LANDMARKS", "RIGHT_ANKLE"): 16,
    ("POSE_LANDMARKS", "LEFT_FOOT_INDEX"): 17,
    ("POSE_LANDMARKS", "LEFT_HEEL"): 19,
    ("POSE_LANDMARKS", "RIGHT_HEEL"): 22,
    ("FACE_LANDMARKS", "127"): 23,  # the jaw begins below the right ear,
    ("FACE_LANDMARKS", "152"): 31,  # comes to the chin
    ("FACE_LANDMARKS", "356"): 39,  # and ends below the left ear
    ("FACE_LANDMARKS", "4"): 53,  # tip of the nose
    ("FACE_LANDMARKS", "78"): 83,  # inner lips, from the right corner
    ("FACE_LANDMARKS", "13"): 85,
    ("FACE_LANDMARKS", "308"): 87,  # to the left one
    ("FACE_LANDMARKS", "14"): 89,
    ("LEFT_HAND_LANDMARKS", "WRIST"): 91,
    ("LEFT_HAND_LANDMARKS", "INDEX_FINGER_TIP"): 99,
    ("RIGHT_HAND_LANDMARKS", "WRIST"): 112,
    ("RIGHT_HAND_LANDMARKS", "PINKY_TIP"): 132,
}
FINGERS = ("INDEX_FINGER", "MIDDLE_FINGER", "RING_FINGER", "PINKY")
HAND = ["WRIST", *(f"THUMB_{joint}" for joint in ("CMC", "MCP", "IP", "TIP"))]
HAND += [f"{finger}_{joint}" for finger in FINGERS for joint in ("MCP", "PIP", "DIP", "TIP")]
MEDIAPIPE_BODY = (
    "NOSE LEFT_EYE_INNER LEFT_EYE LEFT_EYE_OUTER RIGHT_EYE_INNER RIGHT_EYE RIGHT_EYE_OUTER LEFT_EAR RIGHT_EAR "
    "MOUTH_LEFT MOUTH_RIGHT LEFT_SHOULDER RIGHT_SHOULDER LEFT_ELBOW RIGHT_ELBOW LEFT_WRIST RIGHT_WRIST LEFT_PINKY "
    "RIGHT_PINKY LEFT_INDEX RIGHT_INDEX LEFT_THUMB RIGHT_THUMB LEFT_HIP RIGHT_HIP LEFT_KNEE RIGHT_KNEE "
    "LEFT_ANKLE RIGHT_ANKLE LEFT_HEEL RIGHT_HEEL LEFT_FOOT_INDEX RIGHT_FOOT_INDEX"
).split()


def holistic(tmp_path, drop=()):
    components = {
        "POSE_LANDMARKS": MEDIAPIPE_BODY,
        "FACE_LANDMARKS": [str(i) for i in range(478)],
        "LEFT_HAND_LANDMARKS": HAND,
        "RIGHT_HAND_LANDMARKS": HAND,
        "POSE_WORLD_LANDMARKS": MEDIAPIPE_BODY,
    }
    components = {name: points for name, points in components.items() if name not in drop}
    n_points = sum(map(len, components.values()))
    rng = np.random.default_rng(3)
    data = rng.uniform(0, 400, (4, 1, n_points, 3)).astype(np.float32)
    confidence = rng.uniform(0.1, 1, (4, 1, n_points)).astype(np.float32)
    path = write_pose(tmp_path / "a.pose", components, data, confidence, dims="XYZC")
    columns = [(name, point) for name, points in components.items() for point in points]
    return read_pose(path), columns, data[:, 0, :, :2] / (640, 480), confidence[:, 0]


def test_holistic(tmp_path):
    pose, columns, data, confidence = holistic(tmp_path)
    for source, point in HOLISTIC.items():
        column = columns.index(source)
        np.testing.assert_allclose(pose.keypoints[:, point], data[:, column], rtol=1e-6, err_msg=str(source))
        np.testing.assert_array_equal(pose.scores[:, point], confidence[:, column])
    # Two mesh points for one of the jaw: their mean, as sure as the less sure one.
    pair = [columns.index(("FACE_LANDMARKS", name)) for name in ("132", "58")]
    np.testing.assert_allclose(pose.keypoints[:, 26], data[:, pair].mean(1), rtol=1e-6)
    np.testing.assert_array_equal(pose.scores[:, 26], confidence[:, pair].min(1))
    absent = np.flatnonzero(~pose.scores.any(0))
    assert absent.tolist() == [18, 21]  # small toes, which MediaPipe does not have
    assert not pose.keypoints[:, absent].any()
    # Every other point comes from somewhere else.
    assert len({tuple(pose.keypoints[0, point]) for point in range(133)}) == 132


def test_what_a_file_lacks_was_not_found(tmp_path):
    pose, *_ = holistic(tmp_path, drop=("FACE_LANDMARKS", "LEFT_HAND_LANDMARKS", "POSE_WORLD_LANDMARKS"))
    assert np.flatnonzero(~pose.scores.any(0)).tolist() == [18, 21, *range(23, 112)]
    parts = part_keypoints(pose, np.arange(4))
    assert not parts["left"].any()
    assert parts["right"].any()


def test_openpose(tmp_path):
    openpose = pytest.importorskip("pose_format.utils.openpose", reason="needs the extra pose")
    components = {component.name: component.points for component in openpose.OpenPose_Components}
    columns = [(name, point) for name, points in components.items() for point in points]
    rng = np.random.default_rng(4)
    data = rng.uniform(0, 400, (3, 2, len(columns), 2)).astype(np.float32)
    confidence = rng.uniform(0.1, 1, (3, 2, len(columns))).astype(np.float32)
    pose = read_pose(write_pose(tmp_path / "a.pose", components, data, confidence))
    expected = {
        ("pose_keypoints_2d", "Nose"): 0,
        ("pose_keypoints_2d", "LEye"): 1,
        ("pose_keypoints_2d", "REar"): 4,
        ("pose_keypoints_2d", "LShoulder"): 5,
        ("pose_keypoints_2d", "RWrist"): 10,
        ("pose_keypoints_2d", "LBigToe"): 17,
        ("pose_keypoints_2d", "RSmallToe"): 21,
        ("face_keypoints_2d", "FB_0"): 23,
        ("face_keypoints_2d", "FN_30"): 53,
        ("face_keypoints_2d", "FLI_60"): 83,
        ("face_keypoints_2d", "FLI_67"): 90,
        ("hand_left_keypoints_2d", "BASE"): 91,
        ("hand_left_keypoints_2d", "I_DIP"): 99,
        ("hand_right_keypoints_2d", "BASE"): 112,
        ("hand_right_keypoints_2d", "P_DIP"): 132,
    }
    for source, point in expected.items():
        column = columns.index(source)
        np.testing.assert_allclose(pose.keypoints[:, point], data[:, 0, column] / (640, 480), rtol=1e-6)
        np.testing.assert_array_equal(pose.scores[:, point], confidence[:, 0, column])
    assert pose.scores.all()  # OpenPose has them all, and the first of two people counts


@pytest.mark.parametrize("system", ["COCO-WholeBody", "AlphaPose"])
def test_real_poses_come_back(shared_real, tmp_path, system):
    """A pose of 133 points, written in the library's own components, is read as what it was."""
    index = json.loads((shared_real / "isolated/index.json").read_text(encoding="utf-8"))
    (entry,) = [entry for entry in index if entry["name"] == "hands_84322c38"]
    pose = read_pose(shared_real / f"isolated/pose_format/{entry['name']}.pkl")
    coco = pytest.importorskip("pose_format.utils.cocowholebody133_header", reason="needs the extra pose")
    names = list(SYSTEMS[system])
    components = {
        name: component.points for name, component in zip(names, coco.cocowholebody_components(), strict=True)
    }
    assert BODY.split() == coco.BODY_POINTS
    pixels = pose.keypoints[:, None] * np.array(entry["header_size"], np.float32)
    path = write_pose(tmp_path / "a.pose", components, pixels, pose.scores[:, None], entry["header_size"])
    again = read_pose(path)
    assert len(again) == entry["frames"]
    np.testing.assert_array_equal(again.scores, pose.scores)
    found = pose.scores > 0
    np.testing.assert_allclose(again.keypoints[found], pose.keypoints[found], rtol=1e-6, atol=1e-7)
    for part in PART_JOINTS:
        ours, theirs = (part_keypoints(clip, np.arange(len(pose)))[part] for clip in (again, pose))
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)  # float32 coordinates, once through pixels


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("empty", "not a readable .pose file"),
        ("truncated", "not a readable .pose file"),
        ("size", "gives no width and height"),
        ("system", "has the components ['BODY_3D']; known systems are MediaPipe Holistic, OpenPose"),
        ("hand", "LEFT_HAND has 20 points; wanted 21"),
    ],
)
def test_damaged_pose_files_are_one_line(tmp_path, kind, said):
    keypoints, scores = some()
    components = {
        "BODY": [str(i) for i in range(23)],
        "LEFT_HAND": [str(i) for i in range(20 if kind == "hand" else 21)],
    }
    if kind == "system":
        components = {"BODY_3D": [str(i) for i in range(44)]}
    n = sum(map(len, components.values()))
    data, confidence = keypoints[:, None, :n], scores[:, None, :n]
    path = write_pose(tmp_path / "a.pose", components, data, confidence, (0, 480) if kind == "size" else (1, 1))
    if kind in ("empty", "truncated"):
        path.write_bytes(path.read_bytes()[: 0 if kind == "empty" else -9])
    with pytest.raises(ValueError, match=r"a\.pose: ") as error:
        read_pose(path)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_without_the_library_the_cure_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pose_format", None)
    (tmp_path / "a.pose").write_bytes(b"")
    with pytest.raises(ValueError, match=r'a\.pose: .*pip install -e "\.\[pose\]"'):
        read_pose(tmp_path / "a.pose")


def test_files_that_were_resampled_have_scores_beyond_one(tmp_path):
    keypoints, scores = some()
    components = {"BODY": [str(i) for i in range(23)]}
    scores = scores[:, None, :23]
    scores[1, 0, 4], scores[2, 0, 4] = 8.8, -16
    pose = read_pose(write_pose(tmp_path / "a.pose", components, keypoints[:, None, :23], scores))
    assert pose.scores[1, 4] == 1
    assert pose.scores[2, 4] == 0
    assert not pose.keypoints[2, 4].any()
