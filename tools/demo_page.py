"""Demo page for a model: drop a clip, watch its skeleton with texts and gate, and read the sentence.

Python's http.server serves the page to this computer only; its files are in `pages/static`. Other web pages cannot use
it: every request must name this server as its host, and translation requests must come from its own page. Dropped files
are written to a temporary folder and removed after reading.

Shapes: T sampled frames.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import select
import signal
import socket
import socketserver
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any

from config import POSE_SUFFIXES, VIDEO_SUFFIXES
from system.disk import to_json
from system.faults import CLIP_FAULTS, in_one_line
from utils import Parser, add_extractor_flags, add_model_flags, installed, require_paths, run

if TYPE_CHECKING:
    import numpy as np

    from pages.live import LiveCamera
    from pose.extraction import Extractor
    from pose.keypoints import Pose
    from translator import Translator

HOST = "127.0.0.1"
PAGES = Path(__file__).resolve().parents[1] / "pages" / "static"
FILES = {"/": "demo.html"} | {
    f"/{name}": name for name in ("demo.css", "demo.js", "live.js", "skeleton_player.js", "words.js")
}
KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
ONLY_THE_PAGE = "only the page itself may ask."
MAX_BYTES, LIVE_BYTES = 500_000_000, 500_000  # of a file, and of a live picture, with their facts
SECONDS = 30  # maximum seconds to wait for a browser
N_BEST = 3
EXAMPLES = """examples:
  python -m tools.demo_page --checkpoint output_multimodal/best_checkpoint.pth
  python -m tools.demo_page --checkpoint best_checkpoint.pth --extractor mediapipe
  python -m tools.demo_page --checkpoint my_model --port 9000 --device cpu

Open the address that is printed, in a browser on this computer. Ctrl-C ends it.
"""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line and reject invalid values, before any slow import."""
    what = "Serve a page on which a model can be tried, to this computer alone."
    parser = Parser(prog="python -m tools.demo_page", description=what, epilog=EXAMPLES)
    add = parser.add_argument
    add_model_flags(add)
    add("--port", type=int, default=8642, help="0 takes one that is free; default: 8642")
    add_extractor_flags(add)
    add("--num_beams", type=int, default=4, help=f"of the search for sentences, at least {N_BEST}; default: 4")
    args = parser.parse_args(argv)
    parser.check(args, port=(0, 65535), num_beams=N_BEST)
    return args


# -- what the page asks for ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Question:
    """The page's request for a file."""

    name: str
    texts: str = "none"  # source of the descriptions: "rules", "file" or "none"
    content: str = ""  # the description file's content, for "file"
    aspect: float = 1.0  # width / height of the original images; ignored for videos
    person: int = 0  # index of the person, if frames show several people

    @classmethod
    def of(cls, body: bytes) -> tuple[Question, bytes]:
        """Split a request into a line of JSON and the file; ValueError if the page never sends such a request."""
        line, _, file = body.partition(b"\n")
        try:
            return cls(**json.loads(line)), file
        except (TypeError, ValueError):
            raise ValueError("the request is none of this page; reload it.") from None


