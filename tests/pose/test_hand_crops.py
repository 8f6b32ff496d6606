"""Crops of the hands: as the official ones, and from real videos."""

import weakref

import numpy as np
import pytest
import torch

from pose import hand_crops
from pose.hand_crops import HANDS, HandCrops, choose_frames, hand_boxes
from pose.keypoints import PART_JOINTS, Pose
from pose.video import read_frames
from tests.helpers.videos import greys

pytest.importorskip("av", reason="needs the extra rgb")
Image = pytest.importorskip("PIL.Image", reason="needs the extra rgb")

LENGTHS = (30, 19, 25, 6)


def recorded_clips(vectors, monkeypatch, uni_sign):
    """The four recorded clips through `HandCrops`, with the recorded frames in the place of a video."""
    clips, videos = vectors("clips.npz"), vectors("rgb_frames.npz")
    monkeypatch.setattr(hand_crops, "read_frames", lambda path, wanted, n: enumerate(videos[f"{path}.frames"]))
    crops = HandCrops(uni_sign)
    for i, length in enumerate(LENGTHS):
        pose = Pose(clips[f"clip{i}.keypoints"], clips[f"clip{i}.scores"])
        rng = np.random.RandomState(20259 + i)
        yield crops.load(f"clip{i}", pose, np.arange(length), rng)


@pytest.mark.parity
def test_crops_of_a_batch(vectors, monkeypatch):
    expected = vectors("batch_rgb.npz")
    clips = list(recorded_clips(vectors, monkeypatch, uni_sign=True))
    fields = {name: torch.cat([clip[name] for clip in clips]) for name in clips[0]}
    assert fields.keys() == set(expected.files)
    for name, seen in fields.items():
        if name.endswith("norm"):  # recorded in float64
            largest = np.abs(expected[name]).max()
            np.testing.assert_allclose(seen.numpy(), expected[name], rtol=0, atol=1e-7 * largest, err_msg=name)
        else:
            np.testing.assert_array_equal(seen.numpy(), expected[name], err_msg=name)


@pytest.mark.parity
def test_a_hand_at_the_border_is_seen(vectors, monkeypatch):
    """The official crop of a box that reaches beyond the left or upper border is black; ours shows what there is."""
    ours, official = (list(recorded_clips(vectors, monkeypatch, uni_sign)) for uni_sign in (False, True))
    black = torch.from_numpy(-hand_crops.MEAN / hand_crops.STD)[:, None, None]
    differing = []
    for i in range(4):
        for side in HANDS:
            for j, (a, b) in enumerate(zip(ours[i][f"{side}_hands"], official[i][f"{side}_hands"], strict=True)):
                if not torch.equal(a, b):
                    differing.append((i, side, int(ours[i][f"{side}_sampled_indices"][j])))
                    assert torch.allclose(b, black)
                    assert torch.allclose(a[:, :, :8], black, atol=0.1)  # a third of the box lies outside
                    assert (a[:, :, 50:] - black).abs().mean() > 0.5
    assert differing == [(2, "right", 17), (2, "right", 18)]


@pytest.mark.parity
def test_boxes(vectors):
    cases = vectors("bbox_4hands.npz")
    names = {name.split(".")[0] for name in cases.files}
    assert len(names) == 7
    for case in names:
        pixels = cases[f"{case}.in.hw"][::-1]
        joints = {side: cases[f"{case}.in.{side}"] * pixels for side in HANDS}
        boxes, size = hand_boxes(joints)
        assert size == cases[f"{case}.out.box_hw"], case
        for side in HANDS:
            assert boxes[side].dtype == np.int16
            if len(joints[side]):
                np.testing.assert_array_equal(boxes[side], cases[f"{case}.out.{side}_box"], err_msg=case)
            else:
                assert boxes[side].shape == (0, 4)


# -- frames and videos -----------------------------------------------------------------------------------------------


