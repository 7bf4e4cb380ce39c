"""A fake Hugging Face Hub on 127.0.0.1, with faults on demand.

It speaks the part of the Hub's protocol that downloads need: the list of a model's files, and the files,
small ones directly and large ones (LFS) redirected to a second host, which neither sends the Hub's headers
nor needs its token.
"""

from __future__ import annotations

import hashlib
import json
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from threading import Thread
from types import TracebackType
from urllib.parse import unquote, urlsplit

LARGE = (".bin", ".safetensors")
BLOCK = 1 << 16

Content = bytes | Path


@dataclass(frozen=True)
class Request:
    """One request; header names in lower case."""

    method: str
    path: str
    headers: dict[str, str]

    @property
    def range(self) -> str | None:
        return self.headers.get("range")


@dataclass
class _Fault:
    """A fault in the answers to requests whose path contains `where`, `times` times or always (None)."""

    where: str
    times: int | None = None
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None
    content: Content | None = None
    delay: float | None = None


class HubServer:
    """Serves `repos` (name → file name → content) during the `with` block.

    `repos` may be changed at any time: a repository's commit is a hash of its content. Files named
    `*.bin` and `*.safetensors` are large ones (LFS), all others small.
    """

    def __init__(self, repos: dict[str, dict[str, Content]]) -> None:
        self.repos = repos
        self.requests: list[Request] = []
        self.connections: set[socket.socket] = set()
        self._faults: list[_Fault] = []
        self.headers: dict[str, str | None] = {}
        self._http = _Server(self)
        self.port = self._http.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> HubServer:
        Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        """Close all connections and refuse new ones."""
        self._http.shutdown()
        self._http.server_close()
        for connection in list(self.connections):  # those that clients keep alive
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def commit(self, repo: str) -> str:
        """The repository's current commit."""
        listing = sorted((name, digests(content).sha256) for name, content in self.repos[repo].items())
        return hashlib.sha1(repr(listing).encode()).hexdigest()

    @property
    def fetched(self) -> list[str]:
        """The files whose content was requested, as `repo/file`, once for each attempt."""
        paths = (request.path for request in self.requests if request.method == "GET")
        parts = (path.lstrip("/").split("/resolve/") for path in paths if "/resolve/" in path)
        return [f"{repo}/{unquote(rest.partition('/')[2])}" for repo, rest in parts]

    # Faults: `where` is a part of the request's path ("" for all requests), `times` None means always.

    def fail(
        self, status: int, code: str = "", message: str = "", where: str = "", times: int | None = None
    ) -> None:
        """Answer with an HTTP error; `code` and `message` are the Hub's X-Error-Code and X-Error-Message."""
        named = {"X-Error-Code": code, "X-Error-Message": message}
        headers = {name: value for name, value in named.items() if value}
        self._faults.append(_Fault(where, times, status=status, headers=headers))

    def cut(self, where: str, after: int, times: int | None = None) -> None:
        """Close the connection after that many bytes of a file's body."""
        self._faults.append(_Fault(where, times, cut_after=after))

    def corrupt(self, where: str, content: Content, times: int | None = None) -> None:
        """Serve other content under the size and checksum of the true one."""
        self._faults.append(_Fault(where, times, content=content))

    def delay(self, where: str, seconds: float, times: int | None = None) -> None:
        """Answer late."""
        self._faults.append(_Fault(where, times, delay=seconds))

    def omit(self, *names: str) -> None:
        """Leave these headers out of all answers; without a length, the end of the connection ends a body."""
        self.headers |= dict.fromkeys(names)

    def replace(self, name: str, value: str) -> None:
        """Give a header, where it is sent, another value."""
        self.headers[name] = value

    def heal(self) -> None:
        """Remove all faults."""
        self._faults.clear()
        self.headers.clear()

    def fault(self, path: str, kind: str) -> _Fault | None:
        """The next fault of this kind for a path, whose `times` is counted down."""
        for fault in self._faults:
            if getattr(fault, kind) is not None and fault.where in path and fault.times != 0:
                if fault.times is not None:
                    fault.times -= 1
                return fault
        return None


@dataclass(frozen=True)
class Digests:
    size: int
    sha256: str
    git: str


@cache
def digests(content: Content) -> Digests:
    """A file's size and the two checksums that the Hub uses as ETags."""
    size = content.stat().st_size if isinstance(content, Path) else len(content)
    sha256, git = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size)
    for block in _blocks(content, 0):
        sha256.update(block)
        git.update(block)
    return Digests(size, sha256.hexdigest(), git.hexdigest())


