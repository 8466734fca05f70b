"""A person who labels while an agent trains: a browser without a screen, on the page that the run serves."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from helpers_label import Browser

LINK = re.compile(r"http://[^:]+:(\d+)/#token=(\S+)")


def link_in(texts: Callable[[], str], seconds: float = 60.0) -> Browser:
    """A browser that has opened the link, once there is one."""
    deadline = time.monotonic() + seconds
    while (found := LINK.search(texts())) is None:
        assert time.monotonic() < deadline, texts()
        time.sleep(0.05)
    browser = Browser(int(found[1]))
    browser.open(found[2])
    return browser


class Person:
    """Judges whatever the page asks, by ids alone: the clip that was added first is better, to be repeatable."""

    def __init__(self, browser: Browser, *, most: int = 10_000, start: int = 0, name: str = "ana", **said: Any) -> None:
        self.browser, self.most, self.number, self.name, self.said = browser, most, start, name, said
        self.views: list[dict[str, Any]] = []
        self.states: list[dict[str, Any]] = []

    def answer_all(self, going: Callable[[], bool]) -> None:
        """Answer as long as the run goes on, and there are fewer than ``most``."""
        while going() and len(self.views) < self.most:
            try:
                found = self.browser.send("/api/next", {"labeller": self.name})[1]
            except OSError:  # the run has ended, or was killed
                return
            self.states.append(found["live"])
            if found["next"] is None:
                time.sleep(0.02)
                continue
            self.answer(found["next"])

    def answer(self, view: dict[str, Any]) -> None:
        """Judge one pair."""
        ids = [member["id"] for member in view["members"]]
        self.number += 1
        status, answer = self.browser.judge(
            view, self.number, best=ids.index(min(ids)), labeller=self.name, **self.said
        )
        assert status == 200, answer
        self.views.append(view)


def person_in_thread(texts: Callable[[], str], **options: Any) -> tuple[threading.Thread, list[Person]]:
    """A person who answers from a thread as soon as there is a link, until the server is gone."""
    made: list[Person] = []

    def work() -> None:
        made.append(Person(link_in(texts), **options))
        made[0].answer_all(lambda: True)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread, made


def project_said(path: Path) -> list[tuple[str, tuple[int, ...]]]:
    """What stands in a project, in order."""
    from steepest.preferences.store import Project

    with Project.open(path) as project:
        return [(j.kind, j.ranking) for j in project.judgements()]
