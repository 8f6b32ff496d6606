"""Keypoints: normalisation against recorded and hand-computed values, and pose files good and odd."""

import pickle

import numpy as np
import pytest
import torch

from pose.keypoints import (
    PART_ANCHOR,
    PART_JOINTS,
    PART_ORIGIN,
    Pose,
    cut_clip,
    normalize_keypoints,
    part_keypoints,
    read_pose,
)

LENGTHS = {"body": 9, "left": 21, "right": 21, "face_all": 18}


def test_parts_are_those_of_coco_wholebody():
    assert {part: len(joints) for part, joints in PART_JOINTS.items()} == LENGTHS
    assert PART_JOINTS["body"].tolist() == [0, 3, 4, 5, 6, 7, 8, 9, 10]
    assert (PART_JOINTS["left"][0], PART_JOINTS["right"][0], PART_JOINTS["face_all"][-1]) == (91, 112, 53)
    assert PART_ORIGIN == {"left": 0, "right": 0, "face_all": -1}
    # The left wrist is point 9, the right one 10, the nose 0.
    assert {part: PART_JOINTS["body"][joint] for part, joint in PART_ANCHOR.items()} == {
        "left": 9,
        "right": 10,
        "face_all": 0,
    }


# -- normalisation -------------------------------------------------------------------------------------------------


@pytest.mark.parity
@pytest.mark.parametrize("clip", ["clip0", "clip1", "clip2", "clip3"])
def test_normalisation_is_the_official_one(shared_reference, clip):
    clips, expected = np.load(shared_reference / "clips.npz"), np.load(shared_reference / "load_part_kp.npz")
    parts = normalize_keypoints(clips[f"{clip}.keypoints"], clips[f"{clip}.scores"])
    assert list(parts) == list(LENGTHS)
    for part, values in parts.items():
        np.testing.assert_allclose(values, expected[f"{clip}.{part}"], rtol=0, atol=1e-12)


@pytest.mark.parity
def test_normalisation_of_edge_cases_is_the_official_one(shared_reference):
    vectors = np.load(shared_reference / "load_part_kp_edge.npz")
    cases = sorted({key.split(".")[0] for key in vectors.files})
    assert len(cases) == 12
    for case in cases:
        parts = normalize_keypoints(vectors[f"{case}.in.keypoints"], vectors[f"{case}.in.scores"])
        # In float32 numpy 1.22, which recorded the vectors, and numpy 2 round differently; one such step is 1.2e-7.
        tolerance = 2e-7 if case == "float32_keypoints" else 1e-12
        for part, values in parts.items():
            expected = vectors[f"{case}.out.{part}"]
            assert values.dtype == expected.dtype
            np.testing.assert_allclose(values, expected, rtol=0, atol=tolerance, err_msg=f"{case} {part}")


def clip_of(points, n_frames=1):
    """(frame, joint) -> (x, y, score); all else is not found, with coordinates that must not count."""
    keypoints, scores = np.full((n_frames, 133, 2), 0.9), np.zeros((n_frames, 133))
    for (frame, joint), (x, y, score) in points.items():
        keypoints[frame, joint], scores[frame, joint] = (x, y), score
    return keypoints, scores


# Body points in two frames: x from 0.3 to 0.7, y from 0.2 to 1.0, so the scale is 0.8 and the corner (0.1, 0.2).
BODY = {(0, 0): (0.5, 0.2, 1.0), (0, 5): (0.7, 0.4, 0.5), (1, 6): (0.3, 0.6, 0.31), (1, 9): (0.5, 1.0, 1.0)}


def test_normalisation_by_hand():
    others = {
        (0, 91): (0.6, 0.5, 0.9),
        (0, 95): (0.7, 0.3, 0.8),
        (0, 96): (0.7, 0.3, 0.3),  # not sure enough
        (0, 97): (9.0, -9.0, 1.5),  # far out
        (1, 112): (0.2, 0.2, 0.1),  # a wrist that was not found is the origin all the same
        (1, 113): (0.4, 0.1, 1.0),
        (1, 53): (0.5, 0.25, 1.0),
        (1, 23): (0.46, 0.29, 1.0),
        (0, 10): (0.0, 9.0, 0.3),  # of the body, but not in its box
    }
    parts = normalize_keypoints(*clip_of(BODY | others, n_frames=2))
    expected = {part: np.zeros((2, n, 3)) for part, n in LENGTHS.items()}
    expected["body"][0, 0] = (0, -1, 1)
    expected["body"][0, 3] = (0.5, -0.5, 0.5)
    expected["body"][1, 4] = (-0.5, 0, 0.31)
    expected["body"][1, 7] = (0, 1, 1)
    expected["left"][0, 0] = (0, 0, 0.9)
    expected["left"][0, 4] = (0.125, -0.25, 0.8)
    expected["left"][0, 6] = (1, -1, 1)
    expected["right"][1, 1] = (0.25, -0.125, 1)
    expected["face_all"][1, 17] = (0, 0, 1)
    expected["face_all"][1, 0] = (-0.05, 0.05, 1)
    for part, values in parts.items():
        np.testing.assert_allclose(values, expected[part], rtol=0, atol=1e-12, err_msg=part)


