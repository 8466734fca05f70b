"""The labelling page's server: what it says to whom, and what it refuses.

Everything that a model wrote, and every request, is untrusted. A request must name a host of ours (so that no other
site's name can be led here), a write must come from our own page and hold JSON of a limited size, and all but the bare
page needs a session, which a secret token opens. The page may load nothing and run nothing but its own files.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import random
import re
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any, cast

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from steepest.errors import SteepestError, UsageError
from steepest.preferences.labelling import Conflict, judge, next_assignment, undo
from steepest.preferences.place import host_name
from steepest.preferences.progress import summarised
from steepest.preferences.records import Assignment, Prompt
from steepest.preferences.store import Project
from steepest.preferences.texts import checked_name

LARGEST_BODY = 2**16
"""Bytes of a request: a judgement has some hundred."""

LONGEST_TEXT = 2_000_000
"""Characters of a response that are sent to the page."""

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; media-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-store",  # the next project that is served here has other clips under the same numbers
}

TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


@dataclass(frozen=True)
class Access:
    """Who may label, and under which names the server is known."""

    tokens: Mapping[str, str | None]  # secret token -> the labeller that it stands for; None: any
    hosts: frozenset[str]  # names and addresses in a request's Host, without port
    secure: bool = False  # behind TLS


class Refusal(Exception):
    """A request that is not answered: status and reason."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


def build_app(
    project: Project,
    access: Access,
    *,
    clock: Callable[[], float] = time.time,
    rng: random.Random | None = None,
    live: Callable[[], dict[str, Any]] | None = None,
) -> ASGIApp:
    """Return the application that serves a project to its labellers.

    Args:      clock: gives seconds since the epoch; rng: draws sides and repetitions; live: says how far the run is
               that asks while it trains, None where none does
    Verified:  tests/integration/test_label_server.py::test_what_comes_from_elsewhere_is_refused,
               tests/integration/test_label_server.py::test_a_token_becomes_a_cookie_that_scripts_cannot_read,
               tests/integration/test_label_server.py::test_every_answer_carries_the_policy
    """
    desk = _Desk(project, access, clock, rng or random.Random(secrets.randbits(64)), live)

    def reader(answer: Callable[[Request, dict[str, Any]], Response]) -> Callable[[Request], Any]:
        async def endpoint(request: Request) -> Response:
            try:
                body = await _body(request)
                return await run_in_threadpool(answer, request, body)
            except Refusal as refusal:
                return JSONResponse({"error": refusal.reason}, refusal.status)
            except Conflict as error:
                return JSONResponse({"error": str(error)}, 409)
            except UsageError as error:
                return JSONResponse({"error": str(error)}, 400)
            except SteepestError as error:  # nothing was saved: the page tries again
                return JSONResponse({"error": str(error)}, 503)

        return endpoint

    async def clip(request: Request) -> Response:
        try:
            return await run_in_threadpool(desk.clip, request)
        except Refusal as refusal:
            return JSONResponse({"error": refusal.reason}, refusal.status)
        except UsageError as error:
            return JSONResponse({"error": str(error)}, 404)

    page = _page()

    async def asset(request: Request) -> Response:
        content, kind = page[request.url.path]
        return Response(content, media_type=kind, headers={"cache-control": "no-cache"})

    posts = {"session": desk.session, "next": desk.next, "judge": desk.judge, "undo": desk.undo}
    posts |= {"progress": desk.progress, "agreement": desk.agreement}
    routes = [
        *(Route(path, asset, methods=["GET"]) for path in page),
        *(Route(f"/api/{name}", reader(answer), methods=["POST"]) for name, answer in posts.items()),
        Route("/api/clip/{id:int}", clip, methods=["GET"]),
    ]
    return _Guard(Starlette(routes=routes), access)


