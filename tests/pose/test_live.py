"""Poses as they come, in this process: what is too late, and how it is filled in."""

import functools
import os
import time

import numpy as np
import pytest

from pose import live
from pose.live import Frame, as_pose, find_poses, live_poses


class Slow:
    """Needs as long as five pictures last; finds nobody in dark pictures, and two people in others."""

    def start(self):
        pass

    def __call__(self, picture):
        time.sleep(0.05)
        people = 2 * bool(picture.any())
        return np.ones((people, 133, 2)) * [[[0.1]], [[0.5]]][:people] * np.arange(1, 134)[:, None], np.ones(
            (people, 133)
        )


@pytest.mark.parametrize("camera", [True, False])
def test_pictures_that_come_too_soon_are_dropped(camera, write_video, tmp_path, monkeypatch):
    def watch(number):
        for _ in range(40):
            time.sleep(0.01)
            yield np.full((32, 64, 3), 200, np.uint8)

    monkeypatch.setattr(live, "watch", watch)
    monkeypatch.setattr(live, "read_pictures", watch)
    (tmp_path / "talk.mp4").touch()
    frames = list(find_poses(3 if camera else [tmp_path / "talk.mp4"], 100, 0, Slow))
    assert 20 < frames[-1].dropped < 40
    assert len(frames) + frames[-1].dropped <= 40
    assert frames[0].aspect == 2
    assert frames[0].keypoints[0, 0] == 0.5  # the larger person
    numbers = np.arange(len(frames)) + [frame.dropped for frame in frames]
    assert [frame.time for frame in frames] == pytest.approx(numbers / 100, abs=1 if camera else 1e-6)


def test_dropped_frames_are_filled_in():
    keypoints, scores = np.arange(266.0).reshape(133, 2), np.ones(133)
    frames = [
        Frame(0, keypoints, scores, 1, 5),
        Frame(1, keypoints + 3, scores / 2, 1, 7),
        Frame(2, keypoints, scores, 1, 7),
    ]
    pose = as_pose(frames)
    assert np.abs(pose.keypoints - keypoints)[:, 0, 0] == pytest.approx([0, 1, 2, 3, 0])
    assert pose.scores[:, 0].tolist() == [1, 0.5, 0.5, 0.5, 1]


def test_a_process_that_dies_and_a_camera_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="the process that finds the poses died"):
        next(live_poses(3, 0, 0, functools.partial(os._exit, 1)))
    with pytest.raises(ValueError, match=r"no.pkl"):
        next(live_poses([tmp_path / "no.pkl"], 25, 0, os.abort))