@pytest.mark.parametrize("lost", BODY)
def test_three_points_of_the_body_are_too_few(lost):
    hand = {(0, 91): (0.6, 0.5, 1.0), (0, 92): (0.7, 0.5, 1.0)}
    assert normalize_keypoints(*clip_of(BODY | hand, 2))["left"].any()
    points = {**BODY, **hand, lost: (*BODY[lost][:2], 0.3)}
    assert not any(values.any() for values in normalize_keypoints(*clip_of(points, 2)).values())


def test_a_lost_point_may_be_anywhere():
    """Some programs give it the largest number there is; times the scale that is infinity in float32."""
    points = {(0, 91): (0.6, 0.5, 1.0), (0, 95): (np.finfo(np.float32).max, 0.5, 0.1)}
    parts = normalize_keypoints(*(values.astype(np.float32) for values in clip_of(BODY | points, 2)))
    assert all(np.isfinite(values).all() for values in parts.values())
    assert not parts["left"][0, 4].any()


def test_a_good_point_beyond_everything_is_refused(tmp_path):
    keypoints = np.full((3, 133, 2), 0.5)
    keypoints[1, 3] = 1.7e308
    np.savez(tmp_path / "a.npz", keypoints=keypoints, scores=np.ones((3, 133)))
    with pytest.raises(ValueError, match=r"a\.npz: coordinates reach 1\.7e\+308; wanted fractions"):
        read_pose(tmp_path / "a.npz")


def test_sampled_frames_are_normalised_by_themselves():
    rng = np.random.default_rng(1)
    pose = Pose(rng.random((9, 133, 2)), rng.random((9, 133)))
    frames = np.array([1, 4, 7])
    parts = part_keypoints(pose, frames)
    expected = normalize_keypoints(pose.keypoints[frames], pose.scores[frames])
    assert list(parts) == list(LENGTHS)
    for part, values in parts.items():
        assert values.dtype == torch.float32
        assert values.shape == (3, LENGTHS[part], 3)
        np.testing.assert_array_equal(values.numpy(), expected[part].astype(np.float32))
    assert not torch.equal(parts["body"], part_keypoints(pose, np.arange(9))["body"][frames])


# -- pose files ----------------------------------------------------------------------------------------------------


def test_good_files_of_every_dialect(shared_real):
    folder = shared_real / "fingerspelling/pose_format"
    files = sorted(folder.iterdir())[::7] + sorted(folder.glob("F00000*"))
    dialects, dtypes = set(), set()
    for path in files:
        data = path.read_bytes()
        dialects |= {
            name for name in (b"numpy.core.multiarray", b"numpy._core.multiarray", b"_frombuffer") if name in data
        }
        plain = pickle.loads(data)
        pose = read_pose(path)
        assert type(pose.keypoints) is type(pose.scores) is np.ndarray
        assert (len(pose), pose.start) == (len(plain["scores"]), 0)
        dtypes |= {plain["keypoints"][0].dtype, plain["scores"][0].dtype}
        assert pose.keypoints.dtype == pose.scores.dtype == np.float32  # also of what is stored in half of it
        np.testing.assert_array_equal(pose.keypoints, np.concatenate(plain["keypoints"]).astype(np.float32))
        np.testing.assert_array_equal(pose.scores, np.concatenate(plain["scores"]).astype(np.float32))
    assert len(dialects) == 3
    assert dtypes == {np.dtype(np.float16), np.dtype(np.float32)}


def saved(folder, **content):
    path = folder / "clip.pkl"
    path.write_bytes(pickle.dumps(content))
    return path


def frames(n, shape, dtype=np.float32):
    rng = np.random.default_rng(n)
    return [rng.random((1, *shape)).astype(dtype) for _ in range(n)]


