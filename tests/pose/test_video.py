"""Reading videos: all frames, upright, in order; what is damaged or another thing is one line."""

import re
import shutil
import struct
import sys
import types

import numpy as np
import pytest

from pose import video
from pose.video import Facts, check_n_frames, count_frames, read_facts, read_frames, read_pictures, watch
from tests.helpers.videos import greys

av = pytest.importorskip("av", reason="needs the extra rgb")


@pytest.fixture
def real_video(shared_real):
    return shared_real / "video" / "test_video.mp4"


def copy_packets(source, target, first=0):
    """The same pictures in another container, from some packet on."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for number, packet in enumerate(old.demux(video=0)):
            if packet.dts is not None and number >= first:
                packet.stream = stream
                new.mux(packet)
    return target


# -- all frames --------------------------------------------------------------------------------------------------------


def test_every_frame_in_order(write_video, tmp_path):
    path = write_video(tmp_path / "a.mp4", greys(20))
    pictures = list(read_pictures(path))
    assert [picture.shape for picture in pictures] == [(48, 64, 3)] * 20
    np.testing.assert_allclose([picture.mean() for picture in pictures], 40 + 4 * np.arange(20), atol=1.5)
    some = dict(read_frames(path, {3, 17}, 20))
    assert sorted(some) == [3, 17]
    np.testing.assert_array_equal(some[17], pictures[17])
    assert read_facts(path) == Facts(64, 48, 25)


def test_red_is_red(write_video, tmp_path):
    red = np.zeros((48, 64, 3), np.uint8)
    red[..., 0] = 200
    (picture,) = read_pictures(write_video(tmp_path / "a.mp4", [red]))
    assert np.abs(picture.mean((0, 1)) - [200, 0, 0]).max() < 6


def test_frames_are_counted_without_decoding(real_video, write_video, tmp_path):
    assert count_frames(real_video) == 58 == len(list(read_pictures(real_video)))
    assert count_frames(write_video(tmp_path / "short.mp4", greys(20))) == 20
    with pytest.raises(ValueError, match=r"short.mp4: the video has 20 frames, its pose file 21\. Extract"):
        check_n_frames(tmp_path / "short.mp4", 20, 21)


def with_cover(source, target, first):
    """A film's packets beside a cover picture, or the cover alone; `first` puts the cover before the film."""
    with av.open(str(target), "w") as container:
        streams = []
        if source:
            with av.open(str(source)) as old:
                streams.append(container.add_stream_from_template(old.streams.video[0]))
                packets = [packet for packet in old.demux(video=0) if packet.dts is not None]
        cover = container.add_stream("mjpeg", rate=25)
        cover.height, cover.width, cover.pix_fmt = 32, 32, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        picture = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
        for packet in packets if source else ():
            packet.stream = streams[0]
            container.mux(packet)
        container.mux(cover.encode(picture) + cover.encode())
    if first:  # the box of the cover, udta, goes before those of the streams, trak
        content = target.read_bytes()
        place = content.index(b"moov") + 4
        boxes, end = [], place
        while end < len(content):
            size = int.from_bytes(content[end : end + 4], "big")
            boxes.append(content[end : end + size])
            end += size
        target.write_bytes(content[:place] + b"".join(sorted(boxes, key=lambda box: box[4:8] == b"trak")))
    return target


@pytest.mark.parametrize("first", [False, True])
def test_a_cover_picture_is_no_film(write_video, tmp_path, first):
    film = write_video(tmp_path / "film.mp4", greys(20))
    path = with_cover(film, tmp_path / "a.mp4", first)
    with av.open(str(path)) as container:
        covers = [bool(stream.disposition & av.stream.Disposition.attached_pic) for stream in container.streams.video]
    assert covers == [first, not first]
    assert count_frames(path) == 20
    assert read_facts(path) == Facts(64, 48, 25)
    np.testing.assert_array_equal(list(read_pictures(path)), list(read_pictures(film)))


def test_a_folder_of_pictures_is_told_how_to_become_a_video(tmp_path):
    with pytest.raises(ValueError, match=rf"{tmp_path.name}: is a folder; wanted a video\. Make .*: ffmpeg .*\.mp4\.$"):
        count_frames(tmp_path)


