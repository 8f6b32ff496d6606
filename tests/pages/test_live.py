"""A browser's camera on the demo page: what is posted, what is told, and who is refused."""

import http.client
import io
import json
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

    def start(extractor, no_extractor=""):
        servers.append(Server(0, Demo(translator, extractor, no_extractor), "x", 1_000_000))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


class Page:
    """What the page does, without a browser."""

    def __init__(self, server, name="one"):
        self.server, self.name, self.heard = server, name, []

    def ask(self, method, path, body=None, **headers):
        """Status, and what is answered."""
        connection = http.client.HTTPConnection(HOST, self.server.server_port, timeout=60)
        connection.request(method, path, body, {"Origin": f"http://{HOST}:{self.server.server_port}", **headers})
        response = connection.getresponse()
        return response.status, json.loads(response.read())

    def post(self, picture, time=0.0, dropped=0, session=None, **headers):
        """Status, and what is wrong."""
        facts = {"session": session or self.name, "rules": True, "time": time, "dropped": dropped}
        status, answer = self.ask("POST", "/live", json.dumps(facts).encode() + b"\n" + picture, **headers)
        return status, answer.get("error", "")

    def hear(self):
        """Ask what was signed, and keep the sentences."""
        status, answer = self.ask("GET", f"/live?{self.name}")
        assert status == 200, answer
        self.heard += answer["sentences"]
        return answer


@pytest.mark.parametrize("step", [1, 3])
def test_sentences_are_those_of_the_recording(serve, translator, talk, step):
    """Posted one by one, with every frame or with every third, until the last hand comes down."""
    pose = read_pose(talk)
    page = Page(serve(Replay(talk)))
    frames, segmenter = [], Segmenter()
    for sent, number in enumerate(range(0, len(pose) - FPS, step)):
        facts = {"time": number / FPS, "dropped": number - sent}
        assert page.post(jpeg(number), **facts) == (200, "")
        frames.append(Frame(facts["time"], pose.keypoints[number], pose.scores[number], 1, facts["dropped"]))
        if sent % 10 == 0:
            page.hear()
    assert page.post(b"", **facts) == (200, "")
    answer = page.hear()
    assert answer["end"]
    assert (answer["frames"], answer["dropped"]) == (len(frames), frames[-1].dropped)
    segments = [segment for segment in (*map(segmenter.add, frames), segmenter.end()) if segment]
    finals = [(said["at"], said["text"]) for said in page.heard if not said["draft"]]
    wanted = [(segment[0].time, as_pose(segment)) for segment in segments]
    texts = [translator(found, translator.describe(found, 1)) for _, found in wanted]
    assert finals == [(at, text) for (at, _), text in zip(wanted, texts, strict=True)]
    assert len(finals) == 2
    drafts = [said for said in page.heard if said["draft"]]
    assert drafts
    assert {said["at"] for said in drafts} <= {at for at, _ in finals}


def test_one_at_a_time_until_it_has_left(serve, talk, monkeypatch):
    server = serve(Replay(talk))
    first, second = Page(server), Page(server, "another")
    assert first.post(jpeg(0)) == (200, "")
    status, error = second.post(jpeg(0))
    assert (status, error.partition(",")[0]) == (400, "Another page is live")
    assert first.post(b"") == (200, "")  # its last sentence may still be asked for
    assert first.hear()["end"]
    assert second.post(jpeg(0)) == (200, "")
    assert first.ask("GET", f"/live?{first.name}") == (400, {"error": "The live session has ended."})
    monkeypatch.setattr(live_page, "PATIENCE", 0)  # and one that leaves without a word is not waited for
    assert first.post(jpeg(0)) == (200, "")


def large(width, height):
    """A small JPEG that says it is large."""
    head, size, rest = jpeg(1).partition(b"\xff\xc0\x00\x0b\x08")  # its frame header: 8 bits, then height and width
    return head + size + height.to_bytes(2, "big") + width.to_bytes(2, "big") + rest[4:]


def test_what_is_refused(serve, talk):
    server = serve(Replay(talk))
    page = Page(server)
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
    assert page.post(jpeg(1), 1.0, Origin="http://evil.example")[0] == 403
    assert page.post(jpeg(1), 1.0, Host="evil.example")[0] == 403
    assert page.ask("GET", f"/live?{page.name}", Host="evil.example")[0] == 403
    assert page.ask("GET", "/live?guessed")[0] == 400
    assert page.post(jpeg(1), 1.1) == (200, "")  # and it goes on
    without = serve(None, "no extractor here")
    assert without.facts["no_live"] == "no extractor here"
    assert Page(without).post(jpeg(1))[0] == 404


def test_pictures_are_decoded_upright_and_in_colour():
    Image.fromarray(np.full((8, 16, 3), (200, 30, 30), np.uint8)).save(content := io.BytesIO(), "jpeg")
    found = read_jpeg(content.getvalue(), 16)
    assert found.shape == (8, 16, 3)
    assert np.abs(found.astype(int) - (200, 30, 30)).max() < 6


SERVER = """
import time
from tests.helpers.replay import Replay
from tools import demo_page
from translator import Translator

def explain(*arguments, before=Translator.explain):
    time.sleep(1)
    return before(*arguments)

Translator.explain = explain
demo_page.find_extractor = lambda _: (Replay({talk!r}), "")
demo_page.run(lambda: demo_page.main(demo_page.parse_args(["--checkpoint", {checkpoint!r}, "--port", "0"])))
"""


def test_signals_end_a_session_in_silence(talk, small_mt5_folder, tmp_path):
    """However many, and while it translates: a scheduler sends its own after that of the terminal."""
    checkpoint = save_model(new_model(small_mt5_folder), tmp_path / "best.pth", small_mt5_folder)
    code = SERVER.format(talk=str(talk), checkpoint=str(checkpoint))
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=-1, stderr=-1, text=True)
    try:
        address = process.stdout.readline()
        page = Page(SimpleNamespace(server_port=int(address.split("/")[2].split(":")[1])))
        for number in range(3 * FPS):
            facts = {"session": page.name, "rules": False, "time": number / FPS, "dropped": 0}
            assert page.ask("POST", "/live", json.dumps(facts).encode() + b"\n" + jpeg(number))[0] == 200
        connection = http.client.HTTPConnection(HOST, page.server.server_port, timeout=60)
        connection.request("GET", f"/live?{page.name}")
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            process.send_signal(number)
            time.sleep(0.1)
        said, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, said.split(), errors) == (0, ["ended"], "")


def test_in_a_browser(browser, serve, talk):
    """Its camera is a made-up one; the poses are recorded."""
    server = serve(Replay(talk, 0.02, FPS))
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
