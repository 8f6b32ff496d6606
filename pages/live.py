"""Live on the demo page: a browser posts the pictures of its camera, and is told what is signed.

Shapes: (H, W, 3) of a picture.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import multiprocessing
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from pose.extraction import Extractor
from pose.live import Connection, Taken, live_poses
from pose.video import read_jpeg
from system.processes import kill_children
from translator import Live, LiveSentence, Translator

LONGEST_SIDE = 1280  # of a picture, in pixels
PATIENCE = 10  # seconds without a picture that end a session
ENDING = 3  # seconds for a session to end; it looks each second
OVER = "The live session has ended."


class LiveCamera:
    """The camera of one browser at a time; `load` loads the extractor in the process that needs it."""

    def __init__(self, translator: Translator, load: Callable[[], Extractor]) -> None:
        self.translator, self.load = translator, load
        self._one, self._posting = threading.Lock(), threading.Lock()
        self._session: tuple[str, Connection] | None = None  # its name, known to its browser alone; takes its pictures

    def run(
        self, describe: bool, tell: Callable[[dict[str, Any]], None], turn: Callable[[], AbstractContextManager]
    ) -> None:
        """Serve a browser until its recording ends.

        Args:
            describe: describe segments by the rules.
            tell: sends the browser its session's name, sentences, numbers of frames (each second at least) and the end.
            turn: makes a context in which the model may be used; this and `tell` raise if the browser has left.

        Raises:
            ValueError: another browser is served, the extractor does not work, or no pictures come.
        """
        if not self._one.acquire(blocking=False):
            raise ValueError("Another page is live, and only one can be. Stop it there, or try again later.")
        ours, theirs = multiprocessing.get_context("spawn").Pipe()
        live, last = Live(self.translator, describe), time.monotonic()
        try:
            with contextlib.closing(live_poses(theirs, 0, 0, self.load)) as poses:
                next(poses)  # the extractor is ready
                self._session = secrets.token_urlsafe(), ours
                tell({"session": self._session[0]})
                for frames in poses:
                    last = time.monotonic() if frames else last
                    if time.monotonic() - last > PATIENCE:
                        raise ValueError(f"No picture has come for {PATIENCE} seconds. Is the page in view?")
                    live.take(frames)
                    with turn():
                        for sentence in itertools.chain(live.finals(), live.drafts()):
                            tell(_facts(sentence))
                    tell({"frames": live.n_frames, "dropped": live.n_dropped})
                live.end()
                with turn():
                    for sentence in live.finals():
                        tell(_facts(sentence))
            tell({"end": True})
        finally:
            with self._posting:  # who posts is told by the death of the process
                self._session = None
                ours.close()
            self._one.release()

    def wait(self) -> None:
        """Wait for the session to end, as it does when `turn` raises; one that still loads its extractor is ended."""
        if not self._one.acquire(timeout=ENDING):
            kill_children()
            self._one.acquire(timeout=ENDING)

    def take(self, body: bytes) -> None:
        """Take a line of JSON and a JPEG (none: the end) when its turn comes; ValueError if it is unusable."""
        line, _, jpeg = body.partition(b"\n")
        try:
            facts = json.loads(line)
            name, now, dropped = facts["session"], float(facts["time"]), int(facts["dropped"])
        except (LookupError, TypeError, ValueError):
            raise ValueError("the request is none of this page; reload it.") from None
        picture = Taken(now, dropped, read_jpeg(jpeg, LONGEST_SIDE)) if jpeg else ""
        with self._posting:
            if self._session is None or name != self._session[0]:
                raise ValueError(OVER)
            connection = self._session[1]
            try:
                connection.send(picture)
                connection.recv()
            except (EOFError, OSError):
                raise ValueError(OVER) from None


def _facts(sentence: LiveSentence) -> dict[str, Any]:
    text = sentence.explained.candidates[0].text
    return {"text": text, "at": sentence.frames[0].time, "draft": sentence.is_draft}
