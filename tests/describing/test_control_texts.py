"""Control descriptions: what each kind keeps and what it changes."""

from dataclasses import replace

from clips.error_texts import is_error_text
from config import DATASETS
from describing.control_texts import constant_texts, error_texts, shuffled_texts, some_texts, write_control_texts
from describing.files import write_descriptions
from temporal_alignment import DescriptionLoader

CLIPS = {
    "a": {2: "one", 4: "two", 9: "three"},
    "b": {0: "four"},
    "c": {},
    "d": {5: "five", 6: "five", 7: "one"},
}


def test_shuffled_texts_are_of_another_clip_at_the_same_frames():
    made = shuffled_texts(CLIPS, 0)
    assert {name: list(texts) for name, texts in made.items()} == {name: list(CLIPS[name]) for name in "abd"}
    sources = [
        {other for other in "abd" if set(texts.values()) <= set(CLIPS[other].values())} for texts in made.values()
    ]
    assert all(source and name not in source for name, source in zip(made, sources, strict=True))
    assert shuffled_texts(CLIPS, 0) == made


def test_one_text_for_all():
    assert constant_texts(CLIPS, 0) == {"a": dict.fromkeys((2, 4, 9), "five"), "b": {0: "five"}, "c": {}} | {
        "d": dict.fromkeys((5, 6, 7), "five")
    }
    assert constant_texts({"a": {}}, 0) == {"a": {}}


def test_a_share_of_the_clips_keeps_its_texts():
    clips = {f"clip{number:03d}": {3: f"text {number}"} for number in range(200)} | {"none": {}}
    kept = some_texts(10, clips, 0)
    assert len(kept) == 20
    assert kept.items() <= clips.items()
    assert list(kept) == sorted(kept) != sorted(clips)[:20]
    assert len(some_texts(1000, clips, 0)) == 1


def test_error_texts_differ_and_pass_for_descriptions():
    made = error_texts(CLIPS, 0)
    texts = [text for by_frame in made.values() for text in by_frame.values()]
    assert {name: list(frames) for name, frames in made.items()} == {n: list(frames) for n, frames in CLIPS.items()}
    assert len(set(texts)) == len(texts) == 7
    assert not any(is_error_text(text) for text in texts)


def test_clips_in_folders_get_their_texts(tmp_path):
    spec = replace(DATASETS["How2Sign"], labels={"train": "labels.train"}, description_dir=str(tmp_path / "own"))
    for name, text in (("a/one", "up"), ("b/two", "down"), ("flat", "left")):
        write_descriptions(tmp_path / "own" / "train" / f"{name}.json", {0: text}, {0: "somebody"})
    write_control_texts(spec, "shuffled", tmp_path / "shuffled")
    loader = DescriptionLoader(tmp_path / "shuffled" / "train")
    found = [loader.load(name)[0] for name in ("a/one", "b/two", "flat")]
    assert sorted(found) == ["down", "left", "up"]
    assert found != ["up", "down", "left"]