def test_start_and_end_cut_a_clip_out(tmp_path):
    keypoints, scores = frames(12, (133, 2)), frames(12, (133,))
    pose = read_pose(saved(tmp_path, keypoints=keypoints, scores=scores, start=np.int64(3), end=8))
    assert (len(pose), pose.start, type(pose.start)) == (5, 3, int)
    assert (pose.n_after, pose.n_recorded) == (4, 12)
    np.testing.assert_array_equal(pose.keypoints, np.concatenate(keypoints[3:8]))
    np.testing.assert_array_equal(pose.scores, np.concatenate(scores[3:8]))
    # What lies outside the clip is nobody's business.
    keypoints[0] = keypoints[0] * np.nan
    assert len(read_pose(saved(tmp_path, keypoints=keypoints, scores=scores, start=3, end=12))) == 9


@pytest.mark.parametrize(("start", "end"), [(0, 12), (3, 8)])
def test_the_number_of_frames_is_that_of_the_labels(tmp_path, start, end):
    path = saved(tmp_path, keypoints=frames(12, (133, 2)), scores=frames(12, (133,)), start=start, end=end)
    pose = read_pose(path)
    assert cut_clip(path, pose, {"frames": end - start}) is pose
    with pytest.raises(
        ValueError, match=rf"clip\.pkl: the clip has {end - start} frames, the labels say 11\. .*frame"
    ) as e:
        cut_clip(path, pose, {"frames": 11})
    assert "\n" not in str(e.value)


def test_a_clip_that_is_cut_out_of_a_part_counts_as_the_recording(tmp_path):
    path = saved(tmp_path, keypoints=frames(12, (133, 2)), scores=frames(12, (133,)), start=3, end=10)
    pose = read_pose(path)
    clip = cut_clip(path, pose, {"start": 5, "end": 8, "frames": 3})
    assert (clip.start, len(clip), clip.n_after, clip.n_recorded) == (5, 3, 4, 12)
    assert np.array_equal(clip.keypoints, pose.keypoints[2:5])
    assert np.array_equal(clip.scores, pose.scores[2:5])
    assert cut_clip(path, pose, {"start": 8}).frames == range(8, 10)
    for label in ({"start": 2}, {"end": 11}, {"start": 10}):
        with pytest.raises(ValueError, match="holds the frames 3 to 10, the labels say"):
            cut_clip(path, pose, label)


def test_whole_arrays_and_plain_lists_are_read_too(tmp_path):
    keypoints, scores = frames(4, (133, 2), np.float64), frames(4, (133,), np.float64)
    expected = np.concatenate(keypoints)
    for pack in (np.stack, tuple, lambda arrays: [array.tolist() for array in arrays]):
        pose = read_pose(saved(tmp_path, keypoints=pack(keypoints), scores=pack(scores)))
        assert pose.keypoints.dtype == np.float64
        np.testing.assert_array_equal(pose.keypoints, expected)


@pytest.mark.parametrize("write", [np.savez, lambda path, **content: saved(path.parent, **content)])
def test_one_person_s_frames_may_stand_behind_the_people(tmp_path, write):
    rng = np.random.default_rng(0)
    keypoints, scores = rng.random((40, 133, 2)), rng.random((40, 133))
    path = tmp_path / "clip.npz"
    path = write(path, keypoints=keypoints[None], scores=scores[None]) or path
    pose = read_pose(path)
    np.testing.assert_array_equal(pose.keypoints, keypoints)
    np.testing.assert_array_equal(pose.scores, scores)
    for people in (2, 3):  # nobody knows which of them signs
        write(tmp_path / "clip.npz", keypoints=np.stack([keypoints] * people), scores=np.stack([scores] * people))
        with pytest.raises(ValueError, match=rf"{people} frames of 40 people\..* keypoints\.swapaxes\(0, 1\)"):
            read_pose(path)
    # Sixteen people in three frames are a crowd.
    write(tmp_path / "clip.npz", keypoints=keypoints[None, :16].repeat(3, 0), scores=scores[None, :16].repeat(3, 0))
    np.testing.assert_array_equal(read_pose(path, person=2).keypoints, keypoints[2][None].repeat(3, 0))


def test_scores_above_one_are_kept_and_percentages_refused(tmp_path):
    keypoints, scores = np.random.default_rng(0).random((2, 4, 133, 2)), np.full((4, 133), 7.5)
    np.savez(tmp_path / "a.npz", keypoints=keypoints[0], scores=scores)
    pose = read_pose(tmp_path / "a.npz")  # rtmlib's are of this kind
    assert (pose.scores == 7.5).all()
    assert (part_keypoints(pose, np.arange(4))["body"][..., 2] == 1).all()
    scores[2, 5] = 90
    np.savez(tmp_path / "a.npz", keypoints=keypoints[0], scores=scores)
    with pytest.raises(ValueError, match=r"a\.npz: scores reach 90; wanted 0 to 1\. Divide them"):
        read_pose(tmp_path / "a.npz")


