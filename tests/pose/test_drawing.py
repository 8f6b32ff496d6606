"""Pictures of poses and of videos."""

import base64

import numpy as np
import pytest

pytest.importorskip("PIL", reason="pillow is not installed (the extra rgb)")

from pose.drawing import (
    DRAWN,
    FULL,
    draw_pose,
    draw_pose_over,
    picture_box,
    picture_points,
    player_data,
    side_by_side,
    video_picture,
)
from tests.helpers.poses import hand, make_pose

RED, BLUE = np.array([0xD6, 0x45, 0x2F]), np.array([0x1F, 0x6F, 0xD6])


def where(image, colour):
    """Mean column of the pixels of a colour, as a share of the width; NaN if there are none."""
    pixels = np.asarray(image).astype(int)
    columns = np.nonzero((np.abs(pixels - colour) < 30).all(-1))[1]
    return columns.mean() / image.width if len(columns) else np.nan


def test_the_right_hand_is_at_the_left_of_the_picture():
    pose = make_pose(right=(hand(), -0.6 - 0.4j), left=(hand(), 0.6 - 0.4j))
    image = draw_pose(pose, 3, picture_box(pose), 200)
    assert image.height == 200
    assert where(image, RED) < 0.4 < 0.6 < where(image, BLUE)


def test_low_scores_are_not_drawn():
    pose = make_pose(right=(hand(), -0.6 - 0.4j), left=(hand(), 0.6 - 0.4j))
    pose.scores[:, 112:] = 0.3
    image = draw_pose(pose, 3, picture_box(pose), 200)
    assert np.isnan(where(image, RED))
    assert where(image, BLUE) > 0.5


def test_a_pose_without_points_gives_a_blank_picture():
    pose = make_pose()
    pose.scores[:] = 0
    assert (np.asarray(draw_pose(pose, 0, picture_box(pose), 64)) == 255).all()


def test_a_pose_over_the_picture_that_it_was_found_in():
    pose = make_pose(right=(hand(), -0.6 - 0.4j), left=(hand(), 0.6 - 0.4j))
    pose.keypoints[3, 112:] = [0.25, 0.5]
    pose.keypoints[3, 116] = [0.25, 0.75]  # the end of the thumb, straight below: 200 of a picture of 400 x 800
    pose.scores[3] = 0
    pose.scores[3, [115, 116]] = 1
    image = draw_pose_over(np.full((400, 800, 3), 250, np.uint8), pose, 3, 200)
    assert image.size == (400, 200)
    rows, columns = np.nonzero((np.abs(np.asarray(image).astype(int) - RED) < 30).all(-1))
    assert columns.mean() == pytest.approx(100, abs=1)
    assert (rows.min(), rows.max()) == (pytest.approx(100, abs=1), pytest.approx(150, abs=1))
    assert np.asarray(image)[20, 300].tolist() == [250, 250, 250]


def test_side_by_side():
    row = np.asarray(side_by_side([video_picture(np.full((20, n, 3), 50 * n, np.uint8), 20) for n in (2, 3)]))
    assert row.shape == (20, 5, 3)
    assert row[0, :, 0].tolist() == [100, 100, 150, 150, 150]


def test_frames_are_made_no_larger():
    frame = np.full((200, 100, 3), 7, np.uint8)
    assert video_picture(frame, 50).size == (25, 50)
    assert video_picture(frame, 300).size == (100, 200)


def test_points_are_where_the_pose_has_them():
    pose = make_pose(right=(hand(), -0.6 - 0.4j), left=(hand(), 0.6 - 0.4j))
    pose.scores[:, 120] = 0.3
    frames = np.arange(0, len(pose), 2)
    points, ratio = picture_points(pose, frames, aspect=1.5)
    left, top, right, bottom = picture_box(pose)
    back = (points - 1) / (FULL - 1) * [right - left, bottom - top] + [left, top]
    seen = (pose.scores[frames][:, DRAWN] > 0.3)[..., None]
    inside = seen & (points > 1) & (points < FULL)  # the picture leaves the few outermost points out
    assert inside.mean() > 0.9
    assert np.abs(back - pose.keypoints[frames][:, DRAWN])[inside].max() < 1e-3
    assert (points[:, DRAWN.index(120)] == 0).all()
    assert ratio == pytest.approx(1.5 * (right - left) / (bottom - top))


def test_a_player_gets_bytes_of_one_order():
    points = np.array([[[1, 2], [0, 0]], [[FULL, 258], [3, 4]]], np.uint16)
    data = player_data(points, 1.0)
    assert base64.b64decode(data["points"]) == bytes([1, 0, 2, 0, 0, 0, 0, 0, 255, 255, 2, 1, 3, 0, 4, 0])
    assert (data["joints"], data["ratio"]) == (2, 1.0)
