"""A page about the audit of description files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from describing.audit import FAULTS, UNKNOWN, SplitReport
from pages.elements import Html, element, folded, histogram, page, table

SHOWN = 10  # number of frequent texts per split, and of files per fault, on the page


def page_of(folder: str, splits: Sequence[SplitReport]) -> str:
    """Return an HTML page with all findings."""

    def marked(key: str, cell: str) -> str:
        return element("span", cell, class_="bad") if key in FAULTS.values() and cell not in ("0", "?") else cell

    rows = [split.row() for split in splits]
    head = ("", *(split.name or "all" for split in splits))
    counts = table([(key, *(marked(key, row[key]) for row in rows)) for key in rows[0]], head)
    unknown = [element("p", UNKNOWN)] * any(not split.knows_clips for split in splits)
    name = f"Descriptions in {folder}"
    return page(name, element("h1", name), counts, unknown, map(_section, splits))


def _section(split: SplitReport) -> Html:
    parts = [element("h2", split.name or "all files")]
    n_frames, described = (sum(numbers) for numbers in zip(*split.measured() or [(0, 0)], strict=True))
    if n_frames:
        share = 100 * described / n_frames
        told = f"{described} of {n_frames} frames have a text of their own ({split.coverage()})."
        parts.append(element("p", told))
        parts.append(element("div", element("div", style=f"width:{share:.1f}%"), class_="bar"))
    if (lengths := split.lengths()).size:
        parts.append(element("p", f"Length of the texts, up to {lengths[-1]} characters:"))
        parts.append(histogram(lengths.tolist()))
    made_by = sum((report.made_by for report in split.files), Counter())
    if made_by:
        parts.append(
            _list("Made by", (f"{name or 'unknown'}: {count} frames" for name, count in made_by.most_common()))
        )
    if frequent := split.frequent(SHOWN):
        parts.append(_list("Texts of the most clips", (f"{count} clips: {text}" for text, count in frequent)))
    for fault, title in FAULTS.items():
        having = [report for report in split.files if fault in report.faults()]
        if having:
            why = {"unreadable": "damage", "pose_unreadable": "pose_damage"}.get(fault)
            lines = [f"{report.name}: {getattr(report, why)}" if why else report.name for report in having[:SHOWN]]
            lines += [f"and {len(having) - SHOWN} more"] if len(having) > SHOWN else []
            parts.append(_list(f"{title[0].upper()}{title[1:]}", lines))
    return element("section", parts)


def _list(title: str, lines: Iterable[str]) -> Html:
    return folded(title, element("ul", [element("li", line) for line in lines], class_="small"), open_=True)
