"""The labelling page, served, and what a browser on it sends."""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from helpers_preferences import new_uuid
from steepest.preferences.place import Place
from steepest.preferences.serving import Server
from steepest.preferences.store import Project

SOURCE = Path(__file__).resolve().parents[2] / "src"


class Browser:
    """What a browser on the page sends, unless a test says otherwise."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.cookie = ""
        self.answer: http.client.HTTPResponse

    def send(
        self,
        path: str,
        body: object = None,
        *,
        method: str | None = None,
        data: bytes | None = None,
        **headers: str | None,
    ) -> tuple[int, Any]:
        host = f"127.0.0.1:{self.port}"
        given: dict[str, str | None] = {"Host": host, "Cookie": self.cookie or None}
        method = method or ("GET" if body is None and data is None else "POST")
        if method != "GET":
            given |= {"Origin": f"http://{host}", "Content-Type": "application/json", "Sec-Fetch-Site": "same-origin"}
        given |= {name.replace("_", "-"): value for name, value in headers.items()}
        data = json.dumps(body).encode() if data is None and body is not None else data
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)) as connection:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in {**given, "Content-Length": None if data is None else str(len(data))}.items():
                if value is not None:
                    connection.putheader(name, value)
            connection.endheaders(data)
            self.answer = connection.getresponse()
            content = self.answer.read()
        kind = self.answer.headers.get_content_type()
        return self.answer.status, json.loads(content) if kind == "application/json" else content

    def open(self, token: str) -> Any:
        status, found = self.send("/api/session", {"token": token})
        assert status == 200, found
        self.cookie = str(self.answer.headers["Set-Cookie"]).partition(";")[0]
        return found

    def judge(self, view: dict[str, Any], number: int, *, best: int = 0, labeller: str = "ana", **fields: Any) -> Any:
        ids = [m["id"] for m in view["members"]]
        given = {"labeller": labeller, "uuid": new_uuid(number), "assignment": view["assignment"], "kind": "prefer"}
        given |= {"ranking": [ids[best], ids[1 - best]], "began": 1.0, "ended": 2.0}
        return self.send("/api/judge", {**given, **fields})


@contextmanager
def served(project: Project, **place: Any) -> Iterator[tuple[Server, Browser]]:
    server = Server(project, Place(**{"port": 0, **place}))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        yield server, Browser(server.socket.getsockname()[1])
    finally:
        server.stop()
        thread.join(10)


def token_of(server: Server, place: int = 0) -> str:
    return server.links[place].url.partition("#token=")[2]


@contextmanager
def command(path: Path, *more: str) -> Iterator[tuple[subprocess.Popen[str], Browser]]:
    """``steepest label`` as a process, and a browser that has opened its link."""
    words = [sys.executable, "-m", "steepest", "label", str(path), "--port", "0", *more]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            found = next(
                (m for line in process.stdout if (m := re.search(r"http://[^:]+:(\d+)/#token=(\S+)", line))), None
            )
            assert found is not None, process.communicate()
            browser = Browser(int(found[1]))
            browser.open(found[2])
            yield process, browser
        finally:
            process.kill()