def test_a_point_in_the_corner_is_not_seen(tmp_path):
    rng = np.random.default_rng(0)
    keypoints, scores = rng.uniform(0.4, 0.6, (9, 133, 2)), np.ones((9, 133))
    np.savez(tmp_path / "a.npz", keypoints=keypoints, scores=scores)
    whole = part_keypoints(read_pose(tmp_path / "a.npz"), np.arange(9))
    keypoints[3] = 0
    keypoints[5, 7] = 0
    np.savez(tmp_path / "a.npz", keypoints=keypoints, scores=scores)
    pose = read_pose(tmp_path / "a.npz")
    assert not pose.scores[3].any()
    assert (pose.scores == 0).sum() == 133 + 1
    others = [0, 1, 2, 4, 6, 7, 8]
    # As if only the rest had been there: the lost points neither shrink the body nor count as seen.
    for part, values in part_keypoints(pose, np.arange(9)).items():
        alone = part_keypoints(Pose(pose.keypoints[others], pose.scores[others]), np.arange(7))[part]
        assert not values[3].any()
        torch.testing.assert_close(values[others], alone, rtol=0, atol=0.03)
        torch.testing.assert_close(values[others], whole[part][others], rtol=0, atol=0.03)


@pytest.mark.parametrize("nobody", [[], None, (), np.zeros(0), np.zeros((0, 133, 2))])
def test_a_frame_with_nobody_may_be_empty(tmp_path, nobody):
    keypoints, scores = frames(3, (133, 2)), frames(3, (133,))
    whole = read_pose(saved(tmp_path, keypoints=keypoints, scores=scores))
    keypoints[1], scores[1] = nobody, None
    pose = read_pose(saved(tmp_path, keypoints=keypoints, scores=scores))
    assert not pose.keypoints[1].any()
    assert not pose.scores[1].any()
    np.testing.assert_array_equal(pose.keypoints[::2], whole.keypoints[::2])
    scores[1] = np.ones((1, 133))  # somebody, whose keypoints are lost
    if nobody is None or not isinstance(nobody, np.ndarray):
        with pytest.raises(ValueError, match="frame 1 of keypoints is .*; wanted numbers of the shape"):
            read_pose(saved(tmp_path, keypoints=keypoints, scores=scores))


def test_a_clip_with_nobody_in_any_frame_may_be_of_empty_ones(tmp_path):
    pose = read_pose(saved(tmp_path, keypoints=[None, []], scores=[[], []]))
    assert (len(pose), pose.scores.any(), pose.keypoints.any()) == (2, False, False)


def test_a_point_that_was_not_found_may_hold_nan(tmp_path):
    keypoints, scores = frames(3, (133, 2)), frames(3, (133,))
    scores[1][0, 7] = 0
    keypoints[1][0, 7] = np.nan, 0.5
    pose = read_pose(saved(tmp_path, keypoints=keypoints, scores=scores))
    assert not pose.keypoints[1, 7].any()
    keypoints[1][0, 7] = 0
    np.testing.assert_array_equal(pose.keypoints, np.concatenate(keypoints))
    scores[1][0, 7] = 1e-6
    keypoints[1][0, 7] = np.nan
    with pytest.raises(ValueError, match="1 frames hold NaN or infinite values, the first is 1"):
        read_pose(saved(tmp_path, keypoints=keypoints, scores=scores))


RAGGED = [[[0.1, 0.2], [0.3]]]


@pytest.mark.parametrize(
    "wrong",
    [
        {"keypoints": None},
        {"keypoints": np.zeros(())},
        {"keypoints": [None] * 3},
        {"keypoints": [RAGGED] * 3},
        {"keypoints": [np.full((1, 133, 2), "a")] * 3},
        {"keypoints": [np.zeros((1, 133, 3))] * 3},
        {"scores": [np.zeros(133)] * 3},
        {"scores": []},
        {"start": "0"},
        {"start": -1},
        {"start": 3},
        {"end": 2.5},
        {"end": 0},
    ],
    ids=lambda wrong: " ".join(f"{key}={type(value).__name__}" for key, value in wrong.items()),
)
def test_a_wrong_value_is_one_clear_error(tmp_path, wrong):
    content = {"keypoints": frames(3, (133, 2)), "scores": frames(3, (133,)), **wrong}
    with pytest.raises(ValueError, match=r"clip\.pkl: ") as error:
        read_pose(saved(tmp_path, **content))
    assert "wanted" in str(error.value) or "frames of keypoints" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.pkl"):
        read_pose(tmp_path / "none.pkl")
