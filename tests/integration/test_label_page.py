"""The labelling page in a real browser: Debian's Chromium, driven by Playwright. Skipped where either is missing.

STEEPEST_SCREENSHOTS names a folder for pictures of what the tests saw.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers_preferences import clip, text_project
from steepest.preferences.store import Project

pytest.importorskip("uvicorn")

from helpers_label import served

sync_api = pytest.importorskip("playwright.sync_api", reason="the browser tests need Playwright")
CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="the browser tests need Chromium (apt-get install chromium)")

ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync", "--no-first-run"]

HOSTILE = {
    "script": "<script>window.pwned = 1</script><img src=x onerror='window.pwned = 1'>",
    "markup": "</div></bdi><h1>Not ours</h1><style>*{display:none}</style><a href='javascript:window.pwned=1'>x</a>",
    "direction": "The answer is \u202egnorw\u202c, and \u2066so\u2069 on.\u200f",
    "terminal": "\x1b[2J\x1b]0;pwned\x07 and \x00 and \x7f",
    "megabyte": "ab " * 350_000,
    "unbroken": "x" * 5_000,
    "zalgo": "Z" + "\u0301" * 400 + "algo",
    "arabic": "مرحبا بالعالم 123 abc",
    "template": "{{constructor.constructor('window.pwned=1')()}} ${window.pwned=1}",
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=ARGUMENTS)
        yield found
        found.close()


class Window:
    """A page of the server, with what went wrong in it."""

    def __init__(self, browser: Any, url: str, name: str | None = "Ana", **options: Any) -> None:
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
        self.page = self.context.new_page()
        self.wrong: list[str] = []
        self.foreign: list[str] = []
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("console", lambda message: self.wrong.append(message.text) if message.type == "error" else None)
        self.page.on("dialog", lambda dialog: (self.wrong.append(dialog.message), dialog.dismiss()))
        own = re.match(r"https?://[^/]+/", url)
        assert own is not None
        self.page.on("request", lambda r: None if r.url.startswith(own[0]) else self.foreign.append(r.url))
        self.page.goto(url)
        if name is not None:
            self.page.fill("#name", name)
            self.page.keyboard.press("Enter")
            self.page.wait_for_selector("#comparison:not([hidden]), #notice:not([hidden])")

    def shot(self, name: str) -> None:
        folder = os.environ.get("STEEPEST_SCREENSHOTS")
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
            self.page.screenshot(path=f"{folder}/{name}.png")

    def until(self, expression: str) -> None:
        """Wait until an expression is true. Playwright's own waiting evaluates text, which our policy forbids."""
        deadline = time.monotonic() + 15
        while not self.page.evaluate(expression):
            assert time.monotonic() < deadline, expression
            self.page.wait_for_timeout(20)

    def press(self, key: str) -> None:
        """Press a key and wait until what it did is shown."""
        self.page.evaluate("document.getElementById('status').textContent = ''")
        self.page.keyboard.press(key)
        self.until("document.getElementById('status').textContent !== ''")
        self.until("!document.documentElement.classList.contains('busy')")

    @property
    def status(self) -> str:
        return self.page.inner_text("#status")

    @property
    def texts(self) -> list[str]:
        return [element.text_content() for element in self.page.query_selector_all(".card .untrusted bdi")]

    def clean(self) -> None:
        """Nothing failed, nothing of another site was asked for, and nothing hostile ran."""
        assert self.wrong == []
        assert self.foreign == []
        assert self.page.evaluate("window.pwned") is None
        self.context.close()