def test_a_film_that_begins_late(write_video, tmp_path):
    """A cut without encoding: MP4 keeps all frames, and an edit list says that it begins with the sixth."""
    path = write_video(tmp_path / "a.mp4", greys(20))
    content = path.read_bytes()
    place = content.index(b"elst") + 12
    milliseconds, start = struct.unpack(">Ii", content[place : place + 8])
    assert (milliseconds, start) == (800, 0)
    path.write_bytes(content[:place] + struct.pack(">Ii", 600, 5 * 512) + content[place + 8 :])
    pictures = list(read_pictures(path))
    np.testing.assert_allclose([picture.mean() for picture in pictures], 40 + 4 * np.arange(5, 20), atol=1.5)
    assert count_frames(path) == 15


def test_pictures_that_are_never_shown(tmp_path):
    """WebM of VP8 may hold them: here, a copy of a picture whose bit for showing it is taken away."""
    shown, path = tmp_path / "shown.webm", tmp_path / "a.webm"
    with av.open(str(shown), "w") as container:
        stream = container.add_stream("libvpx", rate=25, options={"deadline": "realtime"})
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for picture in greys(10):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    with av.open(str(shown)) as old, av.open(str(path), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for number, packet in enumerate(old.demux(video=0)):
            if packet.dts is None:
                continue
            if number == 5:
                hidden = av.Packet(bytes([bytes(packet)[0] & ~16, *bytes(packet)[1:]]))
                hidden.pts, hidden.dts, hidden.time_base, hidden.stream = (
                    packet.pts - 1, packet.dts - 1, packet.time_base, stream
                )  # fmt: skip
                new.mux(hidden)
            packet.stream = stream
            new.mux(packet)
    with av.open(str(path)) as container:
        assert sum(packet.size > 0 for packet in container.demux(video=0)) == 11
    assert count_frames(path) == len(list(read_pictures(path))) == 10


@pytest.mark.parametrize(("a", "b", "c", "d", "quarters"), [(0, 1, -1, 0, 1), (-1, 0, 0, -1, 2), (0, -1, 1, 0, 3)])
def test_phones_film_lying_pictures(write_video, tmp_path, a, b, c, d, quarters):
    """MP4 notes a matrix: (x, y), y downwards, is to be seen at (a x + c y, b x + d y). Turned clockwise, here."""
    corner = np.full((48, 64, 3), 20, np.uint8)
    corner[:24, :32] = 220  # left and top
    path = write_video(tmp_path / "a.mp4", [corner] * 3)
    content = path.read_bytes()
    one, none = (1 << 16).to_bytes(4), bytes(4)
    upright = one + none * 3 + one + none * 3 + (1 << 30).to_bytes(4)
    first = [(value << 16).to_bytes(4, signed=True) for value in (a, b, c, d)]
    turned = first[0] + first[1] + none + first[2] + first[3] + none * 3 + (1 << 30).to_bytes(4)
    place = content.index(upright, content.index(b"tkhd"))
    path.write_bytes(content[:place] + turned + content[place + len(turned) :])
    picture = next(read_pictures(path))
    wanted = np.rot90(corner, -quarters)
    assert picture.shape == wanted.shape
    assert np.abs(picture.astype(int) - wanted).mean() < 4
    assert read_facts(path)[:2] == wanted.shape[1::-1]
    np.testing.assert_array_equal(dict(read_frames(path, {0}, 3))[0], picture)


# -- what cannot be used -----------------------------------------------------------------------------------------------


def damaged(kind, path, real_video):
    content = real_video.read_bytes()
    if kind == "text":
        path.write_text("<html>not found</html>")
    elif kind == "empty":
        path.touch()
    elif kind == "codec":
        path.write_bytes(content.replace(b"avc1", b"zzzz").replace(b"mp4v", b"zzzz"))
    elif kind == "cut":
        path.write_bytes(content[:200_000])
    elif kind == "cut between frames":
        with av.open(str(real_video)) as container:
            packets = [packet for packet in container.demux(video=0) if packet.pos is not None]
        path.write_bytes(content[: packets[55].pos])
    elif kind == "cut mkv":
        whole = copy_packets(real_video, path.with_name("whole.mkv"))
        assert len(list(read_pictures(whole))) == 58
        path.write_bytes(whole.read_bytes()[:170_000])
    elif kind == "no key frame":
        copy_packets(real_video, path, first=1)
    elif kind == "flipped bits":
        broken = np.frombuffer(content, np.uint8).copy()
        broken[np.random.default_rng(0).integers(100_000, 250_000, 100)] ^= 255
        path.write_bytes(broken.tobytes())
    elif kind == "sound":
        with av.open(str(path), "w") as container:
            stream = container.add_stream("aac", rate=16000, layout="mono")
            sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            sound.sample_rate = 16000
            container.mux(stream.encode(sound))
            container.mux(stream.encode())


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("text", "the video cannot be read: Invalid data"),
        ("empty", "the video cannot be read: Invalid data"),
        ("cut", "is cut short or damaged: Invalid data"),
        ("cut between frames", "is cut short: it ends after 1.91 of 1.94 seconds"),
        ("cut mkv", "is cut short: it ends after 0... of 1.94 seconds"),
        ("no key frame", "is damaged: 0 of its .. frames can be decoded"),
        ("flipped bits", "is (cut short or )?damaged"),
        ("sound", "holds no video"),
        ("codec", "has a codec that FFmpeg does not know"),
    ],
)
def test_what_is_no_video_or_half_a_one_is_named(real_video, tmp_path, kind, said):
    path = tmp_path / ("broken.mkv" if kind == "cut mkv" else "broken.mp4")
    damaged(kind, path, real_video)
    with pytest.raises(ValueError, match=rf"broken.m..: (the video )?({said})") as error:
        list(read_frames(path, {0}, 58))
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=re.escape(str(error.value))):
        list(read_pictures(path))
    if kind in ("text", "empty", "sound", "codec"):
        for look in (count_frames, read_facts):
            with pytest.raises(ValueError, match=re.escape(str(error.value))):
                look(path)


