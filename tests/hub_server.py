"""A hub on this machine: a real HTTP server that speaks as much of the hub's API as its Python client uses."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

Files = dict[str, bytes]
LARGE = (".safetensors", ".bin")


def read_folder(folder: Path) -> Files:
    """Return every file of a folder by its name."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@dataclass
class Repository:
    """What the hub keeps of one repository, and how it behaves.

    Attributes:
        commits: the files of each commit.
        branches: the commit that each branch stands at.
        private: as its creator asked.
        gated: names of files that are given to nobody.
        read_only: commits are refused.
        cut: names of files whose next transfer breaks off in the middle.
        listed: called after the repository's files have been listed; may move a branch.
    """

    commits: dict[str, Files] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    private: bool = False
    gated: set[str] = field(default_factory=set)
    read_only: bool = False
    cut: set[str] = field(default_factory=set)
    listed: Callable[[], object] = lambda: None

    def commit(self, files: Files, branch: str = "main") -> str:
        """Put a branch at a new commit of exactly these files; returns its hash."""
        told = repr((len(self.commits), sorted((name, hashlib.sha1(data).digest()) for name, data in files.items())))
        commit = hashlib.sha1(told.encode()).hexdigest()
        self.commits[commit] = dict(files)
        self.branches[branch] = commit
        return commit

    def find(self, revision: str) -> str | None:
        """Return the commit that a branch or a hash means now."""
        commit = self.branches.get(revision, revision)
        return commit if commit in self.commits else None


