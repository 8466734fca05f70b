"""From a model or an agent to a project that people can label, and from their labels to a trained model."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import steepest
from helpers_language import NOUNS, tiny
from helpers_preferences import NOW, say
from steepest.api import language
from steepest.api.clips import PER_EPISODE, Watched, play_clips
from steepest.api.preferences import sample, sample_clips
from steepest.cli import main
from steepest.environments import make_env
from steepest.errors import RunError, UsageError
from steepest.language.models.saving import save_model
from steepest.preferences.labelling import next_assignment
from steepest.preferences.store import Project

PROMPTS = [f"This {noun} was" for noun in NOUNS]


def label_all(path: Path, prefer: Callable[[str], float]) -> int:
    """Label everything: the text with more of something is better."""
    rng = random.Random(0)
    with Project.open(path) as project:
        texts = {r.id: r.text for r in project.responses()}
        number = 0
        while (found := next_assignment(project, "ana", NOW, rng)) is not None:
            scores = [prefer(texts[id]) for id in found.shown]
            say(project, found, number := number + 1, best=int(np.argmax(scores)))
        return number


def test_responses_are_sampled_once(tmp_path: Path) -> None:
    lm, path = tiny(), tmp_path / "p.db"
    given: dict[str, Any] = {"responses": 3, "seed": 5, "max_new_tokens": 8, "temperature": 0.9}
    found = sample(lm, [*PROMPTS, PROMPTS[0]], path, **given)
    assert (found.prompts, found.responses) == (len(PROMPTS), 3 * len(PROMPTS))
    assert 0 < found.unfinished <= found.responses  # 8 tokens are few
    with Project.open(path) as project:
        responses, items = project.responses(), project.items()
        assert [p.content for p in project.prompts()] == PROMPTS
    assert responses[1].settings == {
        "seed": 5, "draw": 1, "temperature": 0.9, "max_new_tokens": 8, "top_k": 0, "top_p": 1.0,
    }  # fmt: skip
    assert len({r.text for r in responses}) > 3
    assert len(items) <= 3 * len(PROMPTS)
    again = sample(lm, PROMPTS, path, **given)
    assert (again.prompts, again.responses, again.items) == (0, 0, 0)
    more = sample(lm, PROMPTS, path, **{**given, "seed": 6})
    assert (more.prompts, more.responses) == (0, 3 * len(PROMPTS))
    other = tmp_path / "q.db"
    sample(lm, PROMPTS, other, **given)
    with Project.open(other) as project:
        assert project.responses() == responses  # the same seed, the same texts


def test_arguments_of_the_template_are_part_of_the_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same prompt put in another way has other responses, beside the first."""
    lm = tiny(chat=True)
    template = lm.tokenizer.chat_template
    lm.tokenizer.chat_template = "{% if calm is defined and calm %}{{ 'Calmly. ' }}{% endif %}" + template
    try:
        model = save_model(lm, tmp_path / "model")
    finally:
        lm.tokenizer.chat_template = template
    rows, path = tmp_path / "rows.jsonl", tmp_path / "p.db"
    rows.write_text('{"prompt": [{"role": "user", "content": "Is it dull?"}]}')
    line = ["sample", str(model), str(rows), "--project", str(path), "--max-new-tokens", "8"]
    calm = ["--template-kwargs", '{"calm": true}']
    for words in (line, [*line, *calm], [*line, *calm]):
        assert main.main(words) == 0
    with Project.open(path) as project:
        plain, other = [r for r in project.responses() if r.settings["draw"] == 0]
    assert plain.text != other.text
    assert "template_kwargs" not in plain.settings
    assert other.settings["template_kwargs"] == {"calm": True}
    assert main.main([*line, "--template-kwargs", '{"clam": true}']) == 2
    assert "knows no argument 'clam'" in capsys.readouterr().err
    with pytest.raises(UsageError, match="none where the model is loaded already"):
        sample(lm, PROMPTS, path, template_kwargs={"calm": True})


