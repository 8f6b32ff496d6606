"""The client of a vision-language model, against a local server that misbehaves."""

import base64
import json
import re
import socket
import threading
import time
import urllib.parse
from contextlib import contextmanager, suppress

import pytest

from describing import by_model, vlm_client
from describing.files import Clip
from describing.vlm_client import EndpointError, FailedRequestError, LimitReachedError, VlmClient, judge
from tests.helpers.vlm_server import GOOD, reply, server


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    monkeypatch.setattr(vlm_client, "BACKOFF", 0.01)
    monkeypatch.setattr(vlm_client, "RETRIES", 2)


def make(httpd, key="", language="en", fields=(), timeout=5.0, **limits):
    return VlmClient(httpd.url, "some-model", key, language, dict(fields), timeout, **limits)


def in_turn(*behaviours):
    """The n-th request meets the n-th behaviour, and all later ones the last."""
    return lambda handler, number: behaviours[min(number, len(behaviours)) - 1](handler)


def test_half_a_character_is_left_out_of_an_answer():
    with server(lambda h, _: h.send(200, json.dumps(reply(f"\ud83d {GOOD}\x1b")).encode())) as httpd:
        assert make(httpd).ask("?", []) == GOOD


def test_what_is_sent_and_what_comes_back():
    with server(lambda h, _: h.answer(f"  {GOOD}\n")) as httpd:
        client = make(httpd, key="sk-secret\n", fields={"temperature": None, "seed": 7})
        assert client.ask("Describe.", [("image/png", b"\x89PNG"), ("image/jpeg", b"\xff")], max_tokens=50) == GOOD
    (request,) = httpd.requests
    assert request["path"] == "/v1/chat/completions"
    assert request["key"] == "Bearer sk-secret"
    assert request["body"]["model"] == "some-model"
    assert (request["body"]["max_tokens"], request["body"]["seed"]) == (50, 7)
    assert "temperature" not in request["body"]
    text, *pictures = request["body"]["messages"][0]["content"]
    assert text == {"type": "text", "text": "Describe."}
    assert [picture["image_url"]["url"].partition(",") for picture in pictures] == [
        ("data:image/png;base64", ",", base64.b64encode(b"\x89PNG").decode()),
        ("data:image/jpeg;base64", ",", base64.b64encode(b"\xff").decode()),
    ]
    assert (client.n_requests, client.tokens_in, client.tokens_out) == (1, 100, 10)


def test_token_counts_that_none_can_be_are_left_out():
    usages = [(10**4299, -5), (2**40, 2**40 - 1), ("7", 1.5), (3, 4)]
    answers = [reply(GOOD) | {"usage": {"prompt_tokens": n, "completion_tokens": m}} for n, m in usages]
    with server(in_turn(*(lambda h, answer=answer: h.send(200, answer) for answer in answers))) as httpd:
        client = make(httpd)
        for _ in usages:
            client.ask("?", [])
    assert (client.tokens_in, client.tokens_out) == (3, 2**40 + 3)


def test_answers_in_parts_and_the_whole_address():
    with server(lambda h, _: h.answer([{"type": "text", "text": GOOD}])) as httpd:
        httpd.url += "/chat/completions/"
        assert make(httpd).ask("?", []) == GOOD
    assert (httpd.requests[0]["path"], httpd.requests[0]["key"]) == ("/v1/chat/completions", None)


@pytest.mark.parametrize(
    "behaviour",
    [
        lambda h: h.send(429, b""),
        lambda h: h.send(500, b"<html>"),
        lambda h: h.send(503, b""),
        lambda h: h.send(200, b"\xff\xfe garbage"),
        lambda h: h.send(200, {"choices": []}),
        lambda h: h.send(200, []),
        lambda h: h.send(200, b"[" * 100_000),
        lambda h: h.reset(),
        lambda h: h.short(),
    ],
)
def test_what_passes_is_tried_again(behaviour):
    with server(in_turn(behaviour, lambda h: h.answer())) as httpd:
        assert make(httpd).ask("?", []) == GOOD
    assert len(httpd.requests) == 2


@contextmanager
def dripping(first, drop, scheme="http"):
    """A client whose server sends `first`, then a drop now and then, for ever."""
    over = threading.Event()

    def serve():
        connection, _ = listener.accept()
        with connection, suppress(OSError):
            connection.sendall(first)
            while not over.wait(0.05):
                connection.sendall(drop)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        url = f"{scheme}://127.0.0.1:{listener.getsockname()[1]}"
        yield lambda timeout: VlmClient(url, "m", "", "en", {}, timeout)
        over.set()
        thread.join(5)


OK = b"HTTP/1.1 200 OK\r\n"
DRIPS = {
    "status": (b"HTTP/1.1 200 O", b"K"),
    "header": (OK + b"A: ", b"a"),
    "body": (OK + b"Content-Length: 100000\r\n\r\n", b" "),
    "chunk size": (OK + b"Transfer-Encoding: chunked\r\n\r\n", b"0"),
    "error": (b"HTTP/1.1 400 No\r\nContent-Length: 100000\r\n\r\n", b"x"),
    "continue": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "handshake": (b"", b"", "https"),
}


