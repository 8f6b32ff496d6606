"""Client for vision-language models behind an OpenAI-compatible endpoint, including local ones.

`VlmClient.ask` sends a prompt and images and returns a valid text, or raises. This module handles waiting, retries,
limits and the validation of answers, but not the choice of frames and the storage of texts.

Requests are few and slow, so the standard library is sufficient.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import queue
import random
import re
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

from clips.error_texts import is_error_text
from system.faults import UNPRINTABLE, printable

MAX_ANSWER_BYTES = 4 << 20
RETRIES = 5  # of a request that failed
BACKOFF = 2.0  # seconds before the first retry, doubled each time
LONGEST_WAIT = 600.0  # maximum seconds to wait before a retry; the request fails if the endpoint asks for more
FAILURES_IN_A_ROW = 20  # end the run
_AGAIN = {408, 409, 425, 429}  # as well as 500 and above
_HOPELESS = {401, 402, 403, 404, 405}  # fails for every request: wrong key, account, address or model
_LOST = (OSError, http.client.HTTPException, ValueError)  # what a request without an answer raises; it is sent again

# A valid description of a signer names a part of the body.
_BODY = re.compile(
    r"\b(?:hands?|fingers?|thumbs?|palms?|fists?|arms?|wrists?|elbows?|shoulders?|chin|chest|head|mouth|lips|face|index)\b"
    r"|[手指掌拳臂腕肘肩胸头頭嘴脸臉唇]",
    re.IGNORECASE,
)
_CJK = re.compile("[\u4e00-\u9fff]")
_MARKUP = re.compile(r"```|<(?:html|body|div|script)\b|^\s*[{\[]", re.IGNORECASE)
LENGTHS = (4, 2000)  # characters of a description
SECRET = 8  # characters of a key, at least; shorter ones, such as EMPTY for a local server, are words of descriptions


class FailedRequestError(Exception):
    """A request gave no description in this run; the next run tries again."""


class EndpointError(Exception):
    """No request to this endpoint can currently succeed."""


class LimitReachedError(Exception):
    """The limit on requests is reached, or the run is over."""


def judge(answer: str, language: str) -> str:
    """Return why an answer is not a valid description, or "" if it is.

    >>> judge("Right hand at the chin, index finger extended.", "en")
    ''
    >>> judge("I'm sorry, but I can't help with that.", "en")
    'an error or a refusal'
    >>> judge("The weather is nice in Paris today.", "en")
    'about something else: no part of the body is named'
    >>> judge("Right hand at the chin.", "zh")
    'not in the language asked for (zh)'
    """
    if not answer.strip():
        return "empty"
    if is_error_text(answer):
        return "an error or a refusal"
    if _MARKUP.search(answer):
        return "markup in place of a sentence"
    if not LENGTHS[0] <= len(answer) <= LENGTHS[1]:
        return f"{len(answer)} characters long; wanted {LENGTHS[0]} to {LENGTHS[1]}"
    if not _BODY.search(answer):
        return "about something else: no part of the body is named"
    if (len(_CJK.findall(answer)) > 0.2 * len(answer)) != (language == "zh"):
        return f"not in the language asked for ({language})"
    return ""


class _AnyStatus(urllib.request.HTTPErrorProcessor):
    """Returns errors as other responses, and follows no redirect, which could send the key to another host."""

    def http_response(self, request: Any, response: Any) -> Any:
        return response

    https_response = http_response


class VlmClient:
    """One endpoint and model, whose answers are to be in a language; safe to use from several threads.

    `n_requests`, `tokens_in` and `tokens_out` count what was used so far.

    Args:
        url: URL of the API's root, such as `http://localhost:8000/v1`, or of `.../chat/completions`.
        key: "" if none is needed; used in the request's header only.
        fields: additional or overriding request fields; None removes a field.
        timeout: total seconds of a request.
        max_requests: the limit of a run, failed ones included; 0 for none.
    """

    def __init__(
        self,
        url: str,
        model: str,
        key: str,
        language: str,
        fields: Mapping[str, Any],
        timeout: float = 120.0,
        max_requests: int = 0,
    ) -> None:
        try:
            host, _ = urllib.parse.urlsplit(url).hostname, urllib.parse.urlsplit(url).port  # which raises if it is none
        except ValueError:
            host = None
        if not host or not re.fullmatch(r"https?://[!-~]+", url):
            raise ValueError(f"--endpoint {url}: wanted an address such as http://localhost:8000/v1.")
        self.url = url.rstrip("/") + ("" if url.rstrip("/").endswith("/chat/completions") else "/chat/completions")
        self.model, self.language, self.fields = model, language, fields
        self.timeout, self.max_requests = timeout, max_requests
        self.n_requests = self.tokens_in = self.tokens_out = self._in_a_row = 0
        self._key = key.strip()
        if not re.fullmatch("[!-~]*", self._key):
            raise ValueError("--api_key_env: the key holds a blank, a line break or another character that no key has.")
        # A server may echo the key in any case, and any of its characters as in JSON or in an address.
        self._spelled = [rf"(?:\\?{re.escape(c)}|\\u{ord(c):04x}|%{ord(c):02x})" for c in self._key]
        self._key_pattern = re.compile("".join(self._spelled), re.IGNORECASE)
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._opener = urllib.request.build_opener(_AnyStatus)

    def ask(self, prompt: str, pictures: Sequence[tuple[str, bytes]], max_tokens: int = 300) -> str:
        """Send a prompt with images, (media type, content) each, and return the answer.

        Raises:
            FailedRequestError: no usable answer after all retries.
            EndpointError: the error would be the same for any request.
            LimitReachedError: a limit of the run is reached.
        """
        content: list[dict[str, Any]] = [{"type": "text", "text": prompt}]
        for kind, data in pictures:
            address = f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"
            content.append({"type": "image_url", "image_url": {"url": address}})
        request: dict[str, Any] = {"model": self.model, "messages": [{"role": "user", "content": content}]}
        request |= {"max_tokens": max_tokens, "temperature": 0, **self.fields}
        body = json.dumps({key: value for key, value in request.items() if value is not None}).encode()
        try:
            answer = self._with_retries(body)
            if len(self._key) >= SECRET and self._key_pattern.search(answer):
                raise FailedRequestError(f"the answer holds the API key: {self._clean(answer)}")
            if fault := judge(answer, self.language):
                raise FailedRequestError(f"the answer is {fault}: {self._clean(answer)}")
        except FailedRequestError as error:
            with self._lock:
                self._in_a_row += 1
            if self._in_a_row < FAILURES_IN_A_ROW:
                raise
            self._over.set()
            raise EndpointError(f"{self._in_a_row} requests in a row failed, the last: {error}") from None
        except EndpointError:
            self._over.set()
            raise
        with self._lock:
            self._in_a_row = 0
        return " ".join(answer.split())

    def stop(self) -> None:
        """End all waiting, give up all requests, and refuse further ones."""
        self._over.set()

    def _with_retries(self, body: bytes) -> str:
        for attempt in range(RETRIES + 1):
            wait = random.uniform(0.5, 1.0) * min(BACKOFF * 2**attempt, 60.0)
            try:
                reply, data = self._send(body)
                if reply.status < 300:
                    return self._answer(data)
                reason = self._clean(f"HTTP {reply.status} {reply.reason}: {data.decode('utf-8', 'replace')}")
                if reply.status < 400:
                    to = self._clean(reply.headers.get("Location", "")) or "which it does not say"
                    moved = f"HTTP {reply.status}: redirects are not followed. Give the address that it leads to: {to}"
                    raise EndpointError(moved)
                if reply.status in _HOPELESS:
                    raise EndpointError(reason)
                if reply.status not in _AGAIN and reply.status < 500:
                    raise FailedRequestError(reason)
                asked = reply.headers.get("Retry-After", "")
                if asked.isdecimal():  # else none, or a date
                    if int(asked) > LONGEST_WAIT:
                        raise FailedRequestError(f"{reason} (to be tried again in {asked} s)")
                    wait = max(wait, int(asked))
            except _LOST as error:
                reason = self._clean(f"{type(error).__name__}: {error}")
            if attempt < RETRIES:
                self._over.wait(wait)
        raise FailedRequestError(f"{reason} ({RETRIES + 1} tries)")

    def _send(self, body: bytes) -> tuple[Any, bytes]:
        """Return the response and its content, or raise one of `_LOST`.

        A thread waits for them, and is given up when the time is over: a timeout of a socket begins anew with every
        byte, so that a slow trickle could go on for ever.
        """
        if self._over.is_set():
            raise LimitReachedError("the end of the run")
        with self._lock:
            if self.max_requests and self.n_requests >= self.max_requests:
                raise LimitReachedError(f"--max_requests {self.max_requests}")
            self.n_requests += 1
        results: queue.SimpleQueue = queue.SimpleQueue()
        threading.Thread(target=self._exchange, args=(body, results), daemon=True).start()
        end = time.monotonic() + self.timeout
        while not self._over.is_set():
            if time.monotonic() > end:
                raise TimeoutError(f"no whole answer within {self.timeout:g} s")
            with contextlib.suppress(queue.Empty):
                result = results.get(timeout=0.05)
                if isinstance(result, Exception):
                    raise result
                return result
        raise LimitReachedError("the end of the run")

    def _exchange(self, body: bytes, results: queue.SimpleQueue) -> None:
        """Put the response and its content, or why there is none, into `results`."""
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        request = urllib.request.Request(self.url, body, headers)
        try:
            with self._opener.open(request, timeout=self.timeout) as response:
                data = response.read(MAX_ANSWER_BYTES + 1)
                if len(data) > MAX_ANSWER_BYTES:
                    raise ValueError(f"an answer of more than {MAX_ANSWER_BYTES} bytes")
                if response.length:  # shorter than announced
                    raise http.client.IncompleteRead(data, response.length)
                results.put((response, data))
        except _LOST as error:
            results.put(error)

    def _answer(self, data: bytes) -> str:
        """Return the text of a response; a ValueError means that it has another form, and is to be asked for again."""
        try:
            document = json.loads(data)
            choice = document["choices"][0]
            text = choice["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError, RecursionError):
            seen = self._clean(data.decode("utf-8", "replace"))
            raise ValueError(f"not an answer of the chat completions API: {seen}") from None
        usage = document.get("usage")
        if isinstance(usage, dict):
            counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
            # A sum of larger ones could have more digits than can be printed.
            tokens_in, tokens_out = (n if isinstance(n, int) and 0 <= n < 1 << 40 else 0 for n in counts)
            with self._lock:
                self.tokens_in += tokens_in
                self.tokens_out += tokens_out
        if isinstance(text, list):  # some servers return the text in parts
            text = "".join(str(part.get("text", "")) for part in text if isinstance(part, dict))
        reason = choice.get("finish_reason")
        if reason not in ("stop", None):
            raise FailedRequestError(self._clean(f"the answer was broken off: finish_reason {reason!r}"))
        return UNPRINTABLE.sub(" ", text) if isinstance(text, str) else ""

    def _clean(self, text: str) -> str:
        """Shorten a text to one line without the API key, which servers may echo, or its beginning at a cut."""
        if self._key:
            text = self._key_pattern.sub("***", text).rstrip()
            end = max(0, len(text) - 6 * len(self._key) - 6)
            for n in range(len(self._key), 3, -1):
                begun = "".join(self._spelled[:n]) + r"(?:%[\da-f]?|\\(?:u[\da-f]{0,3})?)?$"
                if cut := re.search(begun, text[end:], re.IGNORECASE):
                    text = text[: end + cut.start()] + "***"
                    break
        return printable(" ".join(text.split()))[:300]