def test_a_small_file_cannot_ask_for_huge_images(write_video, tmp_path, monkeypatch):
    path = write_video(tmp_path / "v.mp4", greys(2))
    monkeypatch.setattr(video, "MAX_PIXELS", 64 * 48 - 1)
    for look in (read_facts, count_frames):
        with pytest.raises(ValueError, match=r"v.mp4: its images have 64 x 48 pixels. Scale the video down."):
            look(path)


def test_a_missing_package_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ValueError, match=r'^reading videos needs av: pip install -e "\.\[rgb\]"$'):
        read_facts(tmp_path / "a.mp4")


# -- cameras -----------------------------------------------------------------------------------------------------------


class Camera:
    """Stands in for OpenCV's: camera 0 gives numbered pictures with much blue, 1 none at all, 2 is not there."""

    def __init__(self, number):
        self.number, self.given, self.released = number, 0, False
        Camera.last = self

    def isOpened(self):  # noqa: N802 -- OpenCV's name
        return self.number < 2

    def read(self):
        self.given += 1
        picture = np.full((4, 6, 3), [200, 0, self.given], np.uint8)
        return (self.number == 0 and self.given <= 12), picture

    def release(self):
        self.released = True


def test_a_camera(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", types.SimpleNamespace(VideoCapture=Camera))
    assert [picture[0, 0].tolist() for picture in watch(0)] == [[i, 0, 200] for i in range(6, 13)]
    assert Camera.last.released
    for number, said in ((1, "camera 1 gives no pictures"), (2, "camera 2 cannot be opened")):
        with pytest.raises(ValueError, match=said):
            next(watch(number))
        assert Camera.last.released
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ValueError, match="a camera needs OpenCV"):
        next(watch(0))


def test_a_list_of_files_is_no_video(real_video, tmp_path):
    """FFmpeg would play it: 150 bytes that last for days, or never end."""
    shutil.copy(real_video, tmp_path / "good.mp4")
    for name in ("good", "list"):
        (tmp_path / "list.mp4").write_text(f"ffconcat version 1.0\nfile {name}.mp4\n")
        with pytest.raises(ValueError, match=r"list\.mp4: its format is none of a video"):
            count_frames(tmp_path / "list.mp4")