def _blocks(content: Content, start: int) -> Iterator[bytes]:
    if isinstance(content, bytes):
        for at in range(start, len(content), BLOCK):
            yield content[at : at + BLOCK]
        return
    with content.open("rb") as file:
        file.seek(start)
        while block := file.read(BLOCK):
            yield block


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, hub: HubServer) -> None:
        self.hub = hub
        super().__init__(("127.0.0.1", 0), _Handler)

    def server_bind(self) -> None:
        TCPServer.server_bind(self)  # HTTPServer's own looks up the host's name, which can take seconds

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # clients may disconnect at any time
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # it would add 40 ms to each answer

    def setup(self) -> None:
        self.hub = self.server.hub
        super().setup()
        self.hub.connections.add(self.connection)

    def finish(self) -> None:
        self.hub.connections.discard(self.connection)
        super().finish()

    def send_header(self, keyword: str, value: str) -> None:
        changed = self.hub.headers.get(keyword, value)
        if changed is not None:
            super().send_header(keyword, changed)
        elif keyword == "Content-Length":
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        path = urlsplit(self.path).path
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.hub.requests.append(Request(self.command, path, headers))
        if late := self.hub.fault(path, "delay"):
            time.sleep(late.delay or 0)
        if fault := self.hub.fault(path, "status"):
            self.reply(fault.status or 500, fault.headers)
        elif path.startswith("/api/models/"):
            self.answer_list(path.removeprefix("/api/models/"))
        elif path.startswith("/large/"):
            self.answer_large(path)
        elif "/resolve/" in path:
            self.answer_file(path)
        else:
            self.reply(404)

    def answer_list(self, path: str) -> None:
        repo, _, revision = path.partition("/revision/")
        if commit := self.known_commit(repo, unquote(revision or "main")):
            siblings = [{"rfilename": name} for name in sorted(self.hub.repos[repo])]
            body = {"_id": commit[:24], "id": repo, "modelId": repo, "sha": commit, "siblings": siblings}
            self.reply(200, {"Content-Type": "application/json"}, json.dumps(body).encode())

    def answer_file(self, path: str) -> None:
        repo, rest = path.lstrip("/").split("/resolve/", 1)
        revision, _, quoted = rest.partition("/")
        filename = unquote(quoted)
        commit = self.known_commit(repo, unquote(revision))
        if commit is None:
            return
        headers = {"X-Repo-Commit": commit}
        content = self.hub.repos[repo].get(filename)
        if content is None:
            self.reply(
                404, {**headers, "X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
            )
        elif filename.endswith(LARGE):
            known = digests(content)
            self.reply(
                302,
                {
                    **headers,
                    # Another origin than self.url, as the real Hub's storage has.
                    "Location": f"http://localhost:{self.hub.port}/large/{known.sha256}/{repo}/{quoted}",
                    "X-Linked-Etag": f'"{known.sha256}"',
                    "X-Linked-Size": str(known.size),
                    # Announces Xet as the real Hub does, but has none: a client must use HTTP.
                    "X-Xet-Hash": known.sha256,
                    "Link": f'<{self.hub.url}/api/models/{repo}/xet-read-token/{commit}>; rel="xet-auth"',
                },
            )
        else:
            self.send_content(path, content, {**headers, "ETag": f'"{digests(content).git}"'})

    def answer_large(self, path: str) -> None:
        sha256 = path.split("/")[2]
        files = (content for repo in self.hub.repos.values() for content in repo.values())
        content = next((content for content in files if digests(content).sha256 == sha256), None)
        if content is None:
            self.reply(403)
        else:
            self.send_content(path, content, {"ETag": f'"{sha256}"'})

    def known_commit(self, repo: str, revision: str) -> str | None:
        """The commit of a revision; if there is none, an error has been sent and None is returned."""
        if repo not in self.hub.repos:
            self.reply(404, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
            return None
        commit = self.hub.commit(repo)
        if revision not in ("main", commit):
            self.reply(404, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev id"})
            return None
        return commit

    def send_content(self, path: str, content: Content, headers: dict[str, str]) -> None:
        if self.command == "GET" and (fault := self.hub.fault(path, "content")):
            assert fault.content is not None
            content = fault.content
        size = digests(content).size
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        if start >= size > 0:
            self.reply(416, {"Content-Range": f"bytes */{size}"})
            return
        self.send_response(206 if "Range" in self.headers else 200)
        if "Range" in self.headers:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(size - start))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.send_blocks(content, start, self.hub.fault(path, "cut_after"))

    def send_blocks(self, content: Content, start: int, fault: _Fault | None) -> None:
        left = fault.cut_after if fault else None
        for block in _blocks(content, start):
            if left is not None and len(block) >= left:
                self.wfile.write(block[:left])
                self.wfile.flush()
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
                return
            self.wfile.write(block)
            left = None if left is None else left - len(block)

    def reply(self, status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)