@pytest.mark.parametrize("where", DRIPS)
def test_a_trickle_has_an_end(where, monkeypatch):
    monkeypatch.setattr(vlm_client, "RETRIES", 0)
    start = time.monotonic()
    with (
        dripping(*DRIPS[where]) as make_client,
        pytest.raises(FailedRequestError, match=r"no whole answer within 0\.3 s"),
    ):
        make_client(timeout=0.3).ask("?", [])
    assert time.monotonic() - start < 5


def test_ctrl_c_ends_what_is_asked(poses, tmp_path, monkeypatch):
    clips = [Clip(path.stem, path, None, tmp_path / f"{path.stem}.json") for path in poses.iterdir()]
    question = by_model.Question("?", 300, "skeleton", 16, 4, 48, 1.0)
    with dripping(*DRIPS["status"]) as make_client:
        client = make_client(timeout=60)

        def interrupted(*_, **__):
            while not client.n_requests:
                time.sleep(0.01)
            time.sleep(0.2)
            raise KeyboardInterrupt

        monkeypatch.setattr(by_model, "progress", interrupted)
        start = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            by_model.by_model(clips, question, client, 1, tmp_path / "failures.jsonl", True)
        assert time.monotonic() - start < 30


def test_tries_come_to_an_end():
    with server(lambda h, _: h.send(500, b"overloaded")) as httpd, pytest.raises(FailedRequestError) as error:
        make(httpd).ask("?", [])
    assert str(error.value) == "HTTP 500 Internal Server Error: overloaded (3 tries)"
    assert len(httpd.requests) == 3


def test_retry_after_is_waited_for():
    later = [("Retry-After", "1")]
    with server(in_turn(lambda h: h.send(429, b"", later), lambda h: h.answer())) as httpd:
        start = time.monotonic()
        make(httpd).ask("?", [])
        assert time.monotonic() - start >= 1
    with server(lambda h, _: h.send(429, b"", [("Retry-After", "3600")])) as httpd, pytest.raises(FailedRequestError):
        make(httpd).ask("?", [])
    assert len(httpd.requests) == 1


def test_waits_grow_and_vary(monkeypatch):
    monkeypatch.setattr(vlm_client, "BACKOFF", 2.0)
    monkeypatch.setattr(vlm_client, "RETRIES", 7)
    with server(lambda h, _: h.send(500, b"")) as httpd:
        client = make(httpd)
        waits = []
        monkeypatch.setattr(client._over, "wait", waits.append)
        with pytest.raises(FailedRequestError):
            client.ask("?", [])
    for number, wait in enumerate(waits):
        assert min(2.0 * 2**number, 60) / 2 <= wait <= min(2.0 * 2**number, 60)
    assert len(waits) == 7
    assert len({wait / 2**number for number, wait in enumerate(waits)}) == 7


# -- answers that are no descriptions --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "more", "reason"),
    [
        ("", {}, "empty"),
        (None, {}, "empty"),
        ("   ", {}, "empty"),
        ("I'm sorry, but I can't help with that.", {}, "refusal"),
        ("Error code: 429 - rate limit of the hand model", {}, "refusal"),
        ("The weather is nice in Paris.", {}, "something else"),
        ("```json\n{}\n``` hand", {}, "markup"),
        ('{"hand": "up"}', {}, "markup"),
        ("右手在下巴处，食指伸直。", {}, "language"),
        ("hand " * 1000, {}, "characters long"),
        ("Right hand at the", {"finish_reason": "length"}, "broken off"),
        ("Right hand at the chin.", {"finish_reason": "content_filter"}, "broken off"),
    ],
)
def test_it_is_not_stored_and_not_asked_again_in_this_run(answer, more, reason):
    with server(lambda h, _: h.answer(answer, **more)) as httpd:
        client = make(httpd)
        with pytest.raises(FailedRequestError, match=reason):
            client.ask("?", [])
    assert len(httpd.requests) == 1


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("右手在胸前，食指伸直。", "zh"),
        ("右手比出OK手势，掌心朝向镜头。", "zh"),
        ("The right palm faces the camera; sorry is signed with a fist.", "en"),
        ("Both arms hang down.", "en"),
    ],
)
def test_descriptions_are_let_through(text, language):
    assert judge(text, language) == ""


# -- what ends a run -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [401, 403, 404, 301])
def test_what_no_request_can_mend(status):
    with server(lambda h, _: h.send(status, b"", [("Location", "http://127.0.0.1:1/")])) as httpd:
        client = make(httpd)
        with pytest.raises(EndpointError, match=f"HTTP {status}"):
            client.ask("?", [])
        with pytest.raises(LimitReachedError):
            client.ask("?", [])
    assert len(httpd.requests) == 1