class _Desk:
    """Answers the page's requests; every method runs in a thread of its own."""

    def __init__(
        self,
        project: Project,
        access: Access,
        clock: Callable[[], float],
        rng: random.Random,
        live: Callable[[], dict[str, Any]] | None,
    ) -> None:
        self.live = live
        self.project = project
        self.access = access
        self.clock = clock
        self.rng = rng
        self.sessions: dict[str, str | None] = {}
        # Cookies know no ports: two projects served by one machine must not overwrite each other's.
        mark = hashlib.blake2b(str(project.path.absolute()).encode(errors="replace"), digest_size=6).hexdigest()
        self.cookie = f"__Host-steepest-{mark}" if access.secure else f"steepest-{mark}"

    def session(self, request: Request, body: dict[str, Any]) -> Response:
        """Exchange a token for a session, or say whose session this is."""
        token = body.get("token")
        if token is None:
            return self._welcome(self._session_of(request))
        given = str(token).encode(errors="replace")
        found = [known for known in self.access.tokens if hmac.compare_digest(known.encode(), given)]
        if not found:
            raise Refusal(401, "the token is wrong; open the link that was printed")
        labeller = self.access.tokens[found[0]]
        key = secrets.token_urlsafe(32)
        self.sessions[key] = labeller
        answer = self._welcome(labeller)
        answer.set_cookie(self.cookie, key, httponly=True, samesite="strict", secure=self.access.secure, path="/")
        return answer

    def _welcome(self, labeller: str | None) -> Response:
        return JSONResponse({"labeller": labeller, "project": self.project.path.stem})

    def _session_of(self, request: Request) -> str | None:
        """Return the labeller that a session stands for, None for any."""
        key = request.cookies.get(self.cookie)
        if key is None or key not in self.sessions:
            raise Refusal(401, "there is no session; open the link that was printed")
        return self.sessions[key]

    def _labeller(self, request: Request, body: dict[str, Any]) -> str:
        bound = self._session_of(request)
        name = checked_name(body.get("labeller"))
        if bound is not None and name != bound:
            raise Refusal(403, f"this link is {bound}'s; open your own")
        return name

    def next(self, request: Request, body: dict[str, Any]) -> Response:
        """Give what the labeller is to judge."""
        return JSONResponse(self._next(self._labeller(request, body)))

    def judge(self, request: Request, body: dict[str, Any]) -> Response:
        """Keep a judgement, and give what comes next. The answer leaves after the judgement is on disk."""
        labeller = self._labeller(request, body)
        ranking = body.get("ranking")
        if not isinstance(ranking, list):
            raise UsageError("the ranking is no list of ids")
        with self.project.writing():  # both in one commit: a sync takes longer than all else
            judge(
                self.project,
                labeller,
                uuid=_text(body, "uuid"),
                assignment=_id(body.get("assignment")),
                kind=cast(Any, _text(body, "kind")),
                ranking=tuple(_id(x) for x in cast(list[Any], ranking)),
                began=_number(body, "began"),
                ended=_number(body, "ended"),
                now=self.clock(),
            )
            following = self._next(labeller)
        return JSONResponse({"saved": True, **following})

    def undo(self, request: Request, body: dict[str, Any]) -> Response:
        """Take back the labeller's latest judgement, and give it again."""
        labeller = self._labeller(request, body)
        found = undo(self.project, labeller, uuid=_text(body, "uuid"), now=self.clock())
        return JSONResponse({"undone": found is not None, **self._view(labeller, found)})

    def progress(self, request: Request, body: dict[str, Any]) -> Response:
        """Say how far the project is; a link that is one labeller's shows nothing of the others."""
        self._labeller(request, body)
        bound = self._session_of(request)
        found = summarised(self.project)
        rows = [row._asdict() for row in found.labellers if bound is None or row.name == bound]
        return JSONResponse({"summary": {**found._asdict(), "labellers": rows}})

    def agreement(self, request: Request, body: dict[str, Any]) -> Response:
        """Say how far labellers agree; a link that is one labeller's learns nothing of the others."""
        self._labeller(request, body)
        if self._session_of(request) is not None:
            return JSONResponse({"lines": []})
        from steepest.preferences.measures import labeller_measures  # loads torch, which nothing else here needs

        return JSONResponse({"lines": labeller_measures(self.project)})

    def clip(self, request: Request) -> Response:
        """Give a clip's video, or the part of it that is asked for."""
        self._session_of(request)
        data = self.project.video(_id(request.path_params["id"]))
        headers = {"accept-ranges": "bytes"}
        asked = re.fullmatch(r"bytes=(\d{1,15})-(\d{0,15})", request.headers.get("range", ""))
        if asked is None:
            return Response(data, media_type="video/mp4", headers=headers)
        first, last = int(asked[1]), min(int(asked[2] or len(data)), len(data) - 1)
        if first > last:
            return Response(status_code=416, headers={"content-range": f"bytes */{len(data)}"})
        headers["content-range"] = f"bytes {first}-{last}/{len(data)}"
        return Response(data[first : last + 1], 206, media_type="video/mp4", headers=headers)

    def _next(self, labeller: str) -> dict[str, Any]:
        return self._view(labeller, next_assignment(self.project, labeller, self.clock(), self.rng))

    def _view(self, labeller: str, assignment: Assignment | None) -> dict[str, Any]:
        """Return an assignment as the page shows it: texts or numbers of videos, and never what made them."""
        return {
            "next": None if assignment is None else self._shown(assignment),
            "progress": self._counts(labeller),
            "live": None if self.live is None else self.live(),
        }

    def _counts(self, labeller: str) -> dict[str, int]:
        done = "SELECT count(*) FROM assignment WHERE labeller = ? AND judged IS NOT NULL"
        left = (
            "SELECT count(*) FROM item i WHERE i.open = 1 AND NOT EXISTS (SELECT 1 FROM assignment a "
            "WHERE a.item = i.id AND a.labeller = ? AND a.repeat = 0 AND a.judged IS NOT NULL)"
        )
        return {"done": self.project.rows(done, labeller)[0][0], "left": self.project.rows(left, labeller)[0][0]}

    def _shown(self, assignment: Assignment) -> dict[str, Any]:
        kind, prompt = self.project.rows("SELECT kind, prompt FROM item WHERE id = ?", assignment.item)[0]
        shown: dict[str, Any] = {"assignment": assignment.id, "kind": kind, "prompt": None}
        if kind == "clip":
            return {**shown, "members": [{"id": id} for id in assignment.shown]}
        texts = {r.id: r.text for r in self.project.responses(prompt)}
        members = [
            {"id": id, "text": texts[id][:LONGEST_TEXT], "length": len(texts[id]), "cut": len(texts[id]) > LONGEST_TEXT}
            for id in assignment.shown
        ]
        return {**shown, "prompt": _turns(self.project.prompt(prompt)), "members": members}