def accessible(window: Window) -> None:
    """No violation that axe-core finds, of WCAG 2.2 A and AA or of its best practices."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="the accessibility test needs axe")
    found = axe.Axe().run(window.page).response["violations"]
    assert [(v["id"], [n["html"] for n in v["nodes"]]) for v in found] == []


def hostile_project(path: Path) -> Project:
    project = text_project(path, prompts=0)
    for name, text in HOSTILE.items():
        prompt = project.add_prompt(f"{name}: {text[:2000]}")
        ids = project.add_responses(
            prompt, [text, f"A plain answer to {name}."], source="m", settings=[{"d": 0}, {"d": 1}]
        )
        project.add_items([ids], kind="text")
    return project


def video(tmp_path: Path, colour: tuple[int, int, int], frames: int = 30) -> bytes:
    """A moving square, 1.5 s long."""
    from steepest.files.video import encoded

    pictures: list[Any] = []
    for i in range(frames):
        picture = np.full((160, 240, 3), 245, np.uint8)
        picture[60:100, 5 * i : 5 * i + 40] = colour
        pictures.append(picture)
    return encoded(pictures, 20.0)


@pytest.fixture
def clips(tmp_path: Path) -> Iterator[Project]:
    pytest.importorskip("imageio_ffmpeg")
    with text_project(tmp_path / "clips.db", prompts=0) as project:
        colours = [(200, 60, 40), (40, 110, 190), (60, 160, 80)]
        ids = [project.add_clip(clip(i, steps=29), video(tmp_path, colours[i % 3])) for i in range(11)]
        project.add_items(itertools.pairwise(ids), kind="clip")
        yield project


# Labelling


def test_thirty_pairs_with_keys_undo_and_a_reload(browser: Any, tmp_path: Path) -> None:
    with text_project(tmp_path / "films.db", prompts=30) as project, served(project) as (server, _):
        window = Window(browser, server.links[0].url)
        page = window.page
        assert "token" not in page.url  # in no history
        assert page.evaluate("document.activeElement.id") == "question"
        for number in range(12):
            chosen = window.texts[number % 2]
            window.press("12"[number % 2])
            assert window.status == f"Saved: Response {number % 2 + 1} is better."
            assert page.evaluate("document.activeElement.id") == "question"  # on the next pair
            judgement = project.judgements()[-1]
            texts = {r.id: r.text for r in project.responses()}
            assert (texts[judgement.ranking[0]], judgement.labeller) == (chosen, "Ana")
            assert judgement.ranking[0] == judgement.shown[number % 2]
            assert 0 <= judgement.ended - judgement.began < 60
            assert abs(judgement.ended - time.time()) < 60
        last, seen = project.judgements()[-1], window.texts
        window.press("u")
        assert window.status == "Undone: judge this one again."
        assert len(project.judgements()) == 11
        texts = {r.id: r.text for r in project.responses()}
        assert window.texts == [texts[id] for id in last.shown]
        again = window.texts
        page.reload()
        page.wait_for_selector("#comparison:not([hidden])")
        assert window.texts == again  # the same sides
        window.press("0")
        assert project.judgements()[-1].kind == "tie"
        assert window.texts == seen  # what was shown before the undo
        window.press("s")
        assert project.judgements()[-1].kind == "skip"
        while page.is_visible("#comparison"):
            window.press("1")
        assert page.inner_text("#notice-title") == "All done"
        assert page.inner_text("#count") == "30 judged, 0 to go"
        window.press("u")  # also from there
        window.press("2")
        assert len(project.judgements()) == 30
        assert [j.kind for j in project.history()].count("retract") == 2
        window.clean()


def test_two_windows_are_two_labellers(browser: Any, tmp_path: Path) -> None:
    with text_project(tmp_path / "p.db", prompts=6, labels_per_item=2) as project, served(project) as (server, _):
        ana = Window(browser, server.links[0].url, "Ana")
        ben = Window(browser, server.links[0].url, "Ben Ōkami")
        same = ana.context.new_page()  # another window of the same browser, with its cookie
        same.goto(server.links[0].url.partition("#")[0])
        same.fill("#name", "Eva")
        same.keyboard.press("Enter")
        same.wait_for_selector("#comparison:not([hidden]), #notice:not([hidden])")
        assert same.inner_text("#who") == "Eva"
        for number in range(6):
            ana.press("1")
            if number < 5:  # Eva holds one for the second label
                ben.press("2")
        assert ben.page.inner_text("#notice-title") == "All done"
        same.keyboard.press("0")
        same.wait_for_selector("#notice:not([hidden])")  # both labels of everything are there
        names = [j.labeller for j in project.judgements()]
        assert [names.count(name) for name in ("Ana", "Ben Ōkami", "Eva")] == [6, 5, 1]
        assert project.rows("SELECT count(*) FROM item WHERE open = 1") == [(0,)]
        ana.page.click("#open-progress")
        ana.page.wait_for_selector("#progress-dialog[open]")
        assert "Ben Ōkami" in ana.page.inner_text("#progress-rows")
        ana.until("document.querySelectorAll('#progress-agreement li').length > 0")
        assert "Krippendorff" in ana.page.inner_text("#progress-agreement")
        ana.shot("progress")
        accessible(ana)
        ana.page.keyboard.press("Escape")
        ana.clean()
        ben.clean()


def test_rankings_are_made_by_keys(browser: Any, tmp_path: Path) -> None:
    with (
        text_project(tmp_path / "p.db", prompts=2, responses=4, ask="ranking") as project,
        served(project) as (server, _),
    ):
        window = Window(browser, server.links[0].url)
        for key in "31":
            window.press(key)
        assert window.status == "1 is in place 2."
        window.press("Backspace")
        assert window.status == "Order so far: 3."
        window.page.keyboard.press("3")  # is placed already: nothing happens
        window.press("u")  # takes back the last one placed, as long as there is one
        assert window.status == "Nothing is placed."
        for key in "421":
            window.press(key)
        assert window.status == "Order: 4, 2, 1, 3. Enter saves it."  # the last one places itself
        window.shot("ranking")
        accessible(window)
        assert project.judgements() == []
        window.press("Enter")
        assert window.status == "Saved: order 4, 2, 1, 3."
        (judgement,) = project.judgements()
        assert (judgement.kind, judgement.ranking) == ("rank", tuple(judgement.shown[i] for i in (3, 1, 0, 2)))
        window.press("0")
        assert project.judgements()[1].kind == "tie"
        window.clean()


def test_a_lost_answer_is_sent_again(browser: Any, tmp_path: Path) -> None:
    """The server keeps a judgement, and its answer is lost; then it cannot be reached at all."""
    with text_project(tmp_path / "p.db", prompts=4) as project, served(project) as (server, _):
        window = Window(browser, server.links[0].url)
        calls: list[str] = []

        def lose(route: Any) -> None:
            calls.append(route.request.post_data)
            if len(calls) == 1:
                route.fetch()  # it reaches the server
                route.abort()
            elif len(calls) <= 3:
                route.abort()
            else:
                route.continue_()

        window.page.route("**/api/judge", lose)
        window.page.keyboard.press("1")
        window.until("document.getElementById('status').dataset.tone === 'warn'")
        assert window.status.startswith("Not saved yet")
        window.page.keyboard.press("2")  # a key meanwhile judges nothing
        window.until("document.getElementById('status').textContent.startsWith('Saved')")
        assert len(set(calls)) == 1
        assert len(calls) == 4
        assert len(project.history()) == 1
        window.wrong.clear()  # the browser reports the aborted requests
        window.clean()


def test_a_judgement_survives_a_reload_before_it_is_sent(browser: Any, tmp_path: Path) -> None:
    with text_project(tmp_path / "p.db", prompts=4) as project, served(project) as (server, _):
        window = Window(browser, server.links[0].url)
        chosen = window.texts[1]
        window.page.route("**/api/judge", lambda route: route.abort())
        window.page.keyboard.press("2")
        window.until("document.getElementById('status').dataset.tone === 'warn'")
        assert project.history() == []
        window.page.unroute("**/api/judge")
        window.page.reload()
        window.page.wait_for_selector("#comparison:not([hidden])")
        window.until("document.getElementById('count').textContent.startsWith('1 judged')")
        (judgement,) = project.judgements()
        assert {r.id: r.text for r in project.responses()}[judgement.ranking[0]] == chosen
        window.wrong.clear()
        window.clean()


def test_new_pairs_come_by_themselves(browser: Any, tmp_path: Path) -> None:
    with text_project(tmp_path / "p.db", prompts=0) as project, served(project) as (server, _):
        window = Window(browser, server.links[0].url)
        assert window.page.inner_text("#notice-title") == "Nothing to label yet"
        window.shot("nothing")
        with Project.open(tmp_path / "p.db") as elsewhere:  # as another process would
            ids = elsewhere.add_responses(
                elsewhere.add_prompt("Now?"), ["a", "b"], source="m", settings=[{"d": 0}, {"d": 1}]
            )
            elsewhere.add_items([ids], kind="text")
        window.page.wait_for_selector("#comparison:not([hidden])", timeout=10_000)
        assert window.page.inner_text("#prompt-body") == "Now?"
        window.clean()


def test_without_a_link_there_is_nothing(browser: Any, tmp_path: Path) -> None:
    with text_project(tmp_path / "p.db") as project, served(project) as (server, _):
        url = server.links[0].url
        for wrong in (url.partition("#")[0], url[:-5] + "wrong"):
            window = Window(browser, wrong, None)
            window.page.wait_for_selector("#notice:not([hidden])")
            assert window.page.inner_text("#notice-title") == "This link is no longer valid"
            assert window.page.is_hidden("#comparison")
            window.context.close()


# Untrusted text


def test_hostile_texts_are_texts(browser: Any, tmp_path: Path) -> None:
    with hostile_project(tmp_path / "p.db") as project, served(project) as (server, _):
        window = Window(browser, server.links[0].url)
        page = window.page
        for name, text in HOSTILE.items():
            shown = text.replace("\r", "")
            assert name in page.inner_text("#prompt-body")
            if len(text) > 20_000:
                assert all(len(t) < 30_000 for t in window.texts)
                page.click("text=Show all 1,050,000 characters")
            assert sorted(window.texts, key=len)[-1] == shown or shown in window.texts
            assert page.query_selector("#comparison script, #comparison img, #comparison style, #comparison a") is None
            boxes = [element.bounding_box() for element in page.query_selector_all(".card")]
            assert all(box["x"] >= 0 and box["x"] + box["width"] <= 1280 for box in boxes)
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            window.shot(f"hostile-{name}")
            window.press("1")
        window.clean()


def test_invisible_characters_can_be_revealed(browser: Any, tmp_path: Path) -> None:
    with text_project(tmp_path / "p.db", prompts=0) as project, served(project) as (server, _):
        texts = ["a\u202eb\u200bc\x1b[0m", "\U0001f469\u200d\U0001f680 and \u2764\ufe0f\n\tplain"]
        ids = project.add_responses(project.add_prompt("Which?"), texts, source="m", settings=[{"d": 0}, {"d": 1}])
        project.add_items([ids], kind="text")
        window = Window(browser, server.links[0].url)
        assert window.page.locator(".reveal").count() == 1  # an astronaut, a heart and a tab can be seen
        assert window.page.inner_text(".reveal") == "3 invisible characters"
        window.press("i")
        assert [m.text_content() for m in window.page.query_selector_all(".seen")] == ["U+202E", "U+200B", "U+001B"]
        window.shot("revealed")
        accessible(window)
        window.press("i")
        assert window.page.locator(".seen").count() == 0
        assert texts[0] in window.texts
        window.clean()


# Clips


def test_ten_pairs_of_clips_play_together(browser: Any, clips: Project) -> None:
    with served(clips) as (server, _):
        window = Window(browser, server.links[0].url)
        page = window.page
        both = "[...document.querySelectorAll('video')]"
        window.until(f"{both}.length === 2 && {both}.every(v => !v.paused && v.currentTime > 0.2)")
        times = page.evaluate(f"{both}.map(v => v.currentTime)")
        assert abs(times[0] - times[1]) < 0.15
        page.evaluate(f"{both}.forEach(v => v.addEventListener('seeked', () => window.looped = true))")
        window.until("window.looped")  # it begins again by itself
        window.until(f"{both}.every(v => !v.paused)")
        page.keyboard.press(" ")
        window.until(f"{both}.every(v => v.paused)")
        assert page.inner_text("#play-word") == "Play"
        page.focus("#scrub")
        page.evaluate("const s = document.getElementById('scrub'); s.value = 500; s.dispatchEvent(new Event('input'))")
        window.until(f"{both}.every(v => Math.abs(v.currentTime - v.duration / 2) < 0.06)")
        window.shot("clips")
        accessible(window)
        page.keyboard.press("ArrowRight")
        window.until(f"{both}.every(v => v.currentTime > v.duration / 2)")
        for _ in range(10):
            window.until(f"{both}.every(v => v.readyState >= 2)")
            window.press("1")
        assert page.inner_text("#notice-title") == "All done"
        assert len(clips.judgements()) == 10
        window.clean()


def test_reduced_motion_waits_to_be_asked(browser: Any, clips: Project) -> None:
    with served(clips) as (server, _):
        window = Window(browser, server.links[0].url, reduced_motion="reduce")
        both = "[...document.querySelectorAll('video')]"
        window.until(f"{both}.length === 2 && {both}.every(v => v.readyState >= 2)")
        time.sleep(0.5)
        assert window.page.evaluate(f"{both}.every(v => v.paused && v.currentTime === 0)")
        window.page.click("#play")
        window.until(f"{both}.every(v => !v.paused)")
        window.clean()


# Looks, keys and access


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390, 320])
def test_the_page_is_accessible(browser: Any, tmp_path: Path, scheme: str, width: int) -> None:
    with text_project(tmp_path / "film reviews.db", prompts=0) as project, served(project) as (server, _):
        prompt = project.add_prompt(
            [
                {"role": "system", "content": "You write short film reviews."},
                {"role": "user", "content": "Review a film about a lighthouse keeper who stops answering letters."},
            ]
        )
        texts = [
            "A quiet film that trusts its pictures. The keeper says little, the sea says the rest, and by the time the "
            "last letter is opened you will have written your own.\n\nSee it in a dark room.",
            "This movie is great! The actor is great and the plot is great. I liked the lighthouse because it was "
            "great. Overall it is a great movie and I would say that everybody should see it.",
        ]
        ids = project.add_responses(prompt, texts, source="m", settings=[{"d": 0}, {"d": 1}])
        project.add_items([ids], kind="text")
        size = {"width": width, "height": 800 if width > 400 else 780}
        window = Window(browser, server.links[0].url, "Ana", viewport=size, color_scheme=scheme)
        window.shot(f"{scheme}-{width}")
        accessible(window)
        assert window.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        window.page.click("#open-keys")
        window.shot(f"keys-{scheme}-{width}")
        accessible(window)
        window.page.click("#keys-close")
        window.press("1")
        window.shot(f"done-{scheme}-{width}")
        accessible(window)
        window.clean()


def test_everything_is_reached_by_tab_alone(browser: Any, tmp_path: Path) -> None:
    with text_project(tmp_path / "p.db", prompts=2) as project, served(project) as (server, _):
        window = Window(browser, server.links[0].url)
        reached: set[str] = set()
        for _ in range(30):
            window.page.keyboard.press("Tab")
            reached.add(window.page.evaluate("document.activeElement.id || document.activeElement.className"))
        assert {"choose", "tie", "skip", "undo", "open-keys", "open-progress", "prompt-body"} <= reached
        window.page.focus("#tie")
        window.press("Enter")
        assert project.judgements()[0].kind == "tie"
        window.clean()


def test_keys_can_be_changed_and_switched_off(browser: Any, tmp_path: Path) -> None:
    with text_project(tmp_path / "p.db", prompts=4) as project, served(project) as (server, _):
        window = Window(browser, server.links[0].url)
        page = window.page

        def change(what: str, key: str) -> str:
            page.click("#open-keys")
            page.click(f"[aria-label='Change the key for: {what}']")
            page.keyboard.press(key)
            said = page.inner_text("#keys-status")
            page.click("#keys-close")
            return said

        assert change("Choose or place 1", "j") == "Choose or place 1: J."
        assert "taken" in change("Equal", "s")
        assert change("Equal", "Escape") == "Nothing was changed."
        page.keyboard.press("1")
        window.press("j")
        assert len(project.judgements()) == 1
        page.reload()
        page.wait_for_selector("#comparison:not([hidden])")
        window.press("j")  # it is kept
        page.keyboard.press("Control+j")
        assert len(project.judgements()) == 2
        page.click("#open-keys")
        page.check("#keys-off")
        page.click("#keys-close")
        page.keyboard.press("j")
        page.wait_for_timeout(200)
        assert len(project.judgements()) == 2
        page.click("#tie")
        window.until("document.getElementById('status').textContent === 'Saved: equal.'")
        page.click("#open-keys")
        page.click("#keys-reset")
        page.click("#keys-close")
        window.press("1")
        assert len(project.judgements()) == 4
        window.clean()


def test_a_key_press_shows_the_next_pair_at_once(browser: Any, tmp_path: Path) -> None:
    """At ten thousand pairs, from the key press to the next pair on the page."""
    with text_project(tmp_path / "p.db", prompts=0, repeat_share=0.05) as project, served(project) as (server, _):
        with project.writing():
            for number in range(10_000):
                prompt = project.add_prompt(f"Prompt {number}")
                ids = project.add_responses(
                    prompt, [f"a {number}", f"b {number}"], source="m", settings=[{"d": 0}, {"d": 1}]
                )
                project.add_items([ids], kind="text")
        window = Window(browser, server.links[0].url)
        script = """() => new Promise((resolve) => {
            const body = document.getElementById('prompt-body'), before = body.textContent, from = performance.now();
            new MutationObserver((_, watcher) => {
                const other = body.textContent && body.textContent !== before;
                if (other) { watcher.disconnect(); resolve(performance.now() - from); }
            }).observe(body, {childList: true, subtree: true});
            document.body.dispatchEvent(new KeyboardEvent('keydown', {key: '1', bubbles: true}));
        })"""
        times: list[float] = []
        for _ in range(40):
            times.append(window.page.evaluate(script))
            window.until("!document.documentElement.classList.contains('busy')")
        median = sorted(times)[len(times) // 2]
        print(f"key press to next pair at 10,000 pairs: median {median:.1f} ms, worst {max(times):.1f} ms")
        assert median < 50.0  # 17 ms on two busy cores; Nagle's algorithm alone would make it 57
        window.clean()


# While an agent trains


def test_an_agent_trains_on_what_is_labelled_meanwhile(browser: Any, tmp_path: Path) -> None:
    """PPO on CartPole-v1 waits for three rounds of keys, and its page says so in between and at the end."""
    pytest.importorskip("imageio_ffmpeg")
    from steepest import Run
    from steepest.preferences.learned import LiveLabels
    from steepest.preferences.people import People

    asking = LiveLabels(labeller=People(project=tmp_path / "carts.db", port=0), labels=8, clip_steps=10)
    options: dict[str, Any] = {"num_envs": 4, "rollout_steps": 64, "total_steps": 2048, "eval_episodes": 0}
    notes: list[str] = []
    found: list[float] = []

    def train() -> None:
        with Run("ppo", "CartPole-v1", reward=asking, note=notes.append, compile="off", threads=1, **options) as run:
            found.extend(row["health/reward_labels"] for row in run if "health/reward_labels" in row)

    thread = threading.Thread(target=train, daemon=True)
    thread.start()
    deadline = time.monotonic() + 30
    while not any("#token=" in note for note in notes):
        assert time.monotonic() < deadline
        assert thread.is_alive()
        time.sleep(0.02)
    (link,) = (note for note in notes if "#token=" in note)
    window = Window(browser, link.partition(": ")[2])
    page = window.page
    titles: set[str] = set()
    page.wait_for_selector("#comparison:not([hidden])")
    assert page.inner_text("#count") == "0 of 8 labels, 2 to go now"
    accessible(window)
    while thread.is_alive() or page.is_visible("#comparison"):
        assert time.monotonic() < deadline + 30
        if page.is_visible("#comparison") and not page.evaluate("document.documentElement.classList.contains('busy')"):
            page.keyboard.press("1")
        elif page.is_visible("#notice"):
            titles.add(page.inner_text("#notice-title"))
        page.wait_for_timeout(20)
    window.until("document.getElementById('notice-title').textContent.startsWith('The run has ended')")
    assert "The agent is learning" in titles
    assert found[-1] >= 6
    with Project.open(tmp_path / "carts.db") as project:
        assert len(project.judgements()) == found[-1]
    window.wrong.clear()  # the browser reports that the server is gone
    window.clean()
