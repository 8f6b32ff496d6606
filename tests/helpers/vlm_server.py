"""A local server with an OpenAI-compatible API that behaves as real ones do on bad days."""

import json
import random
import socket
import struct
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

GOOD = "Right hand at the chin, index finger extended."


def reply(text, **more):
    usage = {"prompt_tokens": 100, "completion_tokens": 10}
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return {"choices": [choice | more], "usage": usage}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def send(self, status, body, headers=(), length=None):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.done()
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(length or len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.requests.append({"path": self.path, "key": self.headers.get("Authorization"), "body": body})
            self.server.running += 1
            self.at_work = 1
            self.server.most_running = max(self.server.most_running, self.server.running)
            number = len(self.server.requests)
        try:
            self.server.behave(self, number)
        except (BrokenPipeError, ConnectionResetError):
            pass
        finally:
            self.done()

    def done(self):
        """No longer at work on the request: once its answer goes out, the client may ask the next."""
        with self.server.lock:
            self.server.running -= self.at_work
            self.at_work = 0

    # -- behaviours --------------------------------------------------------------------------------------------------

    def answer(self, text=GOOD, **more):
        self.send(200, reply(text, **more))

    def stall(self):
        self.server.over.wait(20)
        self.close_connection = True

    def reset(self):
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def short(self):
        """Announce more than is sent."""
        self.send(200, reply(GOOD), length=10_000)
        self.close_connection = True


BAD_DAY = (
    lambda h: h.answer(),
    lambda h: h.answer(),
    lambda h: h.answer(),
    lambda h: h.send(429, {"error": {"message": "rate limit"}}, [("Retry-After", "0.01")]),
    lambda h: h.send(500, b"<html>oops</html>"),
    lambda h: h.send(503, b""),
    lambda h: h.send(200, b"<html>a proxy's page</html>"),
    lambda h: h.send(200, {"choices": []}),
    lambda h: h.reset(),
    lambda h: h.short(),
    lambda h: h.answer(""),
    lambda h: h.answer("I'm sorry, but I can't help with that."),
    lambda h: h.answer("The weather is nice in Paris."),
    lambda h: h.answer("Right hand at the", finish_reason="length"),
    lambda h: h.send(400, {"error": {"message": "data_inspection_failed"}}),
    lambda h: h.stall(),
)


@contextmanager
def server(behave):
    """Serve; `behave(handler, number of the request)` answers."""
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    httpd.behave, httpd.requests, httpd.lock = behave, [], threading.Lock()
    httpd.running = httpd.most_running = 0
    httpd.over = threading.Event()
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    httpd.url = f"http://127.0.0.1:{httpd.server_port}/v1"
    try:
        yield httpd
    finally:
        httpd.over.set()
        httpd.shutdown()
        httpd.server_close()
        thread.join()


def at_random(seed):
    """Behave as on a bad day, drawn anew for each request."""
    rng = random.Random(seed)
    lock = threading.Lock()

    def behave(handler, _):
        with lock:
            chosen = rng.choice(BAD_DAY)
        chosen(handler)

    return behave


def slowly(handler, _):
    time.sleep(0.05)
    handler.answer()
