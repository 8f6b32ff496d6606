"""HTML report on one run or two: curves, scores with intervals, settings, sentences and clips."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import utils
from pages.comparison import Judged
from pages.elements import Html, Line, chart, element, folded, join, number, page, table
from pages.run_folder import RunFolder
from training.metrics import MAIN_METRIC, prepare_hypothesis, prepare_reference
from utils import progress

SHOWN = 8  # sentences per list
STYLES = ("a", "b")


# -- curves ----------------------------------------------------------------------------------------------------------


def curves(runs: Sequence[RunFolder], labels: Sequence[str]) -> Html:
    """Draw charts from log.txt and steps.jsonl."""

    def over(key: str, words: str = "", style: str = "", *, steps: bool = False) -> list[Line]:
        """Return one line per run for a number of each epoch, or step; missing values are None."""
        lines = []
        for run_, label, own in zip(runs, labels, STYLES, strict=False):
            x, curve = ("step", run_.steps) if steps else ("epoch", run_.epochs)
            points = [(line[x] + (not steps), line.get(key)) for line in curve]
            name = f"{label} {words}".strip() if len(runs) > 1 else words or label
            lines.append(Line(name, points, f"{own} {style}".strip()))
        return lines

    metric = MAIN_METRIC[runs[0].task][0]
    charts = [
        ("Training loss, means of neighbouring steps", over("loss", steps=True), "step", False),
        ("Loss without smoothing", over("nll", "train") + over("dev_nll", "dev", "dashed"), "epoch", False),
        (f"{metric} on dev", over(f"dev_{metric}", "dev", "dashed"), "epoch", True),
        ("Learning rate", over("lr", steps=True), "step", True),
    ]
    drawn = join(chart(name, lines, x, from_zero=from_zero) for name, lines, x, from_zero in charts)
    if not drawn:
        return Html()
    told = []
    for run_, label in zip(runs, labels, strict=True):
        skipped = sum(line.get("loss") is None for line in run_.steps)
        if skipped:
            told.append(f"{label}: {skipped} steps were skipped, their loss or gradient was not finite.")
        if best := run_.best_epoch():
            told.append(f"{label}: the best epoch on dev is {best['epoch'] + 1} of {len(run_.epochs)}.")
    numbers = [epochs_table(run_, label) for run_, label in zip(runs, labels, strict=True) if run_.epochs]
    return section("Learning curves", element("p", " ".join(told)), element("div", drawn, class_="charts"), numbers)


def epochs_table(run_: RunFolder, label: str) -> Html:
    """Make a table of the numbers in the curves."""
    keys = [key for key in run_.epochs[-1] if key != "epoch"]
    rows = [
        [str(line["epoch"] + 1), *("-" if line.get(key) is None else number(line[key]) for key in keys)]
        for line in run_.epochs
    ]
    return folded(f"Numbers of each epoch, {label}", table(rows, ("epoch", *keys)))


# -- scores ----------------------------------------------------------------------------------------------------------


def scores_section(judged: Sequence[Judged], labels: Sequence[str]) -> Html:
    """Make a table per split: score and interval of each run and, for two runs, the difference."""
    if not judged:
        return Html()
    keys = [join(element("span", class_=f"key {style}"), label) for style, label in zip(STYLES, labels, strict=False)]
    head = ["", *keys, *(["difference", "p"] if len(labels) == 2 else [])]
    parts: list[Html] = []
    for of_split in judged:
        rows = []
        for metric in of_split.tallies[0]:
            cells = [join(element("b", f"{value:.2f}"), between(bounds)) for value, bounds in of_split.standing(metric)]
            if len(labels) == 2:
                difference, bounds, p = of_split.difference(metric)
                cells += [join(element("b", signed(difference)), between(bounds, signed)), join(f"{p:.3f}")]
            rows.append((element("b", metric) if metric == of_split.main else metric, *cells))
        parts += [element("h3", f"{of_split.split}, {len(of_split.names)} clips"), table(rows, head, "scores")]
        if of_split.unshared:
            told = f"Up to {of_split.unshared} clips of one run are left out: the other lacks them."
            parts.append(element("p", told, class_="small"))
    how = "Intervals: clips drawn anew 1000 times, 95 % of the draws."
    if len(labels) == 2:
        how += " Difference: second run minus first, on the same draws; p is two-sided (paired bootstrap, Koehn 2004)."
    how += " Clips count as random, the training as fixed: another seed of the same training would differ as well."
    signatures = [element("li", f"{kind}: ", element("code", text)) for kind, text in judged[0].signatures.items()]
    return section("Scores", parts, element("p", how, class_="small"), element("ul", signatures))


def signed(value: float) -> str:
    """Format a difference with its sign.

    >>> signed(0.5), signed(-0.5)
    ('+0.50', '−0.50')
    """
    return f"{value:+.2f}".replace("-", "\N{MINUS SIGN}")


def between(bounds: tuple[float, float], form: Callable[[float], str] = "{:.2f}".format) -> Html:
    """Format an interval in small print."""
    return element("small", f" {form(bounds[0])} to {form(bounds[1])}")


# -- sentences -------------------------------------------------------------------------------------------------------


def marked(text: str, reference: str, *, task: str, text_unit: str) -> Html:
    """Mark a sentence's differences from the reference, by words; translations with the unit "char" by characters."""
    unit = text_unit if task == "SLT" else "word"
    ours, theirs = prepare_hypothesis(text, unit).split(), prepare_reference(reference, unit).split()
    glue = "" if unit == "char" else " "
    parts: list[Html] = []
    for kind, i, j, k, m in difflib.SequenceMatcher(None, theirs, ours, autojunk=False).get_opcodes():
        if kind == "equal":
            parts.append(join(glue.join(theirs[i:j])))
            continue
        if j > i:
            parts.append(element("del", glue.join(theirs[i:j])))
        if m > k:
            parts.append(element("ins", glue.join(ours[k:m])))
    return Html(glue.join(parts)) if ours else join(element("em", "(nothing) "), parts)


