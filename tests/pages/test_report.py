"""The report: what it says is so, nothing in it is executed, and it works in a real browser."""

import json
import re
import shutil

import pytest

from pages import report
from tools import report as program
from training import metrics

BAD = '</script><img src="x" onerror="document.documentElement.dataset.owned = 1">'


def build(*line):
    args = program.parse_args([*map(str, line)])
    return report.build(args.runs, args.split, args.clips, args.aspect, args.device)


@pytest.fixture(scope="module")
def page(two_runs):
    return build(*two_runs)


def text_of(html):
    return re.sub(r"<[^>]+>", " ", re.sub(r"<(script|style).*?</\1>", "", html, flags=re.S))


# -- what it says ------------------------------------------------------------------------------------------------------


def test_scores_are_those_of_the_metrics(page, two_runs):
    rows = [
        [json.loads(line) for line in (run / "test_predictions.jsonl").read_text().splitlines()] for run in two_runs
    ]
    references = [row["reference"] for row in rows[0]]
    texts = [[row["hypothesis"] for row in of_run] for of_run in rows]
    scores = [metrics.score("SLT", of_run, references, "char") for of_run in texts]
    for name in ("bleu1", "bleu4", "chrf", "rouge_l"):
        for score in scores:
            assert f"<b>{score.values[name]:.2f}</b>" in page
    first, second = (metrics.tally("SLT", of_run, references, "char")[0]["bleu4"] for of_run in texts)
    found = metrics.compare([second], [first], metrics.draw_clips(len(references)))
    assert f"{found['p']:.3f}" in page
    assert f"<b>{report.signed(found['difference'])}</b>" in page
    assert f"{report.signed(found['interval'][0])} to {report.signed(found['interval'][1])}" in page
    assert scores[0].signatures["bleu"] in page


def test_settings_that_differ_come_first(page):
    settings = text_of(page.partition('id="settings"')[2])
    differing = settings.partition("Where they differ")[2].partition("Flags that are not the default")[0]
    assert re.search(r"--use_descriptions\s+False\s+True", differing)
    assert "--hidden_dim" not in differing
    assert re.search(r"--hidden_dim\s+16\s+16", settings)


@pytest.mark.parametrize(
    ("ours", "reference", "unit", "task", "wanted"),
    [
        ("我很累。", "我不累。", "char", "SLT", "我<del>不</del><ins>很</ins>累。"),
        ("the cat", "the black cat", "word", "SLT", "the <del>black</del> cat"),
        ("", "the cat", "word", "SLT", "<em>(nothing) </em><del>the cat</del>"),
        ("MY NAME", "MY OWN NAME", "char", "CSLR", "MY <del>OWN</del> NAME"),
        ("<b>", "b", "word", "ISLR", "<del>b</del> <ins>&lt;b&gt;</ins>"),
    ],
)
def test_differences_are_marked(ours, reference, unit, task, wanted):
    assert report.marked(ours, reference, task=task, text_unit=unit) == wanted


# -- what may be missing -----------------------------------------------------------------------------------------------


