"""Labels that people give while an agent trains, on a page that the run itself serves.

Every pair is put into a preference project, where its answers are on disk before the page shows them as saved. The run
reads them from there: whatever happens before its next checkpoint, a run that resumes plays the same clips again, finds
them in the project with what was said of them, and asks only about the others. A clip is known by what was seen and
done in it, so that an answer never counts for another clip, and no clip is asked about twice.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from steepest.errors import RunError, UsageError
from steepest.files.video import encoded, require_video
from steepest.preferences.place import EXPOSED, Place
from steepest.preferences.records import Clip, Judgement, Settings
from steepest.preferences.store import Project
from steepest.types import BARE_OBS

if TYPE_CHECKING:
    from steepest.preferences.learned import Answer, Segment

LOOK_SECONDS = 0.2
"""Between two looks into the project for answers, which may also come through the page of another process."""

AT_ONCE = 10
"""Labels that people are called for, at least, once the agent learns: for a single one nobody wants to wait."""


LEASE_SECONDS = 60.0
"""How long a pair waits, in a new project, for a labeller who may have left: the run waits as long."""


@dataclass(frozen=True, kw_only=True)
class People(Place):
    """People who label on a page that the run serves; the other fields say where, and to whom."""

    project: str | Path
    """The project's file, which holds clips and answers; it is made where there is none."""


class Round(NamedTuple):
    """The pairs that a run waits for."""

    before: int  # asked before them
    number: int  # how many they are
    items: tuple[int, ...]  # those that are in the project by now


