"""The page of the look at the data."""

import re

from pages.look import SHOWN, page_of
from pre_training_checklist import examine
from training.findings import Report
from utils import parse_args


def test_the_page_shows_what_was_said_and_clips_of_each_split(corpus):
    report = Report("zh", lambda _line: None)
    looks = examine(report, parse_args(["--root", str(corpus)]), everything=False)
    report.said["CSL_Daily train"].append(("!", "<b>wrong</b>"))
    page = page_of(report, looks)
    assert '<html lang="zh">' in page
    assert re.findall("<h2>(.*?)</h2>", page) == [
        "CSL_Daily train",
        "CSL_Daily dev",
        "CSL_Daily test",
        "数据划分",
        "权重",
        "GPU",
    ]
    assert '<li class="bad">! &lt;b&gt;wrong&lt;/b&gt;</li>' in page
    for lines in report.said.values():
        for _, text in lines:
            assert text.partition("'")[0].partition("<")[0] in page
    assert page.count('class="film"') == 3 * SHOWN == len(re.findall("<h3>", page))
    assert page.count('class="hist"') == 3
    # The first clip of a split has the fewest good points.
    train = page.split("<h2>")[1]
    shown = re.findall("<h3>(.*?)</h3>", train)
    good = {name: sum(clip.good.values()) for name, clip in looks["CSL_Daily train"].clips.items()}
    assert good[shown[0]] == min(good.values())
    assert good[shown[-1]] == max(good.values())
    assert str(looks["CSL_Daily train"].labels[shown[0]]["text"]) in train
    assert "://" not in page


def test_a_page_without_any_data(tmp_path):
    report = Report(write=lambda _line: None)
    looks = examine(report, parse_args(["--root", str(tmp_path)]), everything=False)
    page = page_of(report, looks)
    assert looks == {}
    assert page.count("labels.") == 3
    assert "film" not in re.sub("<style>.*</style>", "", page, flags=re.S)