def test_an_interrupted_sampling_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm, prompts = tiny(), [f"{noun} {i}" for i in range(10) for noun in NOUNS]  # 70: three parts
    draw, calls = language.draw_responses, []

    def interrupted(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return draw(*arguments, **options)

    monkeypatch.setattr(language, "draw_responses", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sample(lm, prompts, tmp_path / "p.db", max_new_tokens=4)
    sample(lm, prompts, tmp_path / "p.db", max_new_tokens=4)
    assert len(calls) == 2 + 2  # the first part was there
    sample(lm, prompts, tmp_path / "q.db", max_new_tokens=4)
    with Project.open(tmp_path / "p.db") as one, Project.open(tmp_path / "q.db") as other:
        assert [r.text for r in one.responses()] == [r.text for r in other.responses()]
        assert {i.members for i in one.items()} == {i.members for i in other.items()}


def test_equal_responses_are_not_compared(tmp_path: Path) -> None:
    found = sample(tiny(), PROMPTS, tmp_path / "p.db", responses=3, temperature=0.0, max_new_tokens=4)
    assert (found.responses, found.items) == (3 * len(PROMPTS), 0)
    assert found.unusable >= 2 * len(PROMPTS)


def test_all_of_a_prompt_are_ranked(tmp_path: Path) -> None:
    sample(tiny(), PROMPTS, tmp_path / "p.db", responses=4, ask="ranking", max_new_tokens=8)
    with Project.open(tmp_path / "p.db") as project:
        sizes = [len(i.members) for i in project.items()]
        assert len(sizes) == len(PROMPTS)
        assert set(sizes) <= {3, 4}  # two of four may be the same text


def test_a_chat_model_is_asked_in_its_template(tmp_path: Path) -> None:
    lm = tiny(chat=True)
    sample(lm, PROMPTS[:2], tmp_path / "p.db", max_new_tokens=4, system="Be brief.")
    sample(lm, PROMPTS[:2], tmp_path / "p.db", max_new_tokens=4, raw=True)
    with Project.open(tmp_path / "p.db") as project:
        first, _, third, _ = [p.content for p in project.prompts()]
    assert first == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": PROMPTS[0]}]
    assert third == PROMPTS[0]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"responses": 1}, "2 to 9"),
        ({"responses": 10}, "2 to 9"),
        ({"ask": "all"}, "pairs or ranking"),
        ({"temperature": -1.0}, "temperature"),
        ({"system": "x"}, "no chat template"),
        ({"max_new_tokens": 1000}, "context"),
    ],
)
def test_what_cannot_be_sampled_is_refused(tmp_path: Path, options: dict[str, Any], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        sample(tiny(), PROMPTS, tmp_path / "p.db", **options)


def test_from_a_model_to_a_reward_and_dpo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The commands of the page of documentation, one after another, with a labeller who likes the letter a."""
    save_model(tiny(), tmp_path / "model")
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": p}) + "\n" for p in PROMPTS))
    project, out = tmp_path / "p.db", tmp_path / "rows.jsonl"
    words = [tmp_path / "model", tmp_path / "prompts.jsonl", "--project", project, "-n", 3, "--max-new-tokens", 8]
    assert main.main(["sample", *map(str, words), "--quiet"]) == 0
    assert f"steepest label {project}" in capsys.readouterr().out
    assert main.main(["reward", str(tmp_path / "model"), str(project), "--out", str(tmp_path / "r")]) == 2
    assert "no preference yet" in capsys.readouterr().err
    count = label_all(project, lambda text: text.count("a"))
    assert count >= len(PROMPTS)
    common = ["--epochs", "1", "--batch-size", "4", "--quiet"]
    for verb in ("reward", "dpo"):
        words = [verb, str(tmp_path / "model"), str(project), "--out", str(tmp_path / verb), *common]
        assert main.main(words) == 0, capsys.readouterr().err
        assert (tmp_path / verb / "model").is_dir()
    assert main.main(["labels", "export", str(project), "--out", str(out)]) == 0
    assert main.main(["labels", "import", str(out), "--project", str(tmp_path / "q.db")]) == 0
    assert main.main(["labels", "show", str(tmp_path / "q.db"), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert shown["labellers"][0]["name"] == "ana"
    assert shown["judged"] == len(out.read_text().splitlines())


def test_a_project_of_another_model_goes_on(tmp_path: Path) -> None:
    """Two models in one project: their responses are compared each with its own; scores of models need both."""
    for number in range(2):
        save_model(tiny(seed=number), tmp_path / f"model{number}")
        sample(tmp_path / f"model{number}", PROMPTS, tmp_path / "p.db", max_new_tokens=6)
    with Project.open(tmp_path / "p.db") as project:
        assert {Path(r.source).name for r in project.responses()} == {"model0", "model1"}


# Clips


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "one"
    steepest.train("ppo", "CartPole-v1", total_steps=600, seed=0, out=path, num_envs=4)
    return path


def test_clips_of_an_agent_are_sampled(agent: Path, tmp_path: Path) -> None:
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
    found = sample_clips(agent, tmp_path / "p.db", clips=5, seconds=0.2, seed=3)
    assert (found.responses, found.items) == (5, 5)
    with Project.open(tmp_path / "p.db") as project:
        clips = project.clips()
        assert {c.env for c in clips} == {"CartPole-v1"}
        assert all(c.source.startswith(str(agent)) for c in clips)
        assert {c.steps for c in clips} == {10}  # 0.2 s at 50 steps a second
        assert all(np.shape(c.observations) == (11, 4) for c in clips)
        assert max(np.bincount([c.episode for c in clips])) <= PER_EPISODE
        (tmp_path / "clip.mp4").write_bytes(project.video(clips[0].id))
        count, seconds = imageio_ffmpeg.count_frames_and_secs(tmp_path / "clip.mp4")
        assert (count, round(seconds, 2)) == (11, 0.22)
        assert len({i.members for i in project.items()}) == 5
        before = [c.observations for c in clips]
    sample_clips(agent, tmp_path / "q.db", clips=5, seconds=0.2, seed=3)
    with Project.open(tmp_path / "q.db") as project:
        for one, other in zip(before, project.clips(), strict=True):
            np.testing.assert_array_equal(np.asarray(one), np.asarray(other.observations))
    again = sample_clips(agent, tmp_path / "p.db", clips=5, seconds=0.2, seed=3)
    assert again.responses == 0
    more = sample_clips("random", tmp_path / "p.db", clips=2, seconds=0.2, env="CartPole-v1")
    assert more.responses == 2
    with Project.open(tmp_path / "p.db") as project:
        mixed = [i.members for i in project.items() if {6, 7} & set(i.members)]
        assert any(min(pair) <= 5 for pair in mixed)  # those of the agent and of chance are compared


def test_a_clip_is_what_was_played(tmp_path: Path) -> None:
    """Observations and actions of a clip, played again, give the clip: nothing is shifted by a step."""
    pytest.importorskip("pygame")
    clips = [clip for clip, _ in play_clips("random", 3, env="Pendulum-v1", seconds=0.3, seed=1)]
    for clip in clips:
        obs = np.asarray(clip.observations)
        assert (len(obs), len(clip.actions), clip.actions.shape[1]) == (10, 9, 1)
        angle, speed = np.arctan2(obs[:, 1], obs[:, 0]), obs[:, 2]
        torque = np.clip(clip.actions[:, 0], -2.0, 2.0)
        after = np.clip(speed[:-1] + (15.0 * np.sin(angle[:-1]) + 3.0 * torque) * 0.05, -8.0, 8.0)
        np.testing.assert_allclose(speed[1:], after, rtol=1e-4, atol=1e-4)  # float32 observations
    assert len({(c.episode, c.start) for c in clips}) == 3


def test_stretches_are_drawn_from_the_whole_episode() -> None:
    pytest.importorskip("pygame")
    starts: list[int] = []
    batch = make_env("Pendulum-v1", 1, render_mode="rgb_array")
    batch.render = lambda: np.zeros((2, 2, 3), np.uint8)  # type: ignore[method-assign]
    for seed in range(30):
        watched = Watched(batch, 10, np.random.default_rng(seed))
        watched.reset(seed)
        for _ in range(200):
            watched.step(np.zeros((1, 1), np.float32))
        assert len(watched.kept) == PER_EPISODE
        assert len({s.start // 10 for s in watched.kept}) == PER_EPISODE  # none twice
        for stretch in watched.kept:
            assert (len(stretch.obs), len(stretch.actions), len(stretch.frames)) == (11, 10, 11)
        starts += [s.start for s in watched.kept]
    batch.close()
    assert 60 < np.mean(starts) < 130  # the middle of 0 to 190
    assert min(starts) < 10
    assert max(starts) > 170


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"clips": 0}, "at least 1"),
        ({"seconds": 0.0}, "seconds"),
        ({"seconds": 1000.0}, "seconds"),
        ({"pairs": 0}, "at least 1"),
        ({"env": None}, "in which environment"),
        ({"env": "CartPole-v9"}, "There is no environment"),
    ],
)
def test_clips_that_cannot_be_made_are_refused(tmp_path: Path, options: dict[str, Any], why: str) -> None:
    given: dict[str, Any] = {"clips": 2, "env": "CartPole-v1", "seconds": 0.2}
    with pytest.raises(UsageError, match=why):
        sample_clips("random", tmp_path / "p.db", **{**given, **options})


def test_episodes_shorter_than_a_clip_are_explained() -> None:
    pytest.importorskip("pygame")
    with pytest.raises(RunError, match="ask for shorter ones"):
        list(play_clips("random", 1, env="CartPole-v1", seconds=10.0))


def test_the_command_samples_clips(agent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("imageio_ffmpeg")
    project = str(tmp_path / "p.db")
    assert main.main(["sample", str(agent), "--clips", "3", "--seconds", "0.2", "--project", project]) == 0
    assert "3 new clips, 3 new comparisons" in capsys.readouterr().out
    assert main.main(["reward", "model", project]) == 2
    assert main.main(["sample", str(agent), "--project", project]) == 2
