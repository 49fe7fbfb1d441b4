"""A stand-in for the Hugging Face hub on a port of this computer: the parts of its HTTP interface that models need.

It keeps repositories in memory and a record of every request. Its answers follow the hub's: where a client asks, a
repository that may not be seen is a 401, a gated one a 403, and each comes with the hub's `X-Error-Code`.
"""

import base64
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha1, sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import huggingface_hub
import pytest

TOKEN = "hf_stand_in"  # who sends it may see private and gated repositories, and write


@dataclass
class Repository:
    """Commits by their hash, the newest last; each maps paths to contents."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        listing = "".join(f"{path}\n{sha256(content).hexdigest()}\n" for path, content in sorted(files.items()))
        commit = sha1(f"{len(self.commits)}\n{listing}".encode()).hexdigest()
        self.commits[commit] = dict(files)
        self.branches[branch] = commit
        return commit


class Hub:
    """The stand-in, its repositories by name, and what it was asked."""

    def __init__(self) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.hub = self  # type: ignore[attr-defined]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        self.repositories: dict[str, Repository] = {}
        self.large_files: dict[str, bytes] = {}
        self.requests: list[str] = []

    def add(self, name: str, folder: Path, *, private: bool = False, gated: bool = False) -> str:
        """A repository with one commit, a folder's files; returns the commit."""
        self.repositories[name] = Repository(private, gated)
        return self.repositories[name].commit(files_of(folder))

    def close(self) -> None:
        """Answer no more."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def downloads(self) -> list[str]:
        """Paths of the files that were sent, in order."""
        return [
            request.split("/resolve/")[1].split("/", 1)[1]
            for request in self.requests
            if "GET" in request[:4] and "/resolve/" in request
        ]


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextmanager
def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub without repositories that this process' client asks, until the block ends.

    The client's cache is `folder / "cache"`, it has no token, and works in the empty `folder / "work"`.
    """
    hub, constants = Hub(), huggingface_hub.constants
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, hub.address)
    for module in (constants, huggingface_hub.file_download):  # older versions hold it twice
        monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", hub.address)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "cache"))
    monkeypatch.setenv("HF_ENDPOINT", hub.address)  # for the processes that a test starts
    monkeypatch.setenv("HF_HUB_CACHE", str(folder / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "no-token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # its storage servers are not part of the stand-in
    monkeypatch.delenv("HF_TOKEN", raising=False)
    (folder / "work").mkdir()
    monkeypatch.chdir(folder / "work")
    try:
        yield hub
    finally:
        hub.close()


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # the tests read `Hub.requests` instead
        pass

    def do_GET(self) -> None:
        hub: Hub = self.server.hub  # type: ignore[attr-defined]
        path = unquote(urlsplit(self.path).path)
        hub.requests.append(f"{self.command} {path}")
        body = b"".join(self._body())
        for method, pattern, route in _ROUTES:
            found = re.fullmatch(pattern, path)
            if found and (self.command == method or (self.command == "HEAD" and method == "GET")):
                return route(self, hub, body, **found.groupdict())
        return self._refuse(404, "EntryNotFound")

    def _body(self) -> Iterator[bytes]:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            yield self.rfile.read(int(self.headers.get("Content-Length") or 0))
            return
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def _send(self, content: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _json(self, content: Any, status: int = 200) -> None:
        self._send(json.dumps(content).encode(), status, Content_Type="application/json")

    def _refuse(self, status: int, code: str) -> None:
        self._send(b'{"error": "refused"}', status, X_Error_Code=code, X_Error_Message=code)

    def _known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _find(self, hub: Hub, name: str, revision: str | None) -> tuple[Repository, str] | None:
        """The repository and a commit of it; None where the refusal has been sent."""
        repository = hub.repositories.get(name)
        if repository is None or (repository.private and not self._known()):
            self._refuse(404 if self._known() else 401, "RepoNotFound")
            return None
        revision = revision or "main"
        commit = repository.branches.get(revision, revision)
        if commit not in repository.commits:
            self._refuse(404, "RevisionNotFound")
            return None
        return repository, commit

    def model_info(self, hub: Hub, body: bytes, name: str, revision: str | None = None) -> None:
        if (found := self._find(hub, name, revision)) is None:
            return
        repository, commit = found
        self._json(
            {
                "_id": "0",
                "id": name,
                "modelId": name,
                "sha": commit,
                "private": repository.private,
                "gated": "manual" if repository.gated else False,
                "disabled": False,
                "downloads": 0,
                "likes": 0,
                "tags": [],
                "siblings": [{"rfilename": path} for path in repository.commits[commit]],
            }
        )

    def tree(self, hub: Hub, body: bytes, name: str, revision: str) -> None:
        if (found := self._find(hub, name, revision)) is None:
            return
        repository, commit = found
        files = repository.commits[commit].items()
        self._json([{"type": "file", "path": path, "size": len(c), "oid": sha1(c).hexdigest()} for path, c in files])

    def resolve(self, hub: Hub, body: bytes, name: str, revision: str, path: str) -> None:
        if (found := self._find(hub, name, revision)) is None:
            return
        repository, commit = found
        if repository.gated and not self._known():
            return self._refuse(403, "GatedRepo")
        content = repository.commits[commit].get(path)
        if content is None:
            return self._refuse(404, "EntryNotFound")
        etag = f'"{sha1(content).hexdigest()}"'
        return self._send(content, X_Repo_Commit=commit, ETag=etag, Content_Type="application/octet-stream")

    def create(self, hub: Hub, body: bytes) -> None:
        if not self._known():
            return self._refuse(401, "Unauthorized")
        wanted = json.loads(body)
        name = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
        if name in hub.repositories:
            return self._json({"error": "exists", "url": f"{hub.address}/{name}"}, 409)
        private = wanted.get("private") or wanted.get("visibility") == "private"
        hub.repositories[name] = Repository(private=bool(private))
        hub.repositories[name].commit({".gitattributes": b""})
        return self._json({"url": f"{hub.address}/{name}", "name": name})

    def validate_card(self, hub: Hub, body: bytes) -> None:
        self._json({"errors": [], "warnings": []})

    def preupload(self, hub: Hub, body: bytes, name: str, revision: str) -> None:
        if not self._known():
            return self._refuse(401, "Unauthorized")
        paths = [file["path"] for file in json.loads(body)["files"]]
        modes = {path: "lfs" if path.endswith(".safetensors") else "regular" for path in paths}
        return self._json({"files": [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in modes.items()]})

    def large_file_batch(self, hub: Hub, body: bytes, name: str) -> None:
        objects = json.loads(body)["objects"]
        for item in objects:
            item["actions"] = {"upload": {"href": f"{hub.address}/lfs/{item['oid']}"}}
        self._json({"transfer": "basic", "objects": objects})

    def large_file(self, hub: Hub, body: bytes, oid: str) -> None:
        assert sha256(body).hexdigest() == oid
        hub.large_files[oid] = body
        self._send(b"")

    def commit(self, hub: Hub, body: bytes, name: str, revision: str) -> None:
        if not self._known():
            return self._refuse(401, "Unauthorized")
        repository = hub.repositories[name]
        files = dict(repository.commits[repository.branches[revision]])
        for line in body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                files[value["path"]] = hub.large_files[value["oid"]]
        commit = repository.commit(files, revision)
        return self._json({"commitUrl": f"{hub.address}/{name}/commit/{commit}", "commitOid": commit, "success": True})


for _method in ("HEAD", "POST", "PUT"):
    setattr(_Handler, f"do_{_method}", _Handler.do_GET)

_NAME = r"(?P<name>[^/]+/[^/]+)"
_ROUTES = (
    ("GET", rf"/api/models/{_NAME}", _Handler.model_info),
    ("GET", rf"/api/models/{_NAME}/revision/(?P<revision>.+)", _Handler.model_info),
    ("GET", rf"/api/models/{_NAME}/tree/(?P<revision>[^/]+)", _Handler.tree),
    ("GET", rf"/{_NAME}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _Handler.resolve),
    ("POST", r"/api/repos/create", _Handler.create),
    ("POST", r"/api/validate-yaml", _Handler.validate_card),
    ("POST", rf"/api/models/{_NAME}/preupload/(?P<revision>[^/]+)", _Handler.preupload),
    ("POST", rf"/{_NAME}\.git/info/lfs/objects/batch", _Handler.large_file_batch),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", _Handler.large_file),
    ("POST", rf"/api/models/{_NAME}/commit/(?P<revision>[^/]+)", _Handler.commit),
)
