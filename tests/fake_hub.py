"""A model hub on the loopback interface: as much of the hub's HTTP interface as huggingface_hub needs to download."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

# Files that the real hub keeps in large-file storage: it states their sha256; of the others, git's blob hash.
LARGE = (".onnx", ".pt", ".nemo", ".model", ".safetensors")


class FakeHub:
    """Repositories in memory: `publish` adds a commit, `sent` may replace what is sent for a path, `requests` logs."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.commits: dict[str, dict[str, dict[str, bytes]]] = {}
        self.newest: dict[str, str] = {}
        self.sent: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []

    def publish(self, repository: str, files: Mapping[str, bytes], commit: str | None = None) -> str:
        """Add a commit that holds exactly `files`; return its id."""
        digest = hashlib.sha1(
            repr(sorted((name, hashlib.sha256(data).digest()) for name, data in files.items())).encode()
        )
        commit = commit or digest.hexdigest()
        self.commits.setdefault(repository, {})[commit] = dict(files)
        self.newest[repository] = commit
        return commit

    def downloads(self) -> list[str]:
        """The paths whose content was asked for, in order."""
        return [
            path.split("/resolve/")[1].split("/", 1)[1]
            for method, path in self.requests
            if method == "GET" and "/resolve/" in path
        ]


def _blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def answer(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append((self.command, path))
            if path.startswith("/api/models/"):
                repository, _, revision = path.removeprefix("/api/models/").partition("/revision/")
                self.describe(repository, revision or "main")
            else:
                repository, _, rest = path.lstrip("/").partition("/resolve/")
                revision, _, name = rest.partition("/")
                self.file(repository, revision, name)

        def commit(self, repository: str, revision: str) -> str | None:
            if repository not in hub.commits:
                # The hub answers 401 for what is private and for what does not exist alike.
                self.reply(401, b"", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
                return None
            commit = hub.newest[repository] if revision == "main" else revision
            if commit not in hub.commits[repository]:
                self.reply(404, b"", {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev id"})
                return None
            return commit

        def describe(self, repository: str, revision: str) -> None:
            commit = self.commit(repository, revision)
            if commit is None:
                return
            siblings = []
            for name, data in hub.commits[repository][commit].items():
                entry: dict[str, object] = {"rfilename": name, "size": len(data), "blobId": _blob(data)}
                if name.endswith(LARGE):
                    sha256 = hashlib.sha256(data).hexdigest()
                    entry["lfs"] = {"sha256": sha256, "size": len(data), "pointerSize": 134}
                siblings.append(entry)
            answer = {"id": repository, "modelId": repository, "sha": commit, "siblings": siblings, "tags": []}
            self.reply(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

        def file(self, repository: str, revision: str, name: str) -> None:
            commit = self.commit(repository, revision)
            if commit is None:
                return
            data = hub.commits[repository][commit].get(name)
            if data is None:
                headers = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}
                self.reply(404, b"", headers)
                return
            etag = hashlib.sha256(data).hexdigest() if name.endswith(LARGE) else _blob(data)
            headers = {"ETag": f'"{etag}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
            if name.endswith(LARGE):
                headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(data))}
            data = hub.sent.get(name, data)
            wanted = self.headers.get("Range")
            if wanted:
                start = int(wanted.removeprefix("bytes=").split("-")[0])
                headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
                self.reply(206, data[start:], headers)
            else:
                self.reply(200, data, headers)

        def reply(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    return Handler


@contextmanager
def serve() -> Iterator[FakeHub]:
    """Run a fake hub in a thread of this process until the block ends."""
    hub = FakeHub("")
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
