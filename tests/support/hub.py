"""A small Hub on this machine, for the real client: repositories, commits, large files, downloads."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

OWNER = "me"
LARGE = (".safetensors", ".bin", ".png", ".onnx")
REPO = r"/api/models/(?P<repo>[^/]+/[^/]+)"


class LocalHub:
    """What the server holds.

    Attributes:
        url: Where it listens.
        commits: Of each repository, by name: its files, by path, after each commit to any branch.
        branches: Of each repository: the number of the last commit to each branch.
        private: Names of the repositories that were created as private.
    """

    def __init__(self) -> None:
        self.url = ""
        self.commits: dict[str, list[dict[str, bytes]]] = {}
        self.branches: dict[str, dict[str, int]] = {}
        self.private: set[str] = set()
        self.large: dict[str, bytes] = {}

    def files(self, repo: str, branch: str = "main") -> dict[str, bytes]:
        """The files of a repository now."""
        return self.commits[repo][self.branches[repo][branch]]

    def at(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """The sha of a revision and its files."""
        commits = self.commits.get(repo, [])
        is_sha = re.fullmatch("[0-9a-f]{40}", revision)
        number = int(revision[:8], 16) if is_sha else self.branches.get(repo, {}).get(revision, -1)
        return (f"{number:08x}".ljust(40, "a"), commits[number]) if 0 <= number < len(commits) else None

    def environment(self, home: Path) -> dict[str, str]:
        """What a process needs in its environment to use this Hub and no other."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HUB_OFFLINE": "0",
            "HF_HOME": str(home),
            "HF_TOKEN": "hf_local",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1",
        }


@contextmanager
def local_hub() -> Iterator[LocalHub]:
    """Runs a Hub until the block ends."""
    hub = LocalHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    """Answers the requests of `huggingface_hub`."""

    protocol_version = "HTTP/1.1"
    hub: LocalHub

    def log_message(self, *args: Any) -> None:
        """Says nothing."""

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if path.startswith("/api/whoami"):
            role = {"role": "write"}
            return self._json({"name": OWNER, "type": "user", "auth": {"accessToken": role}, "orgs": []})
        if found := re.fullmatch(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)", path):
            return self._file(**found.groupdict())
        if found := re.fullmatch(REPO + r"/tree/(?P<revision>[^/]+)/?", path):
            return self._tree(**found.groupdict())
        if found := re.fullmatch(REPO + r"(/revision/(?P<revision>[^/]+))?", path):
            return self._about(found["repo"], found["revision"] or "main")
        return self._missing("no such page")

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_PUT(self) -> None:
        self.hub.large[self.path.rpartition("/")[2]] = self._body()
        self._json({})

    def do_POST(self) -> None:
        path, body = unquote(urlsplit(self.path).path), self._body()
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if path.endswith("/info/lfs/objects/batch"):
            return self._large(json.loads(body)["objects"])
        if re.fullmatch(REPO + r"/preupload/[^/]+", path):
            modes = {True: "lfs", False: "regular"}
            files = [
                {"path": file["path"], "uploadMode": modes[file["path"].endswith(LARGE)], "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            return self._json({"files": files})
        if found := re.fullmatch(REPO + r"/(?P<what>branch|commit)/(?P<branch>[^/]+)", path):
            answer = {"branch": self._branch, "commit": self._commit}[found["what"]]
            return answer(found["repo"], found["branch"], body)
        return self._missing("no such page")

    def _create(self, content: dict[str, Any]) -> None:
        repo = f"{content.get('organization') or OWNER}/{content['name']}"
        status = 409 if repo in self.hub.commits else 200
        self.hub.commits.setdefault(repo, [{}])
        self.hub.branches.setdefault(repo, {"main": 0})
        if content.get("private") or content.get("visibility") == "private":
            self.hub.private.add(repo)
        self._json({"url": f"{self.hub.url}/{repo}", "name": repo, "id": repo}, status)

    def _large(self, objects: list[dict[str, Any]]) -> None:
        def asked(one: dict[str, Any]) -> dict[str, Any]:
            target = {"href": f"{self.hub.url}/large/{one['oid']}", "header": {}}
            return {"oid": one["oid"], "size": one["size"], "authenticated": True, "actions": {"upload": target}}

        self._json({"transfer": "basic", "objects": list(map(asked, objects))})

    def _branch(self, repo: str, branch: str, _body: bytes) -> None:
        branches = self.hub.branches[repo]
        status = 409 if branch in branches else 200
        branches.setdefault(branch, branches["main"])
        self._json({}, status)

    def _commit(self, repo: str, branch: str, body: bytes) -> None:
        files = dict(self.hub.files(repo, branch))
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
            elif entry["key"] == "deletedFile":
                del files[value["path"]]
        self.hub.branches[repo][branch] = len(self.hub.commits[repo])
        self.hub.commits[repo].append(files)
        sha = self.hub.at(repo, branch)[0]  # type: ignore[index]
        self._json({"success": True, "commitOid": sha, "commitUrl": f"{self.hub.url}/{repo}/commit/{sha}"})

    def _file(self, repo: str, revision: str, file: str) -> None:
        found = self.hub.at(repo, revision)
        if found is None or file not in found[1]:
            more = {} if found is None else {"X-Repo-Commit": found[0]}
            return self._missing("EntryNotFound" if found else "RepoNotFound", more)
        sha, content = found[0], found[1][file]
        tag = f'"{hashlib.sha256(content).hexdigest()}"'
        return self._send(200, content, {"X-Repo-Commit": sha, "ETag": tag, "Content-Type": "application/octet-stream"})

    def _tree(self, repo: str, revision: str) -> None:
        found = self.hub.at(repo, revision)
        if found is None:
            return self._missing("RepoNotFound")
        entries = [
            {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for path, content in found[1].items()
        ]
        return self._json(entries)

    def _about(self, repo: str, revision: str) -> None:
        found = self.hub.at(repo, revision)
        if found is None:
            return self._missing("RepoNotFound")
        siblings = [{"rfilename": path} for path in found[1]]
        return self._json(
            {"id": repo, "sha": found[0], "siblings": siblings, "tags": [], "private": repo in self.hub.private}
        )

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _json(self, content: Any, status: int = 200) -> None:
        self._send(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _missing(self, code: str, more: dict[str, str] | None = None) -> None:
        self._send(404, json.dumps({"error": code}).encode(), {"X-Error-Code": code, **(more or {})})

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
