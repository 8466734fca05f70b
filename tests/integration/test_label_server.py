"""The server of the labelling page, as requests over the network meet it."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from helpers_preferences import clip, new_uuid, text_project
from steepest.errors import RunError, UsageError
from steepest.preferences.store import Project

pytest.importorskip("uvicorn")
pytest.importorskip("starlette")

from helpers_label import SOURCE, Browser, command, served, token_of

from steepest.preferences.place import Place, host_name
from steepest.preferences.server import LARGEST_BODY, POLICY
from steepest.preferences.serving import Server


@pytest.fixture
def page(tmp_path: Path) -> Iterator[tuple[Project, Server, Browser]]:
    with text_project(tmp_path / "p.db", prompts=3) as project, served(project) as (server, browser):
        yield project, server, browser


def test_pairs_are_judged_one_after_another(page: tuple[Project, Server, Browser]) -> None:
    project, server, browser = page
    assert browser.open(token_of(server)) == {"labeller": None, "project": "p"}
    status, answer = browser.send("/api/next", {"labeller": "ana"})
    assert (status, answer["progress"]) == (200, {"done": 0, "left": 3})
    view = answer["next"]
    assert view["prompt"] == [{"role": None, "text": "Question 0?"}]
    texts = {r.id: r.text for r in project.responses()}
    assert [m["text"] for m in view["members"]] == [texts[m["id"]] for m in view["members"]]
    assert "model" not in json.dumps(answer)  # what wrote them is hidden
    status, after = browser.judge(view, 1)
    assert (status, after["saved"], after["progress"]) == (200, True, {"done": 1, "left": 2})
    (judgement,) = project.judgements()
    assert (judgement.labeller, judgement.ranking[0]) == ("ana", view["members"][0]["id"])
    assert browser.judge(view, 1) == (200, after)  # sent again
    assert browser.judge(view, 2)[0] == 409  # judged again
    status, back = browser.send("/api/undo", {"labeller": "ana", "uuid": new_uuid(3)})
    assert (status, back["undone"], back["next"]) == (200, True, view)
    assert project.judgements() == []
    status, found = browser.send("/api/progress", {"labeller": "ana"})
    assert (status, found["summary"]["items"], found["summary"]["judged"]) == (200, 3, 0)


def test_a_token_becomes_a_cookie_that_scripts_cannot_read(page: tuple[Project, Server, Browser]) -> None:
    _, server, browser = page
    token = token_of(server)
    browser.open(token)
    cookie = browser.answer.headers["Set-Cookie"]
    assert re.fullmatch(r"steepest-[0-9a-f]{12}=[\w-]{43}; HttpOnly; Path=/; SameSite=strict", cookie), cookie
    assert token not in cookie
    assert len(token) == 43  # 256 bits
    assert browser.send("/api/session", {})[0] == 200  # the cookie alone opens it again


@pytest.mark.parametrize("token", ["", "wrong", None, 7, "é", ["x"], {"a": 1}, "\x00", "x" * 10_000])
def test_without_the_token_there_is_nothing(page: tuple[Project, Server, Browser], token: object) -> None:
    project, server, browser = page
    status, _ = browser.send("/api/session", {"token": token})
    assert status == 401
    assert browser.answer.headers["Set-Cookie"] is None
    for path in ("next", "judge", "undo", "progress"):
        assert browser.send(f"/api/{path}", {"labeller": "ana"})[0] == 401
    project.add_clip(clip(), b"video")
    assert browser.send("/api/clip/1")[0] == 401
    name = "steepest-" + "0" * 12
    assert browser.send("/api/next", {"labeller": "ana"}, Cookie=f"{name}=; {name}={token_of(server)}")[0] == 401


FOREIGN: dict[str, tuple[dict[str, str | None], int]] = {
    "another site's page": ({"Origin": "https://evil.example"}, 403),
    "another port's page": ({"Origin": "http://127.0.0.1:1"}, 403),
    "the same host encrypted": ({"Origin": "https://127.0.0.1"}, 403),
    "a sandboxed page": ({"Origin": "null"}, 403),
    "no page": ({"Origin": None}, 403),
    "a page of the same site": ({"Sec_Fetch_Site": "same-site"}, 403),
    "a cross-site post": ({"Sec_Fetch_Site": "cross-site"}, 403),
    "a form": ({"Content_Type": "application/x-www-form-urlencoded"}, 415),
    "a plain form": ({"Content_Type": "text/plain"}, 415),
    "no type": ({"Content_Type": None}, 415),
    "a rebound name": ({"Host": "evil.example"}, 421),
    "a rebound name with our port": ({"Host": "evil.example:8765"}, 421),
    "a name that begins like ours": ({"Host": "localhost.evil.example"}, 421),
    "a name that ends like ours": ({"Host": "evil-127.0.0.1"}, 421),
    "a name with a user": ({"Host": "127.0.0.1@evil.example"}, 421),
    "no name": ({"Host": ""}, 421),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_what_comes_from_elsewhere_is_refused(page: tuple[Project, Server, Browser], what: str) -> None:
    project, server, browser = page
    browser.open(token_of(server))
    view = browser.send("/api/next", {"labeller": "ana"})[1]["next"]
    headers, expected = FOREIGN[what]
    ids = [m["id"] for m in view["members"]]
    body = {"labeller": "ana", "uuid": new_uuid(1), "assignment": view["assignment"], "kind": "prefer"}
    body |= {"ranking": ids, "began": 1.0, "ended": 2.0}
    assert browser.send("/api/judge", body, **headers)[0] == expected
    assert project.judgements() == []
    if expected == 421:
        assert browser.send("/", **headers)[0] == 421  # not even the page
    assert browser.send("/api/judge", body)[0] == 200  # it was all that was wrong


def test_two_hosts_are_refused(page: tuple[Project, Server, Browser]) -> None:
    _, _, browser = page
    with closing(socket.create_connection(("127.0.0.1", browser.port), timeout=10)) as raw:
        raw.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil.example\r\n\r\n")
        assert raw.recv(100).startswith((b"HTTP/1.1 421", b"HTTP/1.1 400"))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST:1", "[::1]:99", "127.0.0.1:65535"])
def test_our_own_names_are_known(page: tuple[Project, Server, Browser], host: str) -> None:
    assert page[2].send("/", Host=host)[0] == 200


def test_hosts_are_read_without_their_port() -> None:
    read = {
        "a.b:1": "a.b",
        "A": "a",
        "[::1]": "::1",
        "[::1]:80": "::1",
        "::1": "",
        "a:b": "",
        "a b": "",
        "a/b": "",
        "": "",
    }
    assert {host: host_name(host) for host in read} == read


BODIES: dict[str, tuple[bytes, int]] = {
    "too large": (b'{"x": "' + b"a" * LARGEST_BODY + b'"}', 413),
    "not JSON": (b"labeller=ana", 400),
    "nothing": (b"", 400),
    "a list": (b"[]", 400),
    "deep": (b"[" * 60_000, 400),
    "not UTF-8": (b'{"labeller": "\xff\xfe"}', 400),
    "a huge number": (b'{"labeller": ' + b"9" * 50_000 + b"}", 400),
    "a name that cannot be seen": (b'{"labeller": "a\\u202eb"}', 400),
    "half a character": (b'{"labeller": "\\ud800"}', 400),
    "no name": (b"{}", 400),
}


@pytest.mark.parametrize("what", BODIES)
def test_bodies_that_do_not_fit_are_refused(page: tuple[Project, Server, Browser], what: str) -> None:
    _, server, browser = page
    browser.open(token_of(server))
    data, expected = BODIES[what]
    for path in ("next", "judge", "undo", "progress"):
        assert browser.send(f"/api/{path}", data=data)[0] == expected
    assert browser.send("/api/next", {"labeller": "ana"})[0] == 200


def test_a_body_of_undeclared_size_is_refused(page: tuple[Project, Server, Browser]) -> None:
    _, server, browser = page
    browser.open(token_of(server))
    host = f"127.0.0.1:{browser.port}"
    head = f"POST /api/next HTTP/1.1\r\nHost: {host}\r\nOrigin: http://{host}\r\nContent-Type: application/json\r\n"
    with closing(socket.create_connection(("127.0.0.1", browser.port), timeout=10)) as raw:
        raw.sendall(f"{head}Cookie: {browser.cookie}\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        chunk = b"8000\r\n" + b"a" * 0x8000 + b"\r\n"
        raw.sendall(chunk * 3)
        assert b" 413 " in raw.recv(100)


@pytest.mark.parametrize(
    "change",
    [
        {"ranking": "12"}, {"ranking": [1.5, 2]}, {"ranking": [True, 2]}, {"ranking": None}, {"ranking": [10**30, 1]},
        {"assignment": "1"}, {"assignment": 10**30}, {"assignment": -1}, {"assignment": True}, {"assignment": None},
        {"uuid": 7}, {"uuid": "'; DROP TABLE judgement"}, {"kind": 1}, {"kind": "retract"}, {"began": "x"},
        {"began": None}, {"ended": 1e300}, {"began": float("nan")}, {"ended": float("inf")}, {"labeller": 7},
    ],
)  # fmt: skip
def test_judgements_of_wrong_types_are_refused(page: tuple[Project, Server, Browser], change: dict[str, Any]) -> None:
    project, server, browser = page
    browser.open(token_of(server))
    view = browser.send("/api/next", {"labeller": "ana"})[1]["next"]
    assert browser.judge(view, 1, **change)[0] == 400
    assert project.history() == []
    assert browser.judge(view, 1)[0] == 200


def test_every_answer_carries_the_policy(page: tuple[Project, Server, Browser]) -> None:
    project, server, browser = page
    project.add_clip(clip(), b"video")
    requests: list[tuple[str, object]] = [("/", None), ("/page.js", None), ("/none", None), ("/api/next", None)]
    requests += [("/api/session", {"token": token_of(server)}), ("/api/next", {}), ("/api/clip/1", None)]
    for path, body in requests:
        for headers in ({}, {"Host": "evil.example"}):
            browser.send(path, body, **headers)
            found = browser.answer.headers
            assert found["Content-Security-Policy"] == POLICY
            assert found["X-Content-Type-Options"] == "nosniff"
            assert found["Referrer-Policy"] == "no-referrer"
            assert found["X-Frame-Options"] == "DENY"
            assert found["Cross-Origin-Resource-Policy"] == "same-origin"
            assert found["Access-Control-Allow-Origin"] is None
            assert "Server" not in found
    directives = dict(part.strip().split(" ", 1) for part in POLICY.split(";"))
    assert directives["default-src"] == directives["frame-ancestors"] == directives["base-uri"] == "'none'"
    assert "unsafe" not in POLICY
    assert "data:" not in POLICY


@pytest.mark.parametrize(
    "path", ["/../store.py", "/page/../../store.py", "/%2e%2e/store.py", "/page.js/..", "//etc/passwd", "/api/clip/..",
             "/api/clip/1.mp4", "/api/clip/-1", "/api/clip/99999999999999999999", "/server.py", "/index.html.bak"],
)  # fmt: skip
def test_no_path_reaches_another_file(page: tuple[Project, Server, Browser], path: str) -> None:
    _, server, browser = page
    browser.open(token_of(server))
    assert browser.send(path)[0] in (400, 404)


def test_the_page_refers_to_nothing_outside(page: tuple[Project, Server, Browser]) -> None:
    _, _, browser = page
    for path in (
        "/",
        "/page.css",
        "/page.js",
        "/text.js",
        "/clips.js",
        "/keys.js",
        "/words.js",
        "/api.js",
        "/icon.svg",
    ):
        status, content = browser.send(path)
        assert status == 200
        text = content.decode().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|//\w+\.\w", text), path
        # Nothing makes markup out of text.
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|eval\(|srcdoc|\.href", text
        )
    assert "style=" not in browser.send("/")[1].decode()  # the policy would drop it


def test_a_part_of_a_clip(page: tuple[Project, Server, Browser]) -> None:
    project, server, browser = page
    data = bytes(range(100))
    id = project.add_clip(clip(), data)
    browser.open(token_of(server))
    assert browser.send(f"/api/clip/{id}") == (200, data)
    assert browser.answer.headers["Content-Type"] == "video/mp4"
    for asked, expected in (("bytes=0-", data), ("bytes=10-19", data[10:20]), ("bytes=90-500", data[90:])):
        assert browser.send(f"/api/clip/{id}", Range=asked) == (206, expected)
        start = int(asked[6:].partition("-")[0])
        assert browser.answer.headers["Content-Range"] == f"bytes {start}-{start + len(expected) - 1}/100"
    assert browser.send(f"/api/clip/{id}", Range="bytes=100-")[0] == 416
    for strange in ("bytes=5-2", "bytes=-5", "bytes=0-1,3-4", "lines=1-2", "bytes=" + "9" * 30 + "-"):
        assert browser.send(f"/api/clip/{id}", Range=strange)[0] in (200, 416)
    assert browser.send("/api/clip/99")[0] == 404


# Whose link it is


def test_every_labeller_has_a_link_of_their_own(tmp_path: Path) -> None:
    with text_project(tmp_path / "p.db") as project, served(project, labellers=("ana", "ben")) as (server, ana):
        assert [link.labeller for link in server.links] == ["ana", "ben"]
        ben = Browser(ana.port)
        assert ana.open(token_of(server, 0))["labeller"] == "ana"
        assert ben.open(token_of(server, 1))["labeller"] == "ben"
        assert ana.send("/api/next", {"labeller": "ana"})[0] == 200
        for path in ("next", "judge", "undo", "progress"):
            assert ben.send(f"/api/{path}", {"labeller": "ana", "uuid": new_uuid(1)})[0] == 403
        view = ben.send("/api/next", {"labeller": "ben"})[1]["next"]
        assert ana.judge(view, 1)[0] == 409  # ben's assignment
        assert ben.judge(view, 2, labeller="ben")[0] == 200
        rows = ana.send("/api/progress", {"labeller": "ana"})[1]["summary"]["labellers"]
        assert rows == []  # nothing of ben


@pytest.mark.parametrize(
    ("place", "why"),
    [
        ({"host": "0.0.0.0"}, "say who may label"),
        ({"host": "192.0.2.7"}, "say who may label"),
        ({"host": "::"}, "say who may label"),
        ({"host": "0.0.0.0", "labellers": ("ana",)}, "under which name"),
        ({"host": "http://x"}, "without port"),
        ({"host": "localhost:80"}, "without port"),
        ({"names": ("a b",)}, "without port"),
        ({"port": 70_000}, "below 65536"),
        ({"labellers": ("ana", " ana ")}, "the same name"),
        ({"labellers": ("a\nb\x1b",)}, "can be seen"),
        ({"certificate": Path("/dev/null/x")}, "both a certificate and its key"),
    ],
)
def test_places_that_cannot_be_safe_are_refused(place: dict[str, Any], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        Place(**place)


def test_a_certificate_that_is_not_there_is_explained(tmp_path: Path) -> None:
    with text_project(tmp_path / "p.db") as project, pytest.raises(UsageError, match="there is no file"):
        Server(project, Place(port=0, certificate=tmp_path / "cert.pem", key=tmp_path / "key.pem"))


def test_what_is_encrypted_has_a_cookie_that_stays_so(tmp_path: Path) -> None:
    """A certificate made here: the page answers by TLS alone, and its cookie is for TLS alone."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl makes the certificate")
    names = ["-keyout", str(tmp_path / "key.pem"), "-out", str(tmp_path / "cert.pem"), "-subj", "/CN=localhost"]
    command = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", *names]
    subprocess.run([*command, "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True)
    files = {"certificate": tmp_path / "cert.pem", "key": tmp_path / "key.pem"}
    with text_project(tmp_path / "p.db") as project, served(project, **files) as (server, browser):
        assert server.links[0].url.startswith("https://127.0.0.1:")
        trust = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
        host = f"127.0.0.1:{browser.port}"
        headers = {"Host": host, "Origin": f"https://{host}", "Content-Type": "application/json"}
        with closing(http.client.HTTPSConnection("127.0.0.1", browser.port, context=trust, timeout=10)) as connection:
            connection.request("POST", "/api/session", json.dumps({"token": token_of(server)}), headers)
            answer = connection.getresponse()
            assert answer.status == 200
            assert re.fullmatch(
                r"__Host-steepest-\w{12}=[\w-]{43}; HttpOnly; Path=/; SameSite=strict; Secure",
                answer.headers["Set-Cookie"],
            )
            answer.read()
        with pytest.raises((http.client.HTTPException, OSError)):
            browser.send("/")


def test_what_others_can_read_is_known() -> None:
    assert Place(host="192.0.2.7", labellers=("ana",)).is_exposed
    assert not any(Place(host=host).is_exposed for host in ("127.0.0.1", "localhost", "::1", "127.8.8.8"))


def test_a_taken_port_is_explained(tmp_path: Path) -> None:
    with text_project(tmp_path / "p.db") as project, closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(RunError, match=f"port {port}: another program has it"):
            Server(project, Place(port=port))
        first = Server(project, Place())
        second = Server(project, Place())  # the default port is taken now: another one
        ports = [server.socket.getsockname()[1] for server in (first, second)]
        assert len(set(ports)) == 2
        for server in (first, second):
            server.socket.close()


# Durability


def test_what_was_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    """Two hundred judgements at once, and the process is killed among them; then all are sent again."""
    path = tmp_path / "p.db"
    text_project(path, prompts=200).close()
    acknowledged: set[int] = set()
    with command(path) as (process, browser):
        views = [browser.send("/api/next", {"labeller": f"labeller {n}"})[1]["next"] for n in range(200)]

        def judge(target: Browser, number: int, *, last: int = -1) -> None:
            one = Browser(target.port)
            one.cookie = target.cookie
            status, _ = one.judge(views[number], number, labeller=f"labeller {number}")
            assert status == 200
            acknowledged.add(number)
            if len(acknowledged) == last:  # which kills it among the others
                process.kill()

        with ThreadPoolExecutor(40) as pool:
            sent = [pool.submit(judge, browser, number, last=60) for number in range(200)]
            failed = sum(job.exception() is not None for job in sent)
        assert process.wait(10) == -signal.SIGKILL
    assert failed > 0
    before = set(acknowledged)
    assert 60 <= len(before) < 200
    with Project.open(path) as project:
        kept = [j.uuid for j in project.history()]
        assert {new_uuid(number) for number in before} <= set(kept)
        assert len(kept) == len(set(kept))
    with command(path) as (process, browser):
        with ThreadPoolExecutor(40) as pool:
            for job in [pool.submit(judge, browser, number) for number in range(200)]:
                job.result()
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    with Project.open(path) as project:
        assert sorted(j.uuid for j in project.history()) == sorted(new_uuid(number) for number in range(200))
        assert project.rows("SELECT count(*) FROM item WHERE open = 1") == [(0,)]


def test_a_full_disk_acknowledges_nothing(page: tuple[Project, Server, Browser]) -> None:
    project, server, browser = page
    browser.open(token_of(server))
    view = browser.send("/api/next", {"labeller": "ana"})[1]["next"]
    project.rows(
        "CREATE TEMP TRIGGER full BEFORE INSERT ON judgement BEGIN SELECT RAISE(ABORT, 'database or disk is full'); END"
    )
    status, answer = browser.judge(view, 1)
    assert status == 503
    assert "the disk is full" in answer["error"]
    project.rows("DROP TRIGGER full")
    assert project.history() == []
    assert browser.judge(view, 1)[0] == 200


# Speed


def test_the_page_is_there_at_once_and_without_torch(tmp_path: Path) -> None:
    """From the command to an answer: the server loads nothing that it does not need."""
    path = tmp_path / "p.db"
    text_project(path).close()
    code = (
        "import sys, threading\n"
        "from steepest.cli import main\n"
        "from steepest.preferences import serving\n"
        "def run(self):\n"
        "    heavy = {'torch', 'gymnasium', 'matplotlib', 'transformers'}\n"
        "    print(sorted(heavy & set(sys.modules)), flush=True)\n"
        "serving.Server.run = run\n"
        f"main.main(['label', {str(path)!r}, '--port', '0'])\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert "\n[]\n" in out.stdout, out.stdout + out.stderr
    begun = time.monotonic()
    with command(path) as (process, browser):
        assert browser.send("/api/next", {"labeller": "ana"})[0] == 200
        took = time.monotonic() - begun
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    print(f"from the command to a pair: {took:.2f} s")
    assert took < 8.0  # 0.6 s on two busy cores


def test_ten_thousand_pairs_are_no_slower(tmp_path: Path) -> None:
    with text_project(tmp_path / "p.db", prompts=2, labels_per_item=2) as project:
        with project.writing():
            for number in range(10_000):
                prompt = project.add_prompt(f"Prompt {number}")
                ids = project.add_responses(prompt, ["a", "b"], source="m", settings=[{"d": 0}, {"d": 1}])
                project.add_items([ids], kind="text")
            project.rows(
                "INSERT INTO assignment (item, labeller, repeat, shown, lease, judged) "
                "SELECT id, 'ana', 0, members, 0, 'tie' FROM item WHERE id <= 9000"
            )
        with served(project) as (server, browser):
            browser.open(token_of(server))
            view = browser.send("/api/next", {"labeller": "ana"})[1]["next"]
            times: list[float] = []
            for number in range(20):
                begun = time.monotonic()
                status, answer = browser.judge(view, number)
                times.append(time.monotonic() - begun)
                assert (status, answer["progress"]["done"]) == (200, 9001 + number)
                view = answer["next"]
            assert sorted(times)[10] < 0.2  # about 0.02 s on an idle machine
