"""A browser's camera on the demo page: what is posted, what is told, and who is refused."""

import contextlib
import functools
import http.client
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from clips.segments import Segmenter
from pages import live as live_page
from pose import extraction
from pose.keypoints import Pose, read_pose
from pose.live import Frame, as_pose
from pose.video import read_jpeg
from tests.clips.test_segments import FPS
from tests.clips.test_segments import talk as talking
from tests.helpers.models import new_model, save_model
from tests.helpers.replay import Replay, jpeg
from tools.demo_page import HOST, Demo, Server
from translator import Translator

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def talk(tmp_path_factory):
    """A pose file of two sentences, with rests."""
    keypoints, scores, _ = talking(2)
    extraction.write_pose(path := tmp_path_factory.mktemp("talk") / "talk.pkl", Pose(keypoints, scores))
    return path


@pytest.fixture(scope="module")
def translator(small_mt5_folder):
    model = new_model(small_mt5_folder, use_descriptions=True)
    return Translator(model, dtype="fp32", num_beams=2, max_new_tokens=6, device="cpu", max_length=64)


@pytest.fixture
def serve(translator):
    """Start a server for an extractor; they end with the test."""
    servers = []

    def start(load, no_extractor=""):
        servers.append(Server(0, Demo(translator, None, no_extractor, load), "x", 1_000_000))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return servers[-1]

    yield start
    for server in servers:
        server.demo.over.set()
        server.shutdown()
        server.server_close()


class Page:
    """What the page does, without a browser: an open stream of events, and posts."""

    def __init__(self, server, path="/live?rules", **headers):
        self.server, self.own = server, {"Origin": f"http://{HOST}:{server.server_port}"}
        self.stream = http.client.HTTPConnection(HOST, server.server_port, timeout=60)
        self.stream.request("GET", path, headers={"Sec-Fetch-Site": "same-origin", **headers})
        self.events = self.stream.getresponse()
        self.heard = []

    def hear(self, *wanted):
        """Read events up to one that has one of these keys; return that one."""
        deadline = time.monotonic() + 60
        while line := self.events.readline():
            if time.monotonic() > deadline:
                pytest.fail(f"no {wanted} in a minute")
            if line.startswith(b"data: "):
                self.heard.append(json.loads(line[6:]))
                if self.heard[-1].keys() & set(wanted):
                    return self.heard[-1]
        raise AssertionError(f"no {wanted} in {self.heard}")

    def post(self, picture, time=0.0, dropped=0, session=None, **headers):
        """Status, and what is wrong."""
        facts = {"session": session or self.heard[0]["session"], "time": time, "dropped": dropped}
        connection = http.client.HTTPConnection(HOST, self.server.server_port, timeout=60)
        connection.request("POST", "/live", json.dumps(facts).encode() + b"\n" + picture, {**self.own, **headers})
        response = connection.getresponse()
        return response.status, json.loads(response.read()).get("error", "")

    def close(self):
        self.events.close()
        self.stream.close()


@pytest.mark.parametrize("step", [1, 3])
def test_sentences_are_those_of_the_recording(serve, translator, talk, step):
    """Posted one by one, with every frame or with every third, until the last hand comes down."""
    pose = read_pose(talk)
    page = Page(serve(functools.partial(Replay, talk)))
    page.hear("session")
    frames, segmenter = [], Segmenter()
    for sent, number in enumerate(range(0, len(pose) - FPS, step)):
        facts = {"time": number / FPS, "dropped": number - sent}
        assert page.post(jpeg(number), **facts) == (200, "")
        frames.append(Frame(facts["time"], pose.keypoints[number], pose.scores[number], 1, facts["dropped"]))
    assert page.post(b"", **facts)[0] == 200
    page.hear("end")
    segments = [segment for segment in (*map(segmenter.add, frames), segmenter.end()) if segment]
    finals = [(event["at"], event["text"]) for event in page.heard if event.get("draft") is False]
    wanted = [(segment[0].time, as_pose(segment)) for segment in segments]
    texts = [translator(found, translator.describe(found, 1)) for _, found in wanted]
    assert finals == [(at, text) for (at, _), text in zip(wanted, texts, strict=True)]
    assert len(finals) == 2
    counts = [event for event in page.heard if "frames" in event]
    assert counts[-1] == {"frames": len(frames), "dropped": frames[-1].dropped}
    drafts = [event for event in page.heard if event.get("draft")]
    assert drafts
    assert {event["at"] for event in drafts} <= {at for at, _ in finals}


def test_an_answer_waits_for_the_extractor(serve, talk):
    """So the page knows which pictures to drop; it takes one while one is looked at."""
    page = Page(serve(functools.partial(Replay, talk, 0.2)), "/live")
    page.hear("session")
    begun = time.monotonic()
    for number in range(6):
        assert page.post(jpeg(number), number / FPS)[0] == 200
    assert time.monotonic() - begun > 5 * 0.2 - 0.1
    page.close()


def test_one_at_a_time_until_it_has_left(serve, talk):
    server = serve(functools.partial(Replay, talk))
    first = Page(server)
    first.hear("session")
    assert "Another page is live" in Page(server).hear("error")["error"]
    name = first.heard[0]["session"]
    first.close()  # without a word
    deadline = time.monotonic() + 10
    while "error" in (second := Page(server)).hear("session", "error"):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert second.post(jpeg(0), session=name) == (400, "The live session has ended.")
    assert second.post(jpeg(0)) == (200, "")
    server.demo.over.set()  # as Ctrl-C does
    with pytest.raises(AssertionError):
        second.hear("end", "error")