class Demo:
    """Answers the page's requests.

    Args:
        extractor: extracts poses from videos; without it videos are refused.
        no_extractor: why there is none.
        load: loads another one, for the process of a live session.
    """

    def __init__(
        self,
        translator: Translator,
        extractor: Extractor | None = None,
        no_extractor: str = "",
        load: Callable[[], Extractor] | None = None,
    ) -> None:
        from pages.live import LiveCamera

        self.translator, self.extractor, self.no_extractor = translator, extractor, no_extractor
        self.no_live = no_extractor
        if translator.hand_crops:
            self.no_live = "This checkpoint looks at crops of the hands, which are not kept live."
        elif not self.no_live and not installed("PIL"):
            self.no_live = 'Needs PIL: pip install -e ".[rgb]"'
        self.live = LiveCamera(translator, load) if load and not self.no_live else None
        self.busy = threading.Lock()  # one clip is processed at a time
        self.over = threading.Event()

    def facts(self, checkpoint: str, max_bytes: int) -> dict[str, Any]:
        """Return the facts about model and server for the page."""
        config = self.translator.model.config
        return {
            "checkpoint": Path(checkpoint).name,
            "language": config.language,
            "descriptions": config.use_descriptions,
            "max_bytes": max_bytes,
            "suffixes": [*(() if config.rgb_support else POSE_SUFFIXES), *(VIDEO_SUFFIXES if self.extractor else ())],
            "no_videos": "" if self.extractor else self.no_extractor,
            "no_live": self.no_live,
        }

    def answer(self, question: Question, file: bytes, is_gone: Callable[[], bool] = lambda: False) -> dict[str, Any]:
        """Return the data of a file for the page, and its sentences; `is_gone` tells whether nobody waits any more.

        Raises:
            ValueError: the file is unusable; the message uses the user's name for it.
            ConnectionAbortedError: nobody waits for the answer.
        """
        from pose.drawing import picture_points, player_data
        from temporal_alignment import sample_frames

        with self.turn(is_gone) as still_asked, tempfile.TemporaryDirectory(prefix="demo_page_") as folder:
            path = Path(folder) / f"clip{Path(question.name).suffix}"
            video = path if path.suffix.lower() in VIDEO_SUFFIXES else None
            try:
                path.write_bytes(file)
                pose, aspect, fps = self._pose(path, question, still_asked)
                texts = self._texts(question, path.with_suffix(".json"), pose, aspect)
                still_asked()
                sentences = self._sentences(pose, texts, video)
            except ConnectionAbortedError:
                raise
            except CLIP_FAULTS as error:
                raise ValueError(in_one_line(error).replace(str(path), question.name).replace(folder, "")) from None
        frames = sample_frames(len(pose), self.translator.max_length)
        return {
            "name": question.name,
            "recorded": len(pose),
            "frames": (frames + pose.start).tolist(),
            "fps": fps,
            **player_data(*picture_points(pose, frames, aspect)),
            **sentences,
        }

    @contextlib.contextmanager
    def turn(self, is_gone: Callable[[], bool]) -> Iterator[Callable[[], None]]:
        """Wait for the model; give what raises ConnectionAbortedError, as this does, if nobody waits any more."""

        def still_asked() -> None:
            if self.over.is_set() or is_gone():
                raise ConnectionAbortedError

        while not self.busy.acquire(timeout=0.2):
            still_asked()
        try:
            still_asked()
            yield still_asked
        finally:
            self.busy.release()

    def _pose(self, path: Path, question: Question, still_asked: Callable[[], None]) -> tuple[Pose, float, float]:
        """Return a file's pose, the aspect ratio of its images, and the frames per second (0 if unknown)."""
        from pose.extraction import extract_pose
        from pose.video import read_facts, read_pictures
        from translator import load_pose

        if path.suffix.lower() not in VIDEO_SUFFIXES:
            return load_pose(path, question.person), question.aspect, 0
        if self.extractor is None:
            raise ValueError(f"{path}: is a video. {self.no_extractor}")
        facts = read_facts(path)

        def pictures() -> Iterator[np.ndarray]:
            for picture in read_pictures(path):
                still_asked()
                yield picture

        found = extract_pose(pictures(), self.extractor, question.person, path)
        return found.pose, facts.width / facts.height, round(facts.fps, 3)

    def _texts(self, question: Question, path: Path, pose: Pose, aspect: float) -> Mapping[int, str] | None:
        """Return a clip's descriptions; None if not requested or not supported by the model."""
        from translator import load_descriptions

        if not self.translator.model.config.use_descriptions or question.texts == "none":
            return None
        if question.texts == "file":
            path.write_text(question.content, encoding="utf-8")
            return load_descriptions(path, pose)
        return self.translator.describe(pose, aspect)

    def _sentences(self, pose: Pose, texts: Mapping[int, str] | None, video: Path | None) -> dict[str, Any]:
        """Return sentences with and without descriptions, each frame's text and gate, and what led to which word."""
        from pages.clip_view import words_data

        translator = self.translator
        without = translator.sample(pose, None, "the clip", video)
        samples = [without] if texts is None else [without, translator.sample(pose, texts, "the clip", video)]
        explained = translator.explain(samples, N_BEST)
        found = [[candidate._asdict() for candidate in clip.candidates] for clip in explained]
        words = words_data(explained[-1], len(samples[-1].pose_sample["body"]))
        if texts is None:
            return {"without": found[0], "with": None, "texts": None, "own": None, "gate": None, "words": words}
        gate = [round(value, 4) for value in explained[1].gate or ()]
        shown = {"texts": samples[1].descriptions, "own": samples[1].has_description, "gate": gate}
        return {"without": found[0], "with": found[1], "words": words, **shown}


