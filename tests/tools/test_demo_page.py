"""The page shows what the translator says, to this computer alone, and keeps nothing."""

import base64
import http.client
import json
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from argparse import Namespace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from pose import extraction
from pose.drawing import picture_points
from pose.keypoints import read_pose
from tests.helpers.models import new_model, save_model
from tools import demo_page
from tools.demo_page import HOST, PAGES, Demo, Question, Server, parse_args
from translator import Translator

OPTIONS = {"dtype": "fp32", "num_beams": 3, "max_new_tokens": 12, "device": "cpu", "max_length": 16}
TEXTS = {"2.jpg": "右手食指伸直", "9.jpg": "the left hand is at the chin"}


@pytest.fixture(scope="module")
def translators(small_mt5_folder):
    """By whether they take descriptions."""
    return {
        described: Translator(new_model(small_mt5_folder, use_descriptions=described), **OPTIONS)
        for described in (True, False)
    }


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """20 frames of a walk: more than the model looks at."""
    path = tmp_path_factory.mktemp("clip") / "my clip.npz"
    rng = np.random.default_rng(0)
    keypoints = 0.5 + 0.1 * rng.random((1, 133, 2)) + 0.01 * rng.standard_normal((20, 133, 2)).cumsum(0)
    scores = np.ones((20, 133))
    scores[:, 112:] = 0.1
    np.savez(path, keypoints=keypoints, scores=scores)
    return path


