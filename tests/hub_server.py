"""Local stand-in of the Hugging Face Hub's API: repositories of models with branches, kept in memory."""

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlsplit

Files = dict[str, bytes]


class Hub(ThreadingHTTPServer):
    """Server of `repositories`: the files of each branch of each repository; a commit is the digest of its files."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, dict[str, Files]] = {}
        self.requested: list[str] = []  # files that were downloaded

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: object) -> None: ...

    def do_GET(self) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            repository, rest = "/".join(parts[2:4]), parts[4:]
            revision = rest[1] if len(rest) > 1 else "main"
            if (files := self.files(repository, revision)) is None:
                return
            if rest[:1] == ["tree"]:
                tree = [
                    {"type": "file", "oid": digest(files[name]), "size": len(files[name]), "path": name}
                    for name in files
                ]
                return self.answer(tree)
            siblings = [{"rfilename": name} for name in files]
            return self.answer({"id": repository, "sha": commit_of(files), "siblings": siblings})
        if parts[2:3] == ["resolve"]:
            repository, revision, name = "/".join(parts[:2]), parts[3], "/".join(parts[4:])
            if (files := self.files(repository, revision)) is None:
                return
            if name not in files:
                return self.error(404, "EntryNotFound")
            if self.command == "GET":
                self.server.requested.append(name)
            headers = {"ETag": f'"{digest(files[name])}"', "X-Repo-Commit": commit_of(files)}
            return self.send(200, files[name], headers)
        self.error(404, "Unknown")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if self.headers.get("Authorization") != "Bearer right":
            return self.error(401, "")
        if parts == ["api", "validate-yaml"]:
            return self.answer({"errors": [], "warnings": []})
        if parts == ["api", "repos", "create"]:
            request = json.loads(body)
            name = "/".join(filter(None, (request.get("organization"), request["name"])))
            self.server.repositories.setdefault(name, {"main": {}})
            return self.answer({"url": f"{self.server.address}/{name}"})
        repository, action = "/".join(parts[2:4]), parts[4]
        branches = self.server.repositories[repository]
        if action == "branch":
            branches[parts[5]] = dict(branches["main"])
            return self.answer({})
        if action == "preupload":
            kind = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
            return self.answer({"files": [{"path": file["path"], **kind} for file in json.loads(body)["files"]]})
        if action == "commit":
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    branches[parts[5]][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                elif line["key"] == "deletedFile":
                    del branches[parts[5]][line["value"]["path"]]
            commit = commit_of(branches[parts[5]])
            return self.answer(
                {"commitUrl": f"{self.server.address}/{repository}/commit/{commit}", "commitOid": commit}
            )
        self.error(404, "Unknown")

    def files(self, repository: str, revision: str) -> Files | None:
        """Return the files of a branch or commit; answers with the hub's error if there is none."""
        if repository not in self.server.repositories:
            return self.error(401, "RepoNotFound")
        branches = self.server.repositories[repository]
        for name, files in branches.items():
            if revision in (name, commit_of(files)):
                return files
        return self.error(404, "RevisionNotFound")

    def answer(self, content: object) -> None:
        self.send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def error(self, status: int, code: str) -> None:
        self.send(status, b"{}", {"X-Error-Code": code} if code else {})

    def send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def digest(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


def commit_of(files: Files) -> str:
    return digest(json.dumps({name: digest(content) for name, content in sorted(files.items())}).encode())


@contextmanager
def running_hub() -> Iterator[Hub]:
    """Context in which a hub without repositories runs."""
    with Hub() as hub:
        thread = Thread(target=hub.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()