# -- the server ------------------------------------------------------------------------------------------------------


class Handler(BaseHTTPRequestHandler):
    """Handles one request: for the page's files, the facts, a translation, or a live session and its pictures."""

    server: Server
    timeout = SECONDS
    server_version, sys_version = "demo_page", ""

    def do_GET(self) -> None:
        """Send one of the page's files, the facts, or the events of a live session."""
        if not self._is_for_us():
            return
        if self.path == "/facts":
            self._send_json(HTTPStatus.OK, self.server.facts)
        elif self.path in FILES:
            file = PAGES / FILES[self.path]
            self._send(HTTPStatus.OK, file.read_bytes(), f"{KINDS[file.suffix]}; charset=utf-8")
        elif self.path in ("/live", "/live?rules") and self.server.demo.live:
            if self.headers.get("Sec-Fetch-Site") == "same-origin":  # browsers send no Origin here
                self._send_events(self.server.demo.live)
            else:
                self._refuse(HTTPStatus.FORBIDDEN, ONLY_THE_PAGE)
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "nothing is here.")

    def do_POST(self) -> None:
        """Answer a translation request, or take a live picture."""
        if not self._is_for_us():
            return
        if self.headers.get("Origin") != f"http://{self.headers['Host']}":
            self._refuse(HTTPStatus.FORBIDDEN, ONLY_THE_PAGE)
            return
        live = self.server.demo.live if self.path == "/live" else None
        if not (live or self.path == "/translate"):
            self._refuse(HTTPStatus.NOT_FOUND, "nothing is here.")
            return
        limit = LIVE_BYTES if live else self.server.facts["max_bytes"]
        try:
            length = int(self.headers.get("Content-Length", "-1"))
            if not 0 <= length <= limit:
                raise ValueError(f"the file has {length / 1e6:.1f} MB; the limit is {limit / 1e6:g} MB.")
            body = self.rfile.read(length)
            if live:
                live.take(body)
                self._send_json(HTTPStatus.OK, {})
            else:
                self._send_json(HTTPStatus.OK, self.server.demo.answer(*Question.of(body), self._is_gone))
        except (ValueError, FileNotFoundError) as error:  # the text encoder's folder may have been moved
            self._refuse(HTTPStatus.BAD_REQUEST, in_one_line(error))

    def _send_events(self, live: LiveCamera) -> None:
        """Run a live session."""

        def tell(what: Mapping[str, Any]) -> None:
            self.wfile.write(f"data: {to_json(what)}\n\n".encode())

        demo = self.server.demo
        describe = self.path.endswith("?rules") and demo.translator.model.config.use_descriptions
        self._start(HTTPStatus.OK, "text/event-stream")
        try:
            live.run(describe, tell, lambda: demo.turn(self._is_gone))
        except (TimeoutError, ConnectionError):
            raise
        except CLIP_FAULTS as error:
            tell({"error": in_one_line(error)})

    def _is_gone(self) -> bool:
        try:
            return bool(select.select([self.connection], [], [], 0)[0]) and not self.connection.recv(1, socket.MSG_PEEK)
        except OSError:
            return True

    def _is_for_us(self) -> bool:
        """Refuse requests with another host name, as in DNS rebinding attacks."""
        if self.headers.get("Host") in self.server.hosts:
            return True
        self._refuse(HTTPStatus.FORBIDDEN, "this server answers to its own address alone.")
        return False

    def _refuse(self, status: HTTPStatus, reason: str) -> None:
        self._send_json(status, {"error": reason})

    def _send_json(self, status: HTTPStatus, content: Mapping[str, Any]) -> None:
        body = to_json(content).encode("utf-8")
        self._send(status, body, "application/json; charset=utf-8")

    def _send(self, status: HTTPStatus, body: bytes, kind: str) -> None:
        self._start(status, kind, {"Content-Length": str(len(body))})
        self.wfile.write(body)

    def _start(self, status: HTTPStatus, kind: str, more: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        policy = "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'"
        for name, value in {
            "Content-Type": kind,
            "Cache-Control": "no-store",
            "Content-Security-Policy": policy,
            "Cross-Origin-Resource-Policy": "same-origin",
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            **(more or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- the name is http.server's
        """Log nothing: the page shows errors."""


class Server(socketserver.ThreadingTCPServer):
    """The page's server, for port 0 at any free one; requests have at most `max_bytes`. ValueError for a used port."""

    allow_reuse_address = True  # at once after an earlier server
    daemon_threads = True  # a thread that waits for a browser must not keep the program running

    def __init__(self, port: int, demo: Demo, checkpoint: str, max_bytes: int = MAX_BYTES) -> None:
        try:
            super().__init__((HOST, port), Handler)
        except OSError as error:
            raise ValueError(f"--port {port}: {error.strerror}. Give another one; 0 takes any that is free.") from None
        self.demo, self.facts = demo, demo.facts(checkpoint, max_bytes)
        self.server_port = self.server_address[1]
        self.hosts = {f"{name}:{self.server_port}" for name in (HOST, "localhost")}

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore closed connections; print a traceback for other errors."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


def find_extractor(args: argparse.Namespace) -> tuple[Extractor | None, str, Callable[[], Extractor]]:
    """Load the pose extractor or, unless a flag asks for it, return why there is none; and what loads it again.

    Raises:
        ValueError, FileNotFoundError: the one that a flag asks for cannot be loaded.
    """
    from pose.extraction import load_extractor

    device = "cpu" if args.device == "cpu" else ""  # onnxruntime may not be able to use mT5's GPU
    load = functools.partial(load_extractor, args.extractor, args.models, device)
    try:
        return load(), "", load
    except (ValueError, FileNotFoundError) as error:
        if args.extractor or args.models:
            raise
        return None, str(error), load


def main(args: argparse.Namespace) -> None:
    """Serve until Ctrl-C or SIGTERM; then the process ends here."""
    flags = ("checkpoint", "models", "mt5_path", "text_encoder")
    require_paths(**{flag: getattr(args, flag) for flag in flags})
    extractor = find_extractor(args)
    from translator import Translator  # only now: torch is slow to import

    options = ("mt5_path", "text_encoder", "language", "device", "dtype", "num_beams")
    translator = Translator.from_checkpoint(args.checkpoint, **{name: getattr(args, name) for name in options})
    demo = Demo(translator, *extractor)

    def serve() -> None:
        try:
            server.serve_forever()
        finally:
            demo.over.set()

    with Server(args.port, demo, args.checkpoint) as server:
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) != signal.SIG_IGN:  # as a shell has what it runs in the background
                signal.signal(number, lambda *_: demo.over.set())  # an exception could come at any place, and twice
        threading.Thread(target=serve, daemon=True).start()
        sys.stdout.write(f"http://{HOST}:{server.server_port}/ is the page, for this computer alone. Ctrl-C ends it.\n")
        sys.stdout.flush()
        while not demo.over.wait(1):  # Windows tells of a signal only between two waits
            pass
        sys.stdout.write("\nended\n")
        sys.stdout.flush()
        server.shutdown()
        with demo.busy:  # what runs ends at its next image, or with its translation
            pass
        if demo.live:
            demo.live.wait()
    # Threads that still answer a browser are stopped by Python's own end wherever they are, and those in C++ abort it.
    os._exit(0)


if __name__ == "__main__":
    run(lambda: main(parse_args()))