@pytest.mark.parametrize(
    ("location", "told"),
    [
        ("https://elsewhere/v1", "https://elsewhere/v1"),
        ("https://elsewhere/v1?key=sk-01%2F23456789", "https://elsewhere/v1?key=***"),
        ("/" + "v" * 400, "/" + "v" * 299),
        ("", "which it does not say"),
    ],
)
def test_a_redirect_is_told_with_the_address_it_leads_to(location, told):
    with server(lambda h, _: h.send(302, b"", [("Location", location)])) as httpd:
        with_key = make(httpd, key="sk-01/23456789")
        with pytest.raises(EndpointError) as error:
            with_key.ask("?", [])
    assert str(error.value) == f"HTTP 302: redirects are not followed. Give the address that it leads to: {told}"


def test_many_failures_in_a_row(monkeypatch):
    monkeypatch.setattr(vlm_client, "FAILURES_IN_A_ROW", 3)
    with server(lambda h, _: h.send(400, b"no such parameter")) as httpd:
        client = make(httpd)
        for _ in range(2):
            with pytest.raises(FailedRequestError):
                client.ask("?", [])
        with pytest.raises(EndpointError, match=r"3 requests in a row failed, the last: HTTP 400 .*no such parameter"):
            client.ask("?", [])


def test_limits():
    with server(lambda h, _: h.answer()) as httpd:
        client = make(httpd, max_requests=2)
        client.ask("?", [])
        client.ask("?", [])
        with pytest.raises(LimitReachedError, match="--max_requests 2"):
            client.ask("?", [])
        assert len(httpd.requests) == 2


def test_retries_count_as_requests():
    with server(lambda h, _: h.send(500, b"")) as httpd:
        with pytest.raises(LimitReachedError):
            make(httpd, max_requests=2).ask("?", [])
        assert len(httpd.requests) == 2


def test_the_end_of_a_run_ends_its_waits(monkeypatch):
    monkeypatch.setattr(vlm_client, "BACKOFF", 30.0)
    with server(lambda h, _: h.send(500, b"")) as httpd:
        client = make(httpd)
        threading.Timer(0.2, client.stop).start()
        start = time.monotonic()
        with pytest.raises(LimitReachedError):
            client.ask("?", [])
        assert time.monotonic() - start < 5


# -- the key ---------------------------------------------------------------------------------------------------------


def test_the_key_is_never_repeated(caplog):
    caplog.set_level("DEBUG")
    key = "sk-01/23456789"
    answers = [
        lambda h: h.send(401, f"Incorrect API key provided: {key}".encode()),
        lambda h: h.send(401, json.dumps(key).replace("/", "\\/").encode()),
        lambda h: h.send(400, f"Your key: {key[:9]}".encode()),
        lambda h: h.send(200, f"Your key: {key[:9]}".encode()),
        lambda h: h.answer("x", finish_reason=key),
    ]
    for answer in answers:
        with server(lambda h, _, answer=answer: answer(h)) as httpd, pytest.raises(Exception, match=r"\*\*\*") as error:
            make(httpd, key=key).ask("?", [])
        assert "sk-0" not in str(error.value) + caplog.text


def test_the_key_is_masked_however_it_is_spelled():
    key = "sk-Ab/cd+12345678"
    client = VlmClient("http://localhost", "m", key, "en", {})
    escaped = "".join(f"\\u{ord(c):04X}" for c in key)
    spellings = [key, key.upper(), key.lower(), urllib.parse.quote(key, safe=""), "sk-Ab%2fcd%2b12345678", escaped]
    spellings += ["sk-Ab\\/cd\\u002B12345678"]
    for spelling in spellings:
        assert client._clean(f"no key {spelling} here") == "no key *** here"
        assert client._clean(f"no key {spelling[:-1]}") == "no key ***"
    assert client._clean("a sky, a task") == "a sky, a task"


def test_an_answer_with_the_key_is_not_a_description():
    key = "sk-Ab/cd-12345678"
    for told in (key, key.upper(), urllib.parse.quote(key, safe="")):
        text = f"Right hand at the chin, key {told} is here."
        answers = server(lambda h, _, text=text: h.answer(text))
        with answers as httpd, pytest.raises(FailedRequestError) as error:
            make(httpd, key=key).ask("?", [])
        assert str(error.value) == "the answer holds the API key: Right hand at the chin, key *** is here."
    with server(lambda h, _: h.answer("Right hand empty.")) as httpd:
        assert make(httpd, key="EMPTY").ask("?", []) == "Right hand empty."


@pytest.mark.parametrize("key", ["sk-01234\nsk-56789", "sk-01 23", "sk-\u00e9"])
def test_a_key_that_is_none_is_refused_and_not_told(key):
    with pytest.raises(ValueError, match="--api_key_env: the key holds") as error:
        VlmClient("http://localhost", "m", key, "en", {})
    assert "sk-" not in str(error.value)


@pytest.mark.parametrize(
    "url", ["localhost", "http://", "http://host:x/v1", "http://a b/v1", "http://[::1/v1", "http://:80"]
)
def test_an_address_that_is_none(url):
    with pytest.raises(ValueError, match=f"--endpoint {re.escape(url)}: wanted an address"):
        VlmClient(url, "m", "", "en", {})


def test_nobody_listens():
    client = VlmClient("http://127.0.0.1:9/v1", "m", "", "en", {})
    with pytest.raises(FailedRequestError, match=r"\(3 tries\)"):
        client.ask("?", [])