@pytest.fixture
def run(two_runs, tmp_path):
    shutil.copytree(two_runs[1], tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("content", [None, b"", b"{\xff"])
def test_the_page_comes_without_curves_and_weights(run, content):
    names = ["log.txt", "steps.jsonl", "best_checkpoint.pth"]
    for name in names:
        (run / name).unlink()
        if content is not None:
            (run / name).write_bytes(content)
    left_out = build(run, "--clips", 1).partition("Left out")[2].partition("<h2>")[0]
    assert all(name in left_out for name in names)


def test_the_page_comes_without_sentences(run):
    (run / "test_predictions.jsonl").unlink()
    assert "Scores and sentences: no split was written by it." in build(run)


def test_runs_that_cannot_be_compared(run, two_runs):
    lines = [json.loads(line) for line in (run / "test_predictions.jsonl").read_text().splitlines()]
    lines[0]["reference"] = "别的句子"
    (run / "test_predictions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert "1 clips have other references" in build(two_runs[0], run)
    record = json.loads((run / "run.json").read_text())
    record["starts"][0]["arguments"]["task"] = "CSLR"
    (run / "run.json").write_text(json.dumps(record))
    assert "different tasks or languages" in build(two_runs[0], run)


def test_clips_that_one_run_lacks_are_left_out(run, two_runs):
    lines = (run / "test_predictions.jsonl").read_text().splitlines()
    (run / "test_predictions.jsonl").write_text("\n".join(lines[:4]))
    made = build(two_runs[0], run, "--clips", 0)
    assert "test, 4 clips" in made
    assert "Up to 3 clips of one run are left out" in made


def test_a_name_that_is_a_number_is_no_count(run):
    lines = [json.loads(line) for line in (run / "test_predictions.jsonl").read_text().splitlines()]
    lines[-1]["name"] = "0"
    (run / "test_predictions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with_clip, with_none = (build(run, "--clips", wanted) for wanted in ("0", "00"))
    assert 'id="clips"' in with_clip
    assert 'id="clips"' not in with_none


def test_what_cannot_be_is_one_line(two_runs, tmp_path, capsys):
    with pytest.raises(FileNotFoundError, match=r"holds no run.json of a run"):
        build(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder. Name the --output_dir of a run"):
        build("nowhere")
    with pytest.raises(ValueError, match="--clips: 'nobody' is no clip"):
        build(two_runs[0], "--clips", "nobody")
    place = str(tmp_path)
    for line, words in (
        ([place] * 3, "a page has one, or compares two"),
        ([place, "--aspect", "9"], "--aspect 9.0: must be between"),
        ([place, "--out", f"{place}/best_checkpoint.pth"], "best_checkpoint.pth: must end in .html"),
        ([place, "--out", f"{place}/no/x.html"], "x.html: its folder does not exist"),
    ):
        with pytest.raises(SystemExit):
            program.parse_args(line)
        assert words in capsys.readouterr().err


def test_the_command_writes_the_page(run, capsys):
    program.main([str(run), "--clips", "0"])
    assert (run / "report.html").read_text().startswith("<!doctype html>")


# -- in a browser ------------------------------------------------------------------------------------------------------

CLIP = "document.querySelector('.clip')"
TEXT = "document.querySelector('.clip .{}').textContent"
DRAWN = """(() => { const canvas = document.querySelector('.clip canvas');
  const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
  return pixels.filter((value, i) => i % 4 === 3 && value > 0).length; })()"""


@pytest.mark.parametrize("width", [390, 1200])
def test_it_works_in_a_browser(browser, page, tmp_path, width):
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    browser.size(width)
    before = len(browser.messages)
    browser.open((tmp_path / "page.html").as_uri())
    assert browser.run("document.documentElement.scrollWidth") <= width  # nothing is wider than the screen
    assert browser.run(TEXT.format("place")).startswith("frame 0 of ")
    browser.run(f"{CLIP}.querySelector('button').click()")
    browser.wait(f"Number({CLIP}.querySelector('input').value) > 0")  # it plays when asked to
    slide = "(slider => { slider.value = 5; slider.dispatchEvent(new Event('input')); })"
    browser.run(f"{slide}({CLIP}.querySelector('input'))")
    assert browser.run(f"{CLIP}.querySelector('button').textContent") == "Play"
    assert browser.run(TEXT.format("place")).startswith("frame 5 of ")
    assert re.match(r"gate 0\.\d{3}, (its own|the nearest) text: .", browser.run(TEXT.format("now")))
    assert browser.run(DRAWN) > 500
    browser.run(f"{CLIP}.querySelector('.timeline').click()")  # at its very left
    assert browser.run(TEXT.format("place")).startswith("frame 0 of ")
    strip = f"{CLIP}.querySelector('.strip')"
    frames = browser.run(f"{strip}.style.background").count("color-mix")
    assert browser.run(TEXT.format("place")).endswith(f" of {frames - 1}")
    browser.run(f"{strip}.onpointermove({{offsetX: 1}})")
    assert browser.run(TEXT.format("now")).endswith(browser.run(f"{strip}.title"))
    for i in range(2):  # runs
        word = f"{CLIP}.querySelectorAll('.words')[{i}].querySelector('button:last-child')"
        browser.run(f"{word}.click()")
        assert browser.run(TEXT.format("place")).startswith(browser.run(f"{word}.title + ' of '"))
        assert browser.run(f"{word}.className") == "lit"
    assert browser.messages[before:] == []


def test_nothing_that_a_text_says_is_executed(browser, run, tmp_path):
    lines = [json.loads(line) for line in (run / "test_predictions.jsonl").read_text().splitlines()]
    for line in lines:
        line["reference"] = line["hypothesis"] = BAD
    (run / "test_predictions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    record = json.loads((run / "run.json").read_text())
    folder = run / "texts" / "test"
    folder.mkdir(parents=True)
    for line in lines:
        (folder / f"{line['name']}.json").write_text(json.dumps({"0": f"the hand {BAD}"}))
    record["starts"][0]["dataset"]["description_dir"] = str(run / "texts")
    record["starts"][0]["command"] = BAD
    (run / "run.json").write_text(json.dumps(record))
    made = build(run, "--clips", 1)
    assert "the hand" in made
    assert "<img" not in made
    (tmp_path / "page.html").write_text(made, encoding="utf-8")
    before = len(browser.messages)
    browser.open((tmp_path / "page.html").as_uri())
    assert browser.run(TEXT.format("place")).startswith("frame ")  # the page's own script ran
    assert browser.run("document.documentElement.dataset.owned === undefined")
    assert browser.messages[before:] == []
