"""A page about a run's data: what the checklist found, and some clips of each split."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from pages.clip_view import film
from pages.elements import Html, element, histogram, page
from pose.drawing import picture_points
from training.findings import Report
from training.look import SplitLook

SHOWN = 5  # clips of each split


def page_of(report: Report, looks: Mapping[str, SplitLook]) -> str:
    """Return an HTML page with the report's findings; `looks` has, by section, what the files of a split hold."""
    sections = [
        element(
            "section", element("h2", title), _lines(lines), _pictures(report, looks[title]) if title in looks else ""
        )
        for title, lines in report.said.items()
        if lines
    ]
    title = report.text("page")
    return page(title, element("h1", title), sections, language=report.language)


def _lines(lines: list[tuple[str, str]]) -> Html:
    rows = [element("li", f"{mark} {text}", class_="bad" if mark in "!✗" else None) for mark, text in lines]
    return element("ul", rows, class_="found")


def _pictures(report: Report, look: SplitLook) -> list[Html]:
    if not look.clips:
        return []
    lengths = [clip.n_frames for clip in look.clips.values()]
    parts = [
        element("p", report.text("lengths", max(lengths))),
        histogram(lengths),
        element("p", report.text("ranked")),
    ]
    ranked = sorted(look.clips, key=lambda name: sum(look.clips[name].good.values()))
    for place in sorted({*np.linspace(0, len(ranked) - 1, SHOWN).round().astype(int).tolist()}):
        name, clip = ranked[place], look.clips[ranked[place]]
        pose = look.poses.read(look.paths[name], look.labels[name])
        told = report.text("clip", clip.n_frames, *clip.good.values())
        text = element("p", str(look.labels[name].get("text", "")))
        strip = film(*picture_points(pose, np.arange(len(pose))), told)
        parts += [element("h3", name), text, element("p", told, class_="small"), strip]
    return parts