def test_chosen_frames():
    rng = np.random.default_rng(0)
    scores = np.full((30, 21), 0.9)
    scores[10:] = 0.2  # not seen
    scores[3, 8] = 0.1  # a fingertip that was hardly found, in a hand that was
    draws = [choose_frames(scores, rng) for _ in range(200)]
    assert all(len(set(draw)) == 3 and list(draw) == sorted(draw) for draw in draws)
    assert all(3 in draw for draw in draws)
    assert set(np.concatenate(draws)) == set(range(10))  # the others are all alike
    assert len(choose_frames(scores[:11], rng)) == 2
    assert len(choose_frames(scores[9:], rng)) == 1
    assert len(choose_frames(scores[10:], rng)) == 0


@pytest.mark.parametrize("lost", [False, True])
def test_a_hand_that_is_one_point_has_no_crop_and_a_lost_point_takes_no_memory(monkeypatch, lost):
    monkeypatch.setattr(
        hand_crops, "read_frames", lambda path, wanted, n: [(i, np.zeros((9, 9, 3), np.uint8)) for i in wanted]
    )
    keypoints = np.full((4, 133, 2), 0.5)
    keypoints[:, 100] = 1e9 if lost else 0.5
    clip = HandCrops().load("", Pose(keypoints, np.ones((4, 133))), np.arange(4), np.random.default_rng(0))
    assert clip["left_sampled_indices"].tolist() == [-1] or lost
    assert clip["left_hands"].shape == (1, 3, 112, 112)
    assert clip["left_hands"].any() == lost
    assert clip["left_skeletons_norm"].isfinite().all()


def test_a_box_that_pil_makes_no_image_of_is_the_clips_fault(monkeypatch):
    """A joint that was found far outside, in a video of 67 million pixels."""
    picture = np.broadcast_to(np.uint8(0), (8192, 8192, 3))
    monkeypatch.setattr(hand_crops, "read_frames", lambda path, wanted, n: [(i, picture) for i in wanted])
    keypoints = np.full((4, 133, 2), 0.5)
    keypoints[:, 100:102] = [(2, -1), (-1, 2)]
    with pytest.raises(ValueError, match="a joint is so far from its hand that the crop is 29490 pixels wide"):
        HandCrops().load("large.mp4", Pose(keypoints, np.ones((4, 133))), np.arange(4), np.random.default_rng(0))


@pytest.mark.parametrize("corner", [(-350, -400), (-900, 100), (40, -99), (250, 150), (0, 300), (-2000, 0)])
def test_a_box_far_larger_than_the_image_is_cut_without_its_black_rows(monkeypatch, corner):
    """An outlier in a video of 4K asks for 191 million pixels, and PIL makes no image of so many."""
    picture = np.random.default_rng(0).integers(0, 256, (200, 300, 3)).astype(np.uint8)
    box = (*corner, corner[0] + 1000, corner[1] + 1000)
    whole = Image.fromarray(picture).crop(box).resize((112, 112), Image.Resampling.BICUBIC)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200_000)  # twice as many are an error
    crop = HandCrops()._crop(picture, np.array(box, np.int16))
    wanted = (np.asarray(whole, np.float32) / 255 - hand_crops.MEAN) / hand_crops.STD
    np.testing.assert_array_equal(crop, wanted.transpose(2, 0, 1))


@pytest.fixture
def real_video(shared_real):
    return shared_real / "video" / "test_video.mp4"


def hands_of_the_video():
    """58 frames with both hands inside the picture; the left one moves to the right."""
    keypoints, scores = np.zeros((58, 133, 2), np.float32), np.ones((58, 133), np.float32)
    spread = np.stack(np.meshgrid(np.linspace(0, 0.1, 7), np.linspace(0, 0.06, 3)), axis=-1).reshape(21, 2)
    keypoints[:, PART_JOINTS["left"]] = spread + [0.6, 0.5]
    keypoints[:, PART_JOINTS["left"], 0] += np.linspace(0, 0.2, 58)[:, None]
    keypoints[:, PART_JOINTS["right"]] = spread + [0.2, 0.4]
    return Pose(keypoints, scores)


