"""Write descriptions made by rules from keypoints: which files are made anew, and which are kept."""

from __future__ import annotations

import logging
import os
from collections import Counter

from describing import sentences
from describing.files import Clip, write_descriptions
from system.disk import check_name
from system.faults import CLIP_FAULTS, in_one_line
from system.processes import in_processes
from temporal_alignment import read_descriptions
from utils import progress

logger = logging.getLogger(__name__)


def made_by_rules(language: str, aspect: float) -> str:
    """Return the maker's name for texts made by rules; it changes with the rules."""
    return f"rules {sentences.VERSION} {language}" + (f" aspect {aspect:g}" if aspect != 1 else "")


def by_rules(clips: list[Clip], language: str, aspect: float, workers: int, overwrite: bool = False) -> int:
    """Describe clips from their keypoints, log what was done, and return the number of clips that failed.

    A clip that has a file is skipped; with `overwrite` files of the rules are written again, but never those of others.
    """
    maker = made_by_rules(language, aspect)
    jobs = [(clip, language, aspect, maker, overwrite) for clip in clips]
    counts = Counter[str]()
    for of_clip, fault in progress(in_processes(_describe, jobs, workers, 32), "describing", total=len(jobs)):
        counts += of_clip
        if fault:
            logger.warning("%s", fault)
    for there in sorted(key for key in counts if key.startswith("made by ")):
        skipped = "" if overwrite or there.endswith(": kept") else ": skipped"
        logger.info("%d files there, %s%s.", counts[there], there, skipped)
    logger.info(
        "%d files written, %d frames described of %d; %d clips show nothing that the rules can name; %d failed.",
        counts["files"], counts["described"], counts["frames"], counts["empty"], counts["failed"],
    )  # fmt: skip
    return counts["failed"]


def _describe(job: tuple[Clip, str, float, str, bool]) -> tuple[Counter[str], str]:
    """Describe a clip unless it has a file to be kept; return counts, also of who made the file, and why it failed."""
    clip, language, aspect, maker, overwrite = job
    found, counts = read_descriptions(clip.out), Counter[str]()
    makers = {*found.made_by.values(), *([""] if found.counts.entries > len(found.texts) else [])}
    if not all(name.startswith("rules ") for name in makers):
        return Counter({f"made by {', '.join(sorted(name or 'someone else' for name in makers))}: kept": 1}), ""
    if makers:  # else it is missing, empty or damaged; a damaged one is renamed before a new one is written
        counts["made by these rules" if makers == {maker} else f"made by {' and '.join(sorted(makers))}"] = 1
        if not overwrite:
            return counts, ""
    try:
        check_name(clip.out)
        pose = clip.read_pose()
    except CLIP_FAULTS as error:
        return counts + Counter(failed=1), in_one_line(error)
    texts = sentences.describe_pose(pose, language, aspect)
    if found.damage not in ("", "empty file"):
        os.replace(clip.out, clip.out.with_name(f"{clip.out.name}.damaged"))
    write_descriptions(clip.out, texts, dict.fromkeys(texts, maker))
    return counts + Counter(files=1, described=len(texts), frames=len(pose), empty=int(not texts)), ""
