"""A web server on 127.0.0.1 that misbehaves on demand."""

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MODELS = "/models.zip"  # where it has Micron's archive


@dataclass
class Fault:
    """What goes wrong with one request: an error status, a redirect, a body that ends or stalls early, or worse."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None
    stall: float = 0.0  # seconds, before the cut or, without one, before the body
    raw: bytes | None = None  # sent instead of a response
    endless: bool = False  # whether zeros follow until the client hangs up


@dataclass
class File:
    content: bytes
    ranges: bool = True
    length: int | None = None  # declared instead of the true one; 0 for no declaration at all
    range_start: int | None = None  # claimed instead of the true one
    faults: list[Fault] = field(default_factory=list)  # one per request, until there are none left


@dataclass
class Request:
    path: str
    headers: dict[str, str]
    sent: int = 0  # bytes of the body


class Server:
    def __init__(self) -> None:
        self.files: dict[str, File] = {}
        self.requests: list[Request] = []
        self.url = ""

    def add(self, path: str, content: bytes, **kwargs: object) -> str:
        """Serve a file; returns its address."""
        self.files[path] = File(content, **kwargs)  # type: ignore[arg-type]
        return self.url + path

    def sent(self, path: str = MODELS) -> list[int]:
        """Bytes of each answer that was sent for a path."""
        return [request.sent for request in self.requests if request.path == path]


@contextmanager
def serve() -> Iterator[Server]:
    server = Server()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            request = Request(self.path, dict(self.headers))
            server.requests.append(request)
            file = server.files.get(self.path)
            if file is None:
                self.send_error(404)
                return
            fault = file.faults.pop(0) if file.faults else Fault()
            if fault.raw is not None:
                self.close_connection = True
                time.sleep(fault.stall)
                self.wfile.write(fault.raw)
                while fault.endless:
                    request.sent += self.wfile.write(bytes(1 << 16))
                return
            if fault.status:
                self.send_response(fault.status)
                for key, value in fault.headers.items():
                    self.send_header(key, value)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self._send(file, fault, request)

        def _send(self, file: File, fault: Fault, request: Request) -> None:
            start, stop, status, total = 0, len(file.content), 200, len(file.content)
            span = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
            if span and not span[1]:  # a suffix: what stands before GitHub's assets does not know it
                self.send_error(501)
                return
            if span and file.ranges:
                start, stop, status = int(span[1]), min(int(span[2] or total) + 1, total), 206
                if start >= stop:
                    self.send_error(416)
                    return
            body = file.content[start:stop]
            self.send_response(status)
            if status == 206:
                claimed = start if file.range_start is None else file.range_start
                self.send_header("Content-Range", f"bytes {claimed}-{stop - 1}/{total}")
            if file.length != 0:
                self.send_header("Content-Length", str(len(body) if file.length is None else file.length))
            self.end_headers()
            if fault.cut_after is None:
                time.sleep(fault.stall)
            else:
                body = body[: fault.cut_after]
            request.sent = len(body)  # before the client has it and may ask
            self.wfile.write(body)
            self.wfile.flush()
            if fault.cut_after is not None:
                time.sleep(fault.stall)

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *args: object) -> None:
            pass  # clients that hang up are part of the game

    with Quiet(("127.0.0.1", 0), Handler) as http:
        server.url = f"http://127.0.0.1:{http.server_port}"
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            http.shutdown()
            thread.join()