def test_crops_of_a_real_video(real_video):
    """A joint's surroundings in the picture are its surroundings in the crop."""
    pose = hands_of_the_video()
    clip = HandCrops().load(real_video, pose, np.arange(58), np.random.default_rng(0))
    pictures = dict(read_frames(real_video, set(range(58)), 58))
    assert pictures[0].shape == (720, 540, 3)
    seen, wanted = [], []
    for side in HANDS:
        frames = clip[f"{side}_sampled_indices"].tolist()
        assert clip[f"{side}_hands"].shape == (6, 3, 112, 112)
        assert len(set(frames)) == clip[f"{side}_rgb_len"].item() == 6
        for crop, frame, inside in zip(clip[f"{side}_hands"], frames, clip[f"{side}_skeletons_norm"], strict=True):
            for joint in (0, 6, 10, 14, 20):
                x, y = (pose.keypoints[frame, PART_JOINTS[side][joint]] * [540, 720]).round().astype(int)
                wanted.append(pictures[frame][y - 2 : y + 3, x - 2 : x + 3].mean((0, 1)) / 255)
                x, y = (inside[joint] * 112).round().int().tolist()
                seen.append(
                    crop[:, y - 4 : y + 4, x - 4 : x + 4].mean((1, 2)).numpy() * hand_crops.STD + hand_crops.MEAN
                )
    assert np.std(wanted) > 0.1
    assert np.abs(np.array(seen) - wanted).mean() < 0.01


def test_one_picture_at_a_time_is_kept(real_video, monkeypatch):
    """A video of 8K in one colour has 2 KB for each frame, and 100 MB in memory."""
    kept = weakref.WeakValueDictionary()
    most = []

    def watched(*args):
        for number, picture in read_frames(*args):
            kept[number] = picture
            most.append(len(kept))
            yield number, picture

    monkeypatch.setattr(hand_crops, "read_frames", watched)
    clip = HandCrops().load(real_video, hands_of_the_video(), np.arange(58), np.random.default_rng(0))
    assert len(clip["left_hands"]) == 6
    assert len(most) > 6
    assert max(most) <= 2  # the last one, and the next


def test_another_number_of_frames_is_named(real_video):
    pose = hands_of_the_video()
    for shorter in (57, 50):
        cut = Pose(pose.keypoints[:shorter], pose.scores[:shorter])
        with pytest.raises(ValueError, match=rf"test_video.mp4: the video has 58 frames, its pose file {shorter}\."):
            HandCrops().load(real_video, cut, np.arange(shorter), np.random.default_rng(0))


def test_a_clip_of_a_longer_recording(write_video, tmp_path):
    """Frames count from the recording's start, and so do those that were sampled."""
    pose = hands_of_the_video()
    path = write_video(tmp_path / "long.mp4", greys(40))
    clip = HandCrops().load(
        path,
        Pose(pose.keypoints[8:28], pose.scores[8:28], start=8, n_after=12),
        np.arange(0, 20, 2),
        np.random.default_rng(1),
    )
    for side in HANDS:
        assert len(clip[f"{side}_hands"]) == 1
        for crop, index in zip(clip[f"{side}_hands"], clip[f"{side}_sampled_indices"].tolist(), strict=True):
            grey = (crop.numpy() * hand_crops.STD[:, None, None] + hand_crops.MEAN[:, None, None]).mean() * 255
            assert grey == pytest.approx(40 + 4 * (8 + 2 * index), abs=1.9)


def test_a_video_that_changes_its_size_is_refused(monkeypatch):
    """As recorded calls do: the boxes of a clip have one size in pixels."""
    monkeypatch.setattr(
        hand_crops, "read_frames", lambda path, wanted, n: [(i, np.zeros((9, 9 + i % 2, 3), np.uint8)) for i in wanted]
    )
    pose = hands_of_the_video()
    with pytest.raises(ValueError, match=r"^call.webm: the video changes its size; encode it again"):
        HandCrops().load("call.webm", pose, np.arange(58), np.random.default_rng(0))
