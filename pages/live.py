"""Live on the demo page: a browser posts the pictures of its camera, and asks what is signed."""

from __future__ import annotations

import itertools
import json
import math
import threading
import time
from typing import Any

from pose.extraction import Extractor
from pose.live import Frame, largest
from pose.video import read_jpeg
from translator import Live, Translator

LONGEST_SIDE = 1280  # of a picture, in pixels
PATIENCE = 3  # seconds without a picture after which another page may begin


class LiveCamera:
    """The camera of one page at a time.

    Args:
        extractor: is used while `busy` is held, since it serves dropped videos as well.
    """

    def __init__(self, translator: Translator, extractor: Extractor, busy: threading.Lock) -> None:
        self.translator, self.extractor, self.busy = translator, extractor, busy
        self._entering = threading.Lock()
        self._name, self._live, self._last = "", Live(translator), -math.inf
        self._has_ended = False

    def take(self, body: bytes) -> None:
        """Take a picture: a line of JSON and a JPEG (none: the end); the first one of a page begins its session.

        The line has the session's name, which its page alone knows, and of the picture the time in seconds and how many
        were dropped before it; and whether segments are described by the rules.

        Raises:
            ValueError: the request is unusable, or another page is live.
        """
        line, _, jpeg = body.partition(b"\n")
        try:
            facts = json.loads(line)
            name, rules, now, dropped = facts["session"], facts["rules"], float(facts["time"]), int(facts["dropped"])
        except (LookupError, TypeError, ValueError):
            raise ValueError("the request is none of this page; reload it.") from None
        with self._entering:
            if name != self._name:
                if time.monotonic() - self._last < PATIENCE:
                    raise ValueError("Another page is live, and only one can be. Stop it there, or try again later.")
                self._name, self._live, self._has_ended = name, Live(self.translator, rules), False
                with self.busy:
                    self.extractor.start()
            self._last, live = time.monotonic(), self._live
        if not jpeg:
            live.end()
            self._last, self._has_ended = -math.inf, True
            return
        picture = read_jpeg(jpeg, LONGEST_SIDE)
        with self.busy:
            keypoints, scores = largest(*self.extractor(picture))
        live.take([Frame(now, keypoints, scores, picture.shape[1] / picture.shape[0], dropped)])

    def said(self, name: str) -> dict[str, Any]:
        """Return a session's new sentences and drafts, its numbers of frames, and whether it has ended.

        ValueError if another page is live.
        """
        if name != self._name:
            raise ValueError("The live session has ended.")
        live, has_ended = self._live, self._has_ended
        sentences = [
            {"text": found.explained.candidates[0].text, "at": found.frames[0].time, "draft": found.is_draft}
            for found in itertools.chain(live.finals(), live.drafts())
        ]
        return {"sentences": sentences, "frames": live.n_frames, "dropped": live.n_dropped, "end": has_ended}