class LivePage:
    """The labeller of a run that asks people: answers come from the page, and from the project where they stand.

    Args:      env: the id of the environment; source: the run, as a project names it; fps: pictures of a clip, per
               second; labels: how many are asked for in all
    Raises:    UsageError where the project holds clips of another environment, or what serves the page or makes videos
               is not installed; RunError where the address is taken
    Verified:  tests/integration/test_live_labels.py::test_people_answer_while_it_trains
    """

    def __init__(self, people: People, *, env: str, source: str, fps: float, labels: int) -> None:
        require_video()
        try:
            from steepest.preferences.serving import Server
        except ImportError as error:
            raise UsageError(
                f"the labelling page needs {error.name}, which is not installed. Run: pip install 'steepest[label]'"
            ) from error
        self.env, self.source, self.fps, self.labels = env, source, fps, labels
        self.say: Callable[[str], None] = lambda _: None
        self.show: Callable[[str], None] = lambda _: None
        self.round = Round(0, 0, ())
        self.project = Project.create(people.project)
        try:
            if not self.project.rows("SELECT 1 FROM setting"):
                self.project.change_settings(Settings(lease_seconds=LEASE_SECONDS))
            others = [x for (x,) in self.project.rows("SELECT DISTINCT env FROM clip ORDER BY env") if x != env]
            if others:
                raise UsageError(
                    f"{people.project} holds clips of {', '.join(others)}, and the agent is to learn in {env}: give "
                    "another file"
                )
            self.server = Server(self.project, people, live=self.state)
        except BaseException:
            self.project.close()
            raise
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    # The page

    def open(self) -> None:
        """Serve the page from now on, and say once where it is."""
        if self._thread is not None:
            return
        self._thread = threading.Thread(target=self._serve, name="labelling page", daemon=True)
        self._thread.start()
        if self.server.place.is_exposed:
            self.say(EXPOSED)
        for link in self.server.links:
            self.say(f"{link.labeller or 'label here'}: {link.url}")

    def _serve(self) -> None:
        try:
            self.server.run()
        except BaseException as error:
            self._failure = error

    def close(self) -> None:
        """End the page. Further calls do nothing."""
        while self._thread is not None and self._thread.is_alive():
            self.server.stop()  # again, since it may only be about to begin
            self._thread.join(0.1)
        self.server.socket.close()
        self.project.close()

    def state(self) -> dict[str, Any]:
        """Return what the page says of the run."""
        before, number, items = self.round
        answered = sum(found is not None for found in self._said(items))
        return {
            "labels": self.labels,
            "answered": before + answered,
            "pending": number - answered,
            "making": len(items) < number,
        }

    # Asking

    def __call__(self, pairs: Sequence[tuple[Segment, Segment]], asked: int) -> list[Answer]:
        """Ask about pairs of clips, wait, and return the answers; see ``learned.Labeller``.

        Raises:    RunError where the page or the project fails; KeyboardInterrupt, as ever, ends the waiting
        Verified:  tests/integration/test_live_labels.py::test_people_answer_while_it_trains,
                   tests/integration/test_live_labels.py::test_what_was_answered_is_not_asked_again
        """
        items: list[int] = []
        members: list[tuple[int, int]] = []
        clips: dict[tuple[int, int], int] = {}
        now = time.time()
        self.round = Round(asked, len(pairs), ())
        try:
            for pair in pairs:  # one by one: the first can be judged while the last is made
                one, other = (self._clip(segment, clips) for segment in pair)
                # Before whatever else the project still asks, such as what an earlier run has left.
                self.project.add_items([(one, other)], kind="clip", selection="asked live", priorities=[now])
                items.append(self.project.item_of((one, other), kind="clip"))
                members.append((one, other))
                self.round = Round(asked, len(pairs), tuple(items))
                self._wait_for(items, len(pairs))
            while self._wait_for(items, len(pairs)):
                time.sleep(LOOK_SECONDS)
        finally:
            self.show("")
        said = [found or [] for found in self._said(items)]
        self.project.close_items(items)  # what was skipped, too: nobody waits for it any more
        self.round = Round(asked + len(pairs), 0, ())
        return [_answer(found, pair) for found, pair in zip(said, members, strict=True)]

    def _wait_for(self, items: Sequence[int], number: int) -> bool:
        """Say how many of a number of answers are there; return whether one is missing."""
        if self._failure is not None:
            raise RunError(f"the labelling page has ended: {self._failure!r}") from self._failure
        answered = sum(found is not None for found in self._said(items))
        self.show(f"waiting for labels: {answered} of {number}, on the page of the link above")
        return answered < number

    def _said(self, items: Sequence[int]) -> list[list[Judgement] | None]:
        """Return what stands of every item, None of one that still waits: for all its labels, or for a skip."""
        said: dict[int, list[Judgement]] = {item: [] for item in items}
        for judgement in self.project.judgements(items):
            if not judgement.repeat:
                said[judgement.item].append(judgement)
        waits = self.project.open_items(items)
        return [
            None if item in waits and all(j.kind != "skip" for j in found) else found for item, found in said.items()
        ]

    def _clip(self, segment: Segment, clips: dict[tuple[int, int], int]) -> int:
        """Return the id of a segment in the project, where it is added if it is not there."""
        place = segment.episode, segment.start
        if place not in clips:
            clip = self._recorded(segment)
            there = self.project.find_clip(clip)
            clips[place] = self.project.add_clip(clip, self._video(segment, clip.fps)) if there is None else there
        return clips[place]

    def _recorded(self, segment: Segment) -> Clip:
        parts, actions = segment.observations, segment.actions
        digest = hashlib.blake2b(digest_size=16)
        for array in (*(parts[name] for name in sorted(parts)), actions):
            digest.update(np.ascontiguousarray(array).tobytes())
        return Clip(
            env=self.env,
            source=self.source,
            episode=segment.episode,
            observations=parts[BARE_OBS] if parts.keys() == {BARE_OBS} else parts,
            actions=actions,
            # As it was, but for what would be over in less than a second.
            fps=min(self.fps, float(len(actions))),
            start=segment.start,
            settings={"steps": len(actions), "played": digest.hexdigest()},
        )

    @staticmethod
    def _video(segment: Segment, fps: float) -> bytes:
        return encoded([picture.unpacked() for picture in segment.pictures], fps)


def _answer(said: Sequence[Judgement], pair: tuple[int, int]) -> Answer:
    """Return what the labellers of a pair say together: more votes for one, as many for both, or nothing but skips."""
    votes = [0 if j.kind == "tie" else 1 if j.ranking[0] == pair[0] else -1 for j in said if j.kind != "skip"]
    if not votes:
        return "skip"
    return "first" if sum(votes) > 0 else "second" if sum(votes) < 0 else "tie"
