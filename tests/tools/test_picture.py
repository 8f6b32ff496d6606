"""The animated picture of a clip."""

import pytest

Image = pytest.importorskip("PIL.Image", reason="needs the extra rgb")
from PIL import ImageDraw, ImageFont  # noqa: E402

from tools import picture  # noqa: E402

LATIN = "DejaVuSans.ttf"


def has_characters(font, characters):
    try:
        return bool(picture.choose_font(font, characters))
    except ValueError:
        return False


def test_a_clip_of_a_run(two_runs, tmp_path, capsys, monkeypatch):
    """Every second frame, in the colours of the page; without a Chinese font its characters are boxes here."""
    if not has_characters("", "右手"):
        monkeypatch.setattr(picture, "choose_font", lambda _path, _characters: LATIN)
    out = tmp_path / "clip.gif"
    picture.main([str(two_runs[1]), "--out", str(out)])
    clip = picture.read_clip(str(two_runs[1]), "")
    animation = Image.open(out)
    assert animation.size == (picture.WIDTH, picture.HEIGHT)
    assert animation.n_frames == len(range(0, len(clip.frames), 2))
    assert f"{animation.n_frames} frames" in capsys.readouterr().out
    colours = [colour for _, colour in animation.convert("RGB").getcolors()]
    for expected in (0xD6452F, 0x1F6FD6, 0x0A7D55):  # right arm, left arm, gate
        rgb = [expected >> 16, expected >> 8 & 255, expected & 255]
        assert min(max(abs(a - b) for a, b in zip(rgb, colour, strict=True)) for colour in colours) < 40


def test_what_cannot_be_drawn(two_runs, tmp_path):
    out = ["--out", str(tmp_path / "clip.gif")]
    with pytest.raises(ValueError, match="was trained without descriptions"):
        picture.main([str(two_runs[0]), *out])
    with pytest.raises(ValueError, match="--clip nobody: is no clip of the test split with a description"):
        picture.main([str(two_runs[1]), *out, "--clip", "nobody"])
    with pytest.raises(ValueError, match=r"nothing\.ttf: is not there, or is no font"):
        picture.main([str(two_runs[1]), *out, "--font", "nothing.ttf"])
    with pytest.raises(SystemExit):
        picture.parse_args([str(two_runs[1]), "--out", "clip.png"])


def test_a_font_without_the_characters_is_refused():
    if not has_characters(LATIN, "hand"):
        pytest.skip(f"{LATIN}, a font without Chinese characters, is not here")
    with pytest.raises(ValueError, match=f"{LATIN} has not all of the characters 右手"):
        picture.choose_font(LATIN, "右手")


def test_texts_break_between_words_and_between_chinese_characters():
    font = ImageFont.load_default(10)
    words = picture.wrap("the left hand is at the chin", font, font.getlength("the left hand is"))
    assert words == ["the left hand is", "at the chin"]
    character = font.getlength("手")
    assert picture.wrap("右手，左手", font, 3 * character + 1) == ["右手，", "左手"]


def test_the_gate_is_drawn_to_scale():
    image = Image.new("RGB", (picture.WIDTH, picture.HEIGHT), "white")
    picture.draw_gate(ImageDraw.Draw(image), [1.0, 0.5], [1, 0], 0)
    left, top, right, bottom = picture.PLOT
    first, second = left + 10, right - 10
    green, pale, white = (10, 125, 85), (185, 220, 207), (255, 255, 255)
    assert (image.getpixel((first, top + 5)), image.getpixel((second, top + 5))) == (green, white)
    assert image.getpixel((second, bottom - 5)) == pale
    assert image.getpixel((first, bottom + 5)) == (26, 26, 26)
    assert image.getpixel((second, bottom + 5)) == white