def test_who_sends_nothing_is_left(serve, talk, monkeypatch):
    monkeypatch.setattr(live_page, "PATIENCE", 0.5)
    page = Page(serve(functools.partial(Replay, talk)))
    page.hear("session")
    assert "No picture has come for 0.5 seconds" in page.hear("error")["error"]
    assert page.post(jpeg(0)) == (400, "The live session has ended.")


def test_an_extractor_that_does_not_work(serve, tmp_path):
    assert "gone.pkl" in Page(serve(functools.partial(Replay, tmp_path / "gone.pkl"))).hear("error")["error"]


def large(width, height):
    """A small JPEG that says it is large."""
    head, size, rest = jpeg(1).partition(b"\xff\xc0\x00\x0b\x08")  # its frame header: 8 bits, then height and width
    return head + size + height.to_bytes(2, "big") + width.to_bytes(2, "big") + rest[4:]


def test_what_is_refused(serve, talk):
    server = serve(functools.partial(Replay, talk))
    page = Page(server)
    page.hear("session")
    assert page.post(jpeg(0), 1.0) == (200, "")
    for body, said in (
        (b"no picture", "the picture is no whole JPEG"),
        (jpeg(1)[:-200], "the picture is no whole JPEG"),
        (large(1281, 96), "the picture has 1281 x 96 pixels; 1280 is the most."),
        (large(65500, 65500), "the picture is no whole JPEG (DecompressionBombError)"),
    ):
        status, error = page.post(body, 1.0)
        assert (status, error[: len(said)]) == (400, said)
    too_much = {"Content-Length": "500001"}
    assert page.post(jpeg(1), 1.0, **too_much) == (400, "the file has 0.5 MB; the limit is 0.5 MB.")
    assert page.post(jpeg(1), "x") == (400, "the request is none of this page; reload it.")
    assert page.post(jpeg(1), 1.0, session="guessed") == (400, "The live session has ended.")
    assert page.post(jpeg(1), 1.0, Origin="http://evil.example")[0] == 403
    assert page.post(jpeg(1), 1.0, Host="evil.example")[0] == 403
    for headers in ({"Host": "evil.example"}, {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "none"}):
        assert Page(server, **headers).events.status == 403
    assert page.post(jpeg(1), 1.1) == (200, "")  # and it goes on
    page.close()
    without = serve(None, "no extractor here")
    assert without.facts["no_live"] == "no extractor here"
    assert Page(without).events.status == 404


def test_pictures_are_decoded_upright_and_in_colour():
    Image.fromarray(np.full((8, 16, 3), (200, 30, 30), np.uint8)).save(content := io.BytesIO(), "jpeg")
    found = read_jpeg(content.getvalue(), 16)
    assert found.shape == (8, 16, 3)
    assert np.abs(found.astype(int) - (200, 30, 30)).max() < 6


SERVER = """
import functools, time
from tests.helpers.replay import Replay
from tools import demo_page
from translator import Translator

def explain(*arguments, before=Translator.explain):
    time.sleep(1)
    return before(*arguments)

Translator.explain = explain
load = functools.partial(Replay, {talk!r})
demo_page.find_extractor = lambda _: (load(), "", load)
demo_page.run(lambda: demo_page.main(demo_page.parse_args(["--checkpoint", {checkpoint!r}, "--port", "0"])))
"""


@pytest.mark.parametrize("at", ["a translation", "loading"])
def test_signals_end_a_session_in_silence(talk, small_mt5_folder, tmp_path, at):
    """However many: a scheduler sends its own after that of the terminal."""
    checkpoint = save_model(new_model(small_mt5_folder), tmp_path / "best.pth", small_mt5_folder)
    code = SERVER.format(talk=str(talk), checkpoint=str(checkpoint))
    command = [sys.executable, "-c", code]
    process = subprocess.Popen(command, cwd=ROOT, stdout=-1, stderr=-1, text=True, start_new_session=True)
    try:
        address = process.stdout.readline()
        page = Page(SimpleNamespace(server_port=int(address.split("/")[2].split(":")[1])), "/live")
        if at == "a translation":
            page.hear("session")
            for number in range(3 * FPS):
                page.post(jpeg(number), number / FPS)
            page.hear("text")
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
            time.sleep(0.1)
        said, errors = process.communicate(timeout=60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert (process.returncode, said.split(), errors) == (0, ["ended"], "")


def test_in_a_browser(browser, serve, talk):
    """Its camera is a made-up one; the poses are recorded."""
    server = serve(functools.partial(Replay, talk, 0.02, FPS))
    for width in (390, 1200):
        browser.size(width)
        browser.open(f"http://{HOST}:{server.server_port}/")
        browser.wait("!document.querySelector('#live_button').hidden")
        assert not browser.run("document.querySelector('#view').srcObject")
        for _ in range(2):  # once does not suffice
            browser.run("document.querySelector('#live_button').click()")
            browser.wait("document.querySelector('#live_button').textContent === 'Stop'")
            browser.wait("document.querySelector('#live_sentences li:not(.draft), .fault')")
            assert re.match(
                r"0:0\d\.\d .*[^…]$", browser.run("document.querySelector('#live_sentences li:last-child').textContent")
            )
            assert browser.run("document.documentElement.scrollWidth") <= width
            assert "pictures looked at" in browser.run("document.querySelector('#live_status').textContent")
            browser.run("window.track = document.querySelector('#view').srcObject.getTracks()[0]")
            browser.run("document.querySelector('#live_button').click()")
            assert browser.run("track.readyState") == "ended"
            browser.wait("document.querySelector('#live_button').textContent === 'Start the camera'")
            assert browser.run("document.querySelector('#live_status').className").strip() == "hint"