class HubServer(ThreadingHTTPServer):
    """Serves repositories on a free port of the loopback device and notes every request.

    Attributes:
        repositories: by id, ``org/name``.
        requests: ``METHOD path`` of each request, in order; ``METHOD path RANGE`` where a part was asked for.
        uploaded: large files that wait for the commit that names them, by their SHA-256.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.requests: list[str] = []
        self.uploaded: dict[str, bytes] = {}
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True)

    @property
    def url(self) -> str:
        """The value of ``HF_ENDPOINT``."""
        return f"http://127.0.0.1:{self.server_port}"

    def add(self, repo: str, files: Files, branch: str = "main", **behaviour: Any) -> str:
        """Create a repository with one commit; returns the commit."""
        self.repositories[repo] = Repository(**behaviour)
        return self.repositories[repo].commit(files, branch)

    def resolved(self, repo: str) -> list[tuple[str, str]]:
        """Return revision and name of every file that was asked for, metadata or content."""
        found = (re.match(rf"(?:GET|HEAD) /{repo}/resolve/([^/]+)/(\S+)", request) for request in self.requests)
        return [(unquote(match[1]), unquote(match[2])) for match in found if match]

    def __enter__(self) -> "HubServer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()


_REPO = r"(?P<repo>[^/]+/[^/]+)"
_ROUTES = [
    ("GET", r"/api/models/(?P<repo>[^/]+(?:/[^/]+)?)(?:/revision/(?P<revision>[^/]+))?", "info"),
    ("GET", rf"/api/models/{_REPO}/tree/(?P<revision>[^/]+)", "tree"),
    ("HEAD|GET", rf"/{_REPO}/resolve/(?P<revision>[^/]+)/(?P<name>.+)", "file"),
    ("POST", r"/api/repos/create", "create"),
    ("POST", r"/api/validate-yaml", "validate"),
    ("POST", rf"/api/models/{_REPO}/preupload/(?P<revision>[^/]+)", "preupload"),
    ("POST", rf"/{_REPO}\.git/info/lfs/objects/batch", "batch"),
    ("PUT", r"/large/(?P<digest>[0-9a-f]{64})", "put"),
    ("POST", rf"/api/models/{_REPO}/commit/(?P<revision>[^/]+)", "commit"),
]


class _Refused(Exception):
    def __init__(self, status: int, code: str | None, message: str) -> None:
        super().__init__(message)
        self.status, self.headers = status, {"X-Error-Code": code} if code else {}


class _Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # one segment for head and body: the two apart cost a delayed acknowledgement each
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        """Keep quiet; ``requests`` has it all."""

    def _dispatch(self) -> None:
        path = urlsplit(self.path).path
        asked = self.headers.get("Range")
        self.server.requests.append(f"{self.command} {path}" + (f" {asked}" if asked else ""))
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            for methods, pattern, name in _ROUTES:
                if re.fullmatch(methods, self.command) and (match := re.fullmatch(pattern, path)):
                    values = {key: value and unquote(value) for key, value in match.groupdict().items()}
                    return getattr(self, f"_{name}")(**values)
            raise _Refused(404, None, f"no such route: {path}")
        except _Refused as refusal:
            self._send(json.dumps({"error": str(refusal)}).encode(), refusal.status, refusal.headers)

    do_GET = do_HEAD = do_POST = do_PUT = _dispatch  # noqa: N815

    def _send(self, data: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(data))} | (headers or {})).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _answer(self, told: Any, status: int = 200) -> None:
        self._send(json.dumps(told).encode(), status, {"Content-Type": "application/json"})

    def _find(self, repo: str, revision: str | None) -> tuple[Repository, str]:
        repository = self.server.repositories.get(repo)
        if repository is None:  # the hub does not tell strangers whether a repository exists
            raise _Refused(401, "RepoNotFound", "Repository not found")
        commit = repository.find(revision or "main")
        if commit is None:
            raise _Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return repository, commit

    def _info(self, repo: str, revision: str | None) -> None:
        repository, commit = self._find(repo, revision)
        siblings = [{"rfilename": name} for name in repository.commits[commit]]
        self._answer({"id": repo, "sha": commit, "private": repository.private, "siblings": siblings})
        repository.listed()

    def _tree(self, repo: str, revision: str) -> None:
        repository, commit = self._find(repo, revision)
        self._answer([_tree_entry(name, data) for name, data in repository.commits[commit].items()])

    def _file(self, repo: str, revision: str, name: str) -> None:
        repository, commit = self._find(repo, revision)
        if name in repository.gated:
            raise _Refused(401, "GatedRepo", "Access to this model is restricted")
        if name not in repository.commits[commit]:
            raise _Refused(404, "EntryNotFound", f"{name} does not exist")
        data = repository.commits[commit][name]
        headers = {"ETag": f'"{_object_id(name, data)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if asked := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start = int(asked[1])
            span = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
            return self._send(data[start:], 206, headers | span)
        if self.command == "GET" and name in repository.cut:
            repository.cut.discard(name)
            self.close_connection = True
            return self._send(data[: len(data) // 2], 200, headers | {"Content-Length": str(len(data))})
        return self._send(data, 200, headers)

    def _create(self) -> None:
        asked = json.loads(self.body)
        repo = f"{asked['organization'] or 'me'}/{asked['name']}"
        url = {"url": f"{self.server.url}/{repo}", "name": repo}
        if repo in self.server.repositories:
            return self._answer(url | {"error": "You already created this model repo"}, 409)
        if asked["organization"] == "forbidden":
            raise _Refused(403, None, "You don't have the rights to create a model under this namespace")
        self.server.add(repo, {".gitattributes": b""}, private=asked.get("visibility") == "private")
        return self._answer(url)

    def _validate(self) -> None:
        self._answer({"errors": [], "warnings": []})

    def _preupload(self, repo: str, revision: str) -> None:
        if self._find(repo, revision)[0].read_only:
            raise _Refused(403, None, "Forbidden: you have no write access")
        names = [file["path"] for file in json.loads(self.body)["files"]]
        modes = {name: "lfs" if name.endswith(LARGE) else "regular" for name in names}
        files = [{"path": name, "uploadMode": mode, "shouldIgnore": False} for name, mode in modes.items()]
        self._answer({"files": files})

    def _batch(self, repo: str) -> None:
        wanted = json.loads(self.body)["objects"]
        actions = [
            each | {"actions": {"upload": {"href": f"{self.server.url}/large/{each['oid']}"}}} for each in wanted
        ]
        self._answer({"transfer": "basic", "objects": actions})

    def _put(self, digest: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != digest:
            raise _Refused(400, None, "these are not the bytes that were announced")
        self.server.uploaded[digest] = self.body
        self._send(b"")

    def _commit(self, repo: str, revision: str) -> None:
        repository, parent = self._find(repo, revision)
        files = dict(repository.commits[parent])
        for operation in map(json.loads, self.body.splitlines()):
            value = operation["value"]
            match operation["key"]:
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.server.uploaded.pop(value["oid"])
                case "deletedFile":
                    del files[value["path"]]
        commit = repository.commit(files, revision)
        self._answer({"commitUrl": f"{self.server.url}/{repo}/commit/{commit}", "commitOid": commit})


def _object_id(name: str, data: bytes) -> str:
    if name.endswith(LARGE):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _tree_entry(name: str, data: bytes) -> dict[str, Any]:
    large = {"lfs": {"oid": _object_id(name, data), "size": len(data), "pointerSize": 134}}
    entry = {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
    return entry | (large if name.endswith(LARGE) else {})