def sentences_section(judged: Judged, labels: Sequence[str]) -> Html:
    """List the best and worst sentences or, for two runs, those that changed most."""
    order = judged.order()
    count = min(SHOWN, -(-len(order) // 2))  # so that with few clips the lists overlap in at most the middle one
    worst, best = order[:count], order[::-1][:count]
    names = ("Best", "Worst")
    if len(labels) == 2:
        names = (f"Where {labels[1]} gained most", f"Where {labels[1]} lost most")
    lists = [(names[0], best), (names[1], worst)]
    told = f"{judged.split}, by {judged.clip_metric} of each sentence. "
    told = join(told, element("ins", "not in the reference"), " ", element("del", "missing from it"))
    columns = [
        element("div", element("h3", name), [sentence(judged, i, labels) for i in clips]) for name, clips in lists
    ]
    return section("Sentences", element("p", told), element("div", columns, class_="columns"))


def sentence(judged: Judged, i: int, labels: Sequence[str]) -> Html:
    """Show a clip's reference and generated sentences."""
    run_ = judged.runs[0]
    parts = [element("dt", "reference"), element("dd", judged.references[i])]
    for style, label, texts, each in zip(STYLES, labels, judged.hypotheses, judged.each, strict=False):
        parts.append(element("dt", element("span", class_=f"key {style}"), label))
        shown = marked(texts[i], judged.references[i], task=run_.task, text_unit=run_.spec.text_unit)
        parts.append(element("dd", shown, element("small", f" {each[i]:.0f}")))
    return element("div", element("small", judged.names[i]), element("dl", parts), class_="sentence")


# -- settings --------------------------------------------------------------------------------------------------------


def settings_section(runs: Sequence[RunFolder], labels: Sequence[str]) -> Html:
    """Show the settings in run.json: differences first, then non-default flags, then everything."""
    flags = [flat({f"--{key}": value for key, value in run_.last["arguments"].items()}) for run_ in runs]
    defaults = flat({f"--{key}": value for key, value in vars(utils.get_args_parser().parse_args([])).items()})
    apart = ("arguments", "command", "time", "what")
    facts = [flat({key: value for key, value in run_.last.items() if key not in apart}) for run_ in runs]
    both = [a | b for a, b in zip(facts, flags, strict=True)]
    keys = list(dict.fromkeys(key for of_run in both for key in of_run))
    head = ("", *labels)

    def rows_of(wanted: Sequence[str]) -> Html:
        return table([(key, *(of_run.get(key, "-") for of_run in both)) for key in wanted], head, "settings")

    parts: list[Html] = []
    for run_, label in zip(runs, labels, strict=True):
        parts.append(element("h3", label))
        for start in run_.starts:
            what = start["what"] + (f" from step {start['from_step']}" if start.get("from_step") else "")
            parts.append(element("p", f"{start['time']}: {what}", class_="small"))
            parts.append(element("pre", element("code", f"python {start.get('command', '')}")))
    if len(runs) == 2:
        differing = [key for key in keys if len({of_run.get(key) for of_run in both}) > 1]
        parts.append(element("h3", "Where they differ"))
        parts.append(rows_of(differing) if differing else element("p", "Nowhere."))
    set_ = [key for key in keys if key in defaults and any(f.get(key) != defaults[key] for f in flags)]
    parts.append(element("h3", "Flags that are not the default"))
    parts.append(rows_of(set_) if set_ else element("p", "None."))
    parts.append(folded("Everything that run.json records", rows_of(keys)))
    return section("Settings", parts)


def flat(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return settings as text, those of a table within them under both names.

    >>> flat({"data": {"clips": 4}, "--betas": [0.9, 0.99], "--root": ""})
    {'data clips': '4', '--betas': '0.9 0.99', '--root': '-'}
    """
    found: dict[str, str] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found |= {f"{name} {inner}": text for inner, text in flat(value).items()}
        else:
            text = " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            found[name] = "-" if text in ("", "None") else text
    return found


# -- the page --------------------------------------------------------------------------------------------------------


def section(name: str, *content: str | Sequence[Html]) -> Html:
    """Make a section of the page with its heading."""
    return element("section", element("h2", name), *content, id=anchor(name))


def anchor(name: str) -> str:
    """Return the id of a section."""
    return name.lower().replace(" ", "-")


def clips_section(
    judged: Judged, labels: Sequence[str], wanted: Sequence[str], aspect: float, device: str, left_out: list[str]
) -> Html:
    """Show the clips of --clips; ValueError for a name that is no common clip of the runs."""
    counted = len(wanted) == 1 and wanted[0].isdecimal() and wanted[0] not in judged.reference
    if counted and int(wanted[0]) == 0:
        return Html()
    if not counted and (unknown := [name for name in wanted if name not in judged.reference]):
        raise ValueError(f"--clips: {unknown[0]!r} is no clip that was written in the split {judged.split!r}.")
    from pages.clip_view import Viewer, clip_section  # it imports torch: wrong folders and names are answered before

    viewers = [
        Viewer(label, style, run_, judged.split)
        for label, style, run_ in zip(labels, STYLES, judged.runs, strict=False)
    ]
    for viewer in viewers:
        viewer.open(device)
    described = set().union(*(viewer.described() for viewer in viewers))
    names = judged.spread(int(wanted[0]), described) if counted else wanted
    run_ = judged.runs[0]
    parts = []
    for name in progress(names, "clips", total=len(names)):
        reference = judged.reference[name]
        mark = partial(marked, reference=reference, task=run_.task, text_unit=run_.spec.text_unit)
        parts.append(clip_section(name, viewers, reference, mark, aspect))
    left_out += [f"{viewer.label}: {why}" for viewer in viewers for why in viewer.left_out]
    weights = [f"{v.label}: {v.run.weights}" for v in viewers if v.translator]
    told = "Written anew with " + ", ".join(weights) + "." if weights else "As they were evaluated."
    told += " The number beside a sentence is the mean log-probability of its tokens."
    return section("Clips", element("p", told, class_="small"), parts)


def labels_of(places: Sequence[str]) -> list[str]:
    """Return short distinct names of the runs.

    >>> labels_of(["runs/a/train", "runs/b/train"]), labels_of(["out/"])
    (['runs/a/train', 'runs/b/train'], ['out'])
    """
    names = [Path(place).resolve().name for place in places]
    return names if len(set(names)) == len(names) else [str(place) for place in places]


def build(places: Sequence[str], split: str, clips: Sequence[str], aspect: float, device: str) -> str:
    """Build the page about one run or two, by the arguments of `tools.report`; ValueError or OSError for wrong ones."""
    runs = [RunFolder.read(place) for place in places]
    labels = labels_of(places)
    left_out = [f"{label}: {why}" for run_, label in zip(runs, labels, strict=True) for why in run_.left_out]
    judged = judge(runs, split, left_out)
    sections = {
        "Scores": scores_section(judged, labels),
        "Learning curves": curves(runs, labels),
        "Sentences": sentences_section(judged[0], labels) if judged else Html(),
        "Clips": clips_section(judged[0], labels, clips, aspect, device, left_out) if judged else Html(),
        "Settings": settings_section(runs, labels),
    }
    if not judged:
        left_out.append("Scores and sentences: no split was written by " + ("both runs." if len(runs) == 2 else "it."))
    links = [element("a", name, href=f"#{anchor(name)}") for name, part in sections.items() if part]
    about = element("p", f"{runs[0].task} on {runs[0].spec.name}", class_="small")
    heading = " and ".join(labels)
    reasons = element("ul", [element("li", why) for why in left_out])
    missing = element("div", element("b", "Left out"), reasons, class_="left-out") if left_out else ""
    top = [element("h1", heading), about, element("nav", links, aria_label="Sections")]
    scripts = ("skeleton_player.js", "words.js", "report.js")
    return page(f"{heading}: report", top, missing, sections.values(), scripts=scripts)


def judge(runs: Sequence[RunFolder], split: str, left_out: list[str]) -> list[Judged]:
    """Score all splits for which every run has predictions, with `split` first."""
    found = []
    if len({(run_.task, run_.spec.text_unit, run_.spec.bleu_tokenizer) for run_ in runs}) > 1:
        left_out.append("Scores and sentences: the runs have different tasks or languages: nothing to compare.")
        return []
    for name in sorted(("test", "dev", "train"), key=lambda name: name != split):
        if all(name in run_.predictions for run_ in runs):
            try:
                found.append(Judged(runs, name))
            except ValueError as error:
                left_out.append(f"Scores of {error}")
        elif name == split:
            left_out.append(f"--split {split}: was not written.")
    return found