@pytest.fixture(scope="module")
def servers(translators):
    """Running, by whether their model takes descriptions."""
    running = {}
    for described, translator in translators.items():
        demo = Demo(translator, None, "no extractor here")
        running[described] = Server(0, demo, "best_checkpoint.pth", 1_000_000)
        threading.Thread(target=running[described].serve_forever, daemon=True).start()
    yield running
    for server in running.values():
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def nothing_left_behind(tmp_path, monkeypatch):
    """Whatever a test does, no file of the user's stays."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield
    assert not list(folder.iterdir())


def body(file: bytes, **question) -> bytes:
    return json.dumps(question, ensure_ascii=False).encode() + b"\n" + file


def points_of(answer):
    return np.frombuffer(base64.b64decode(answer["points"]), "<u2").reshape(-1, answer["joints"], 2)


# -- answers -----------------------------------------------------------------------------------------------------------


def test_the_sentences_are_the_translators(translators, clip):
    translator = translators[True]
    pose, texts = read_pose(clip), {2: TEXTS["2.jpg"], 9: TEXTS["9.jpg"]}
    question, file = Question.of(body(clip.read_bytes(), name="my clip.npz", texts="file", content=json.dumps(TEXTS)))
    answer = Demo(translator).answer(question, file)
    for kind, given in (("with", texts), ("without", {})):
        sample = translator.sample(pose, given)
        wanted = translator.explain([sample], 3)[0].candidates
        assert [found["text"] for found in answer[kind]] == [candidate.text for candidate in wanted]
        scores = [candidate.score for candidate in wanted]
        assert [found["score"] for found in answer[kind]] == pytest.approx(scores, abs=1e-4)
    assert answer["with"] != answer["without"]
    assert (answer["recorded"], len(answer["frames"])) == (20, 16)
    assert answer["frames"] == sorted(set(answer["frames"]))
    sample = translator.sample(pose, texts)
    assert (answer["texts"], answer["own"]) == (sample.descriptions, sample.has_description)
    assert answer["gate"] == pytest.approx(translator.explain([sample])[0].gate, abs=1e-3)
    assert answer["words"]["words"] == [word.text for word in translator.explain([sample], 3)[0].words]
    assert answer["words"]["text"] == answer["with"][0]["text"]
    assert len(points_of(answer)) == 16
    assert len({len(answer[key]) for key in ("frames", "texts", "own", "gate")}) == 1


def test_descriptions_by_rules_and_none(translators, shared_real):
    path = sorted((shared_real / "fingerspelling/pose_format").glob("*.pkl"))[0]
    demo = Demo(translators[True])
    answer = demo.answer(Question("x.pkl", "rules"), path.read_bytes())
    assert all(text.startswith(("右手", "左手", "双手")) for text in answer["texts"])
    answer = demo.answer(Question("x.pkl", "none"), path.read_bytes())
    assert answer["with"] is answer["texts"] is answer["gate"] is None
    assert len(answer["without"]) == 3


def test_the_skeleton_is_that_of_the_frames_looked_at(translators, clip):
    answer = Demo(translators[False]).answer(Question(clip.name, "rules", aspect=2.0), clip.read_bytes())
    assert answer["with"] is None
    points, ratio = picture_points(read_pose(clip), np.array(answer["frames"]), 2.0)
    assert np.array_equal(points_of(answer), points)
    assert answer["ratio"] == ratio


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.npz", b"PK nothing", "a.npz: "),
        ("a.pkl", b"", "a.pkl: the file is empty"),
        ("a.mp4", b"\0", "a.mp4: is a video. no extractor here"),
        ("a.jpg", b"\0", "a.jpg: is no pose file"),
        ("../../etc/passwd", b"", "passwd: is no pose file"),
        ("no ending", b"", "no ending: is no pose file"),
    ],
)
def test_bad_files_are_named_as_the_user_names_them(translators, name, content, words):
    with pytest.raises(ValueError, match="^") as error:
        Demo(translators[True], None, "no extractor here").answer(Question(name), content)
    assert words in str(error.value)
    assert "demo_page_" not in str(error.value)


def test_a_video_is_read_with_an_extractor(translators, write_video, tmp_path):
    """What the extractor finds is shown and translated; the video says its own aspect and rate."""
    film = write_video(tmp_path / "film.mp4", [np.full((48, 96, 3), shade, np.uint8) for shade in range(0, 200, 20)])

    class Extractor:
        label, one_person = "shades", True

        def start(self):
            pass

        def __call__(self, picture):
            keypoints = np.linspace(0.2, 0.8, 266).reshape(1, 133, 2) + picture.mean() / 2000
            return keypoints, np.ones((1, 133))

    answer = Demo(translators[True], Extractor()).answer(Question("film.mp4", "rules", aspect=5), film.read_bytes())
    assert (answer["recorded"], answer["fps"]) == (10, 25)
    points = points_of(answer)
    assert points[9, 0, 0] > points[0, 0, 0]
    assert answer["ratio"] == pytest.approx(2, abs=0.3)  # the points fill a square of the film, which is 2 : 1
    with pytest.raises(ValueError, match=r"^broken.mp4: "):
        Demo(translators[True], Extractor()).answer(Question("broken.mp4"), b"no film")


@pytest.mark.parametrize("line", ["", "[1]", "{", '{"other": 1}'])
def test_a_request_of_another_kind_is_refused(line):
    with pytest.raises(ValueError, match="the request is none of this page; reload it"):
        Question.of(f"{line}\nfile".encode())


# -- the server --------------------------------------------------------------------------------------------------------


def ask(server, method, path, content=None, **headers):
    connection = http.client.HTTPConnection(HOST, server.server_port, timeout=20)
    own = {"Host": f"{HOST}:{server.server_port}", "Origin": f"http://{HOST}:{server.server_port}"}
    connection.request(method, path, content, {k: v for k, v in {**own, **headers}.items() if v is not None})
    response = connection.getresponse()
    return response.status, response.read(), response.headers


def test_the_pages_files_and_nothing_else(servers):
    status, content, headers = ask(servers[True], "GET", "/")
    assert (status, content) == (200, (PAGES / "demo.html").read_bytes())
    assert headers["Content-Security-Policy"].startswith("default-src 'self'")
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert ask(servers[True], "GET", "/skeleton_player.js")[0] == 200
    for path in ("/demo.html", "/../config.py", "/%2e%2e/config.py", "//etc/passwd", "/translate", "/?x"):
        assert ask(servers[True], "GET", path)[0] == 404
    assert ask(servers[True], "PUT", "/")[0] == 501
    assert servers[True].socket.getsockname()[0] == "127.0.0.1"  # this computer alone
    facts = json.loads(ask(servers[True], "GET", "/facts")[1])
    assert (facts["checkpoint"], facts["descriptions"], facts["language"]) == ("best_checkpoint.pth", True, "Chinese")


def test_other_sites_are_refused(servers, clip):
    """A foreign name that points here (Host), and a foreign page that sends here (Origin)."""
    server, content = servers[False], body(clip.read_bytes(), name="clip.npz")
    assert ask(server, "POST", "/translate", content)[0] == 200
    for headers in (
        {"Host": "evil.example"},
        {"Host": f"evil.example:{server.server_port}", "Origin": f"http://evil.example:{server.server_port}"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": None},
        {"Origin": f"https://{HOST}:{server.server_port}"},
        {"Origin": f"http://{HOST}:1"},
    ):
        status, answer, _ = ask(server, "POST", "/translate", content, **headers)
        assert status == 403, headers
        assert "error" in json.loads(answer)
    assert ask(server, "GET", "/facts", Host="evil.example")[0] == 403
    local = f"localhost:{server.server_port}"
    assert ask(server, "POST", "/translate", content, Host=local, Origin=f"http://{local}")[0] == 200


def test_requests_are_bounded(servers, clip):
    server = servers[False]
    status, answer, _ = ask(server, "POST", "/translate", b"", **{"Content-Length": "1000001"})
    assert (status, json.loads(answer)) == (400, {"error": "the file has 1.0 MB; the limit is 1 MB."})
    for length in ("-1", "x", "1e3", "", "9" * 5000):
        assert ask(server, "POST", "/translate", b"", **{"Content-Length": length})[0] == 400
    assert ask(server, "POST", "/other", b"x")[0] == 404
    status, answer, _ = ask(server, "POST", "/translate", body(b"x", name="a.npz"))
    assert status == 400
    assert json.loads(answer)["error"].startswith("a.npz: ")


def test_a_browser_that_says_nothing_is_left(servers, monkeypatch):
    monkeypatch.setattr(demo_page.Handler, "timeout", 0.2)
    with socket.create_connection((HOST, servers[False].server_port), timeout=20) as silent:
        own = f"{HOST}:{servers[False].server_port}"
        silent.sendall(f"POST /translate HTTP/1.0\r\nHost: {own}\r\nOrigin: http://{own}\r\n".encode())
        silent.sendall(b"Content-Length: 1000\r\n\r\nhalf")
        assert silent.recv(1000) == b""
    assert ask(servers[False], "GET", "/facts")[0] == 200


class Endless:
    """An extractor that takes its time, and says when it begins."""

    label = "endless"

    def __init__(self):
        self.begun = threading.Event()

    def start(self):
        self.begun.set()

    def __call__(self, _):
        time.sleep(0.2)
        return np.full((1, 133, 2), 0.5), np.ones((1, 133))


@pytest.mark.parametrize("ends", ["the client", "Ctrl-C"])
def test_a_job_that_nobody_waits_for_ends(translators, write_video, tmp_path, ends):
    film = write_video(tmp_path / "film.mp4", [np.zeros((48, 96, 3), np.uint8)] * 300).read_bytes()  # a minute's work
    demo = Demo(translators[False], Endless())
    server = Server(0, demo, "x", 1_000_000)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    own, sent = f"{HOST}:{server.server_port}", body(film, name="film.mp4")
    head = f"POST /translate HTTP/1.0\r\nHost: {own}\r\nOrigin: http://{own}\r\nContent-Length: {len(sent)}\r\n\r\n"
    with socket.create_connection((HOST, server.server_port), timeout=20) as client:
        client.sendall(head.encode() + sent)
        assert demo.extractor.begun.wait(10)
        if ends == "Ctrl-C":
            demo.over.set()
            assert client.recv(1) == b""
    assert demo.busy.acquire(timeout=5)
    demo.busy.release()
    server.shutdown()
    server.server_close()


def test_a_port_in_use_is_one_line(servers, translators):
    port = servers[True].server_port
    with pytest.raises(ValueError, match=rf"--port {port}: Address already in use. Give another one"):
        Server(port, Demo(translators[True]), "x", 1)


@pytest.mark.parametrize(("device", "wanted"), [("", ""), ("cpu", "cpu"), ("cuda", "")])
def test_a_gpu_for_the_model_need_not_be_one_for_the_extractor(monkeypatch, device, wanted):
    seen = []
    monkeypatch.setattr(extraction, "load_extractor", lambda *arguments: seen.append(arguments[2]))
    demo_page.find_extractor(Namespace(extractor="rtmlib", models="", device=device))
    assert seen == [wanted]


# A shell has what it runs in the background ignore SIGINT: then SIGTERM must do.
@pytest.mark.parametrize(
    ("number", "of_sigint"),
    [(signal.SIGINT, signal.SIG_DFL), pytest.param(signal.SIGTERM, signal.SIG_IGN, marks=pytest.mark.slow)],
)
def test_the_program_starts_and_ends(small_mt5_folder, tmp_path, number, of_sigint):
    checkpoint = save_model(new_model(small_mt5_folder), tmp_path / "best.pth", small_mt5_folder)
    command = [sys.executable, "-m", "tools.demo_page", "--checkpoint", str(checkpoint), "--port", "0"]
    root = Path(__file__).resolve().parents[2]
    begin = partial(signal.signal, signal.SIGINT, of_sigint)
    process = subprocess.Popen(command, cwd=root, stdout=-1, stderr=-1, text=True, preexec_fn=begin)
    try:
        address = process.stdout.readline()
        assert address.startswith("http://127.0.0.1:"), process.stderr.read()
        process.send_signal(number)
        said, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, said.split(), errors) == (0, ["ended"], "")


@pytest.mark.parametrize("flags", ["--port 70000", "--num_beams 2"])
def test_wrong_flags_are_one_line(flags, capsys):
    with pytest.raises(SystemExit):
        parse_args(["--checkpoint", "x", *flags.split()])
    assert flags in capsys.readouterr().err


# -- in a browser ------------------------------------------------------------------------------------------------------


STATUS = "document.querySelector('#status').textContent"
SHOWN = "!document.querySelector('#clip').hidden"
INK = """(() => { const c = document.querySelector('#skeleton');
  const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data; let n = 0;
  for (let i = 3; i < d.length; i += 4) n += d[i] > 0; return n; })()"""


@pytest.mark.parametrize("width", [1200, 390])
def test_drop_watch_read(browser, servers, translators, clip, tmp_path, width):
    server = servers[True]
    browser.size(width)
    browser.open(f"http://{HOST}:{server.server_port}/")
    browser.wait("document.querySelector('#model').textContent.includes('best_checkpoint.pth')")
    assert "video" not in browser.run("document.querySelector('#what').textContent")
    assert browser.run("document.querySelector('#no_videos p').textContent") == "no extractor here"
    texts = tmp_path / "texts.json"
    texts.write_text(json.dumps(TEXTS), encoding="utf-8")
    browser.run("document.querySelector('[value=file]').click()")
    browser.choose("#texts", texts)
    browser.choose("#file", clip)
    browser.wait(SHOWN)
    pose = read_pose(clip)
    for kind, given in (("with", {2: TEXTS["2.jpg"], 9: TEXTS["9.jpg"]}), ("without", {})):
        best = translators[True].explain([translators[True].sample(pose, given)])[0].candidates[0].text
        assert browser.run(f"document.querySelector('#{kind} .best').firstChild.textContent").strip() == best.strip()
        assert browser.run(f"document.querySelectorAll('#{kind} li').length") == 2
    assert "Of its 20 frames the model looks at 16." in browser.run(STATUS)

    browser.wait("Number(document.querySelector('#place').value) > 0")  # it plays
    browser.run("document.querySelector('#place').value = 0; document.querySelector('#place').oninput()")
    assert browser.run("document.querySelector('#play').textContent") == "Play"
    assert browser.run("document.querySelector('#text').textContent").endswith("右手食指伸直")
    assert browser.run("document.querySelector('#text .filled').textContent") == "from the nearest described frame: "
    assert browser.run(INK) > 200
    browser.run("document.querySelector('#place').value = 15; document.querySelector('#place').oninput()")
    assert browser.run("document.querySelector('#text').textContent").endswith(TEXTS["9.jpg"])
    assert browser.run("document.querySelector('#strip').style.getPropertyValue('--at')") == "96.875%"  # the last of 16
    assert browser.run("document.querySelector('#strip').style.background").count("color-mix") == 16
    assert browser.run("document.documentElement.scrollWidth") <= width  # nothing sticks out
    browser.run("document.querySelector('#language').click()")
    assert browser.run("document.querySelector('#with h2').textContent") == "使用描述"
    browser.run("document.querySelector('#words button').click()")
    assert browser.run("document.querySelector('#words .lit').title === document.querySelector('#number').textContent")
    browser.run("document.querySelector('#language').click()")

    browser.run(
        "(() => { const data = new DataTransfer(); data.items.add(new File(['x'], 'dropped.pkl'));"
        "document.querySelector('h1').dispatchEvent(new DragEvent('drop', {dataTransfer: data, bubbles: true})); })()"
    )
    browser.wait(f"{STATUS}.startsWith('dropped.pkl: not a readable pickle')")
    wrong = tmp_path / "<b>wrong.pkl"
    wrong.write_bytes(b"nothing")
    browser.choose("#file", wrong)
    browser.wait(f"{STATUS}.startsWith('<b>wrong.pkl: not a readable pickle')")
    assert browser.run("document.querySelector('#status').className") == "fault"
    for number in ("1.5", "-1"):  # the browser says what is wrong with it
        person = "document.querySelector('#person')"
        browser.run(f"{person}.value = '{number}'; {person}.onchange()")
        assert browser.run(STATUS).startswith("<b>wrong.pkl: not a readable pickle")
        assert browser.run("document.activeElement.matches('#person:invalid')")
    browser.run("document.querySelector('#person').value = 0")
    large = tmp_path / "large.npz"
    large.write_bytes(bytes(1_000_001))
    browser.choose("#file", large)
    browser.wait(f"{STATUS}.includes('the limit is 1 MB')")
    assert not [message for message in browser.messages if "400" not in str(message)]


def test_a_word_lights_up_over_its_frames_and_leads_to_them(browser, servers):
    browser.open(f"http://{HOST}:{servers[True].server_port}/")
    browser.run(
        """import("/words.js").then(({ showWords }) => {
        const shares = [[255, 128, 127, 0], [0, 0, 254, 255]];
        const data = { text: "good  day.", words: ["good", "day."], shares };
        window.show = showWords(document.querySelector("#words"), data, frame => { window.went = frame }, String) })"""
    )
    lit = "(show({}), [...document.querySelectorAll('#words .lit')].map(word => word.textContent))"
    assert [browser.run(lit.format(i)) for i in range(4)] == [["good"], ["good"], ["day."], ["day."]]
    assert browser.run("document.querySelector('#words p').textContent") == "good  day."
    browser.run("document.querySelector('#words button:last-child').click()")
    pressed = "[...document.querySelectorAll('#words button')].map(word => word.ariaPressed)"
    assert (browser.run("went"), browser.run(pressed)) == (3, ["false", "true"])


def test_a_model_without_descriptions_shows_none(browser, servers, clip):
    browser.size(1200)
    browser.open(f"http://{HOST}:{servers[False].server_port}/")
    browser.wait("document.querySelector('#model').textContent")
    browser.choose("#file", clip)
    browser.wait(SHOWN)
    hidden = "['descriptions', 'with', 'gates'].every(id => document.querySelector('#' + id).hidden)"
    assert browser.run(hidden)
    assert browser.run("document.querySelector('#without h2').textContent") == "Translation"