def _turns(prompt: Prompt) -> list[dict[str, str | None]]:
    """Return a prompt as turns of a conversation; a text is one turn of nobody's."""
    if isinstance(prompt.content, str):
        return [{"role": None, "text": prompt.content[:LONGEST_TEXT]}]
    return [{"role": m["role"], "text": m["content"][:LONGEST_TEXT]} for m in prompt.content]


def _page() -> dict[str, tuple[bytes, str]]:
    """Return the page's own files by the path that they are asked for by; no other path reaches a file."""
    files = list(resources.files("steepest.preferences").joinpath("page").iterdir())
    found = {f"/{f.name}": (f.read_bytes(), TYPES[f".{f.name.rpartition('.')[2]}"]) for f in files}
    return {**found, "/": found["/index.html"]}


# What a request may hold


async def _body(request: Request) -> dict[str, Any]:
    """Return a request's JSON object; Refusal where it is another thing, or too large."""
    data = b""
    async for chunk in request.stream():
        data += chunk
        if len(data) > LARGEST_BODY:
            raise Refusal(413, f"the request is larger than {LARGEST_BODY:,} bytes")
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Refusal(400, "the request holds no JSON") from error
    if not isinstance(found, dict):
        raise Refusal(400, "the request holds no JSON object")
    return cast(dict[str, Any], found)


def _text(body: dict[str, Any], name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str):
        raise UsageError(f"{name} is no text")
    return value


def _number(body: dict[str, Any], name: str) -> float:
    value = body.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e15:
        raise UsageError(f"{name} is no number of seconds")
    return float(value)


def _id(value: Any) -> int:
    if type(value) is not int or not 0 < value < 2**63:
        raise UsageError(f"{str(value)[:40]!r} is no id")
    return value


# Where a request may come from


class _Guard:
    """Refuses requests under foreign names and writes from foreign pages; gives every answer the security headers."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self.app = app
        self.access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {name.lower() for name, _ in message["headers"]}
                more = [(k.encode(), v.encode()) for k, v in HEADERS.items() if k.encode() not in present]
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        refusal = self.refuses(scope)
        app = self.app if refusal is None else JSONResponse({"error": refusal.reason}, refusal.status)
        await app(scope, receive, send_guarded)

    def refuses(self, scope: Scope) -> Refusal | None:
        """Return why a request is not answered, or None."""
        names = [name for name, _ in scope["headers"]]
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get("host", "")
        if names.count(b"host") != 1 or host_name(host) not in self.access.hosts:
            return Refusal(421, "this server is not known under that name")
        if scope["method"] in ("GET", "HEAD"):
            return None
        origin = f"{'https' if self.access.secure else 'http'}://{host}"
        if headers.get("origin") != origin or headers.get("sec-fetch-site", "same-origin") != "same-origin":
            return Refusal(403, "the request does not come from the labelling page")
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            return Refusal(415, "the request is no application/json")
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length[:20]) > LARGEST_BODY:
            return Refusal(413, f"the request is larger than {LARGEST_BODY:,} bytes")
        return None
