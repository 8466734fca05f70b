"""What docs/ says was measured is what the results hold, and every comparison compares what it says.

``python benchmarks/ablations.py --pages`` writes the pages.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from steepest.runs.options.resolve import resolve_options

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import ablations  # noqa: E402
import chapter  # noqa: E402
import open_bandit  # noqa: E402

RUNS: dict[str, Any] = ablations.read_results()["runs"]
PAGES = sorted(ablations.ABLATIONS)
PAIRS = [pair for details in ablations.ABLATIONS.values() for pairs in details.values() for pair in pairs]
STALE_BANDIT = "run: .venv/bin/python benchmarks/open_bandit.py FOLDER"
STALE = "run: .venv/bin/python benchmarks/ablations.py --pages"


@pytest.mark.parametrize("page", PAGES)
def test_a_page_says_what_was_measured(page: str) -> None:
    text = (ROOT / "docs" / f"{page}.md").read_text()
    assert ablations.filled(page, text, RUNS) == text, STALE


def test_the_overview_says_what_was_measured() -> None:
    text = (ROOT / "docs" / "on_policy.md").read_text()
    assert ablations.between("ablations", ablations.overview(RUNS), text) == text, STALE


def test_the_chapters_table_says_what_was_measured() -> None:
    text = (ROOT / "docs" / "on_policy.md").read_text()
    cases = json.loads(chapter.RESULTS.read_text())["cases"]
    assert list(cases) == list(chapter.CASES)
    assert ablations.between("chapter", chapter.table(cases), text) == text, "run: python benchmarks/chapter.py"


def test_the_table_of_real_clicks_says_what_was_measured() -> None:
    text = (ROOT / "docs" / "off_policy_evaluation.md").read_text()
    result = json.loads(open_bandit.RESULT.read_text())
    assert ablations.between("open bandit", open_bandit.table(result), text) == text, STALE_BANDIT
    assert [(c["campaign"], c["target"]) for c in result["cases"]] == list(
        itertools.product(open_bandit.CAMPAIGNS, open_bandit.POLICIES)
    )


def test_another_measurement_is_another_page() -> None:
    """Were a figure changed in the results alone, or on the page alone, the tests above would see it."""
    text = (ROOT / "docs" / "ppo.md").read_text()
    name = "ppo clip_epsilon=1000.0"
    other = {**RUNS, name: {**RUNS[name], "final_by_seed": [x + 1000.0 for x in RUNS[name]["final_by_seed"]]}}
    assert ablations.filled("ppo", text, other) != text


@pytest.mark.parametrize("page", PAGES)
def test_every_detail_says_whether_it_was_measured(page: str) -> None:
    table = (ROOT / "docs" / f"{page}.md").read_text().partition("## Details")[2]
    rows = re.findall(r"^\| (?!detail|settings)(.+?) \|.*\| (.*) \|$", table.partition("| detail |")[2], re.MULTILINE)
    assert set(ablations.ABLATIONS[page]) <= {detail for detail, _ in rows}
    for detail, here in rows:
        assert here, detail
        pairs = ablations.ABLATIONS[page].get(detail, [])
        measured = [pair for pair in pairs if ablations.measured(pair, RUNS)]
        assert len(re.findall(r"; (?:worse|better|no difference seen)", here)) == len(measured), detail


@pytest.mark.parametrize(("start", "change"), PAIRS, ids=lambda x: x if isinstance(x, str) else "-".join(x))
def test_a_comparison_changes_what_it_says_alone(start: str, change: dict[str, Any]) -> None:
    algorithm, env, options = ablations.settings(start, {})
    plain = [dataclasses.asdict(x) for x in resolve_options(algorithm, env, options)]
    changed = [dataclasses.asdict(x) for x in resolve_options(algorithm, env, {**options, **change})]
    before, after = plain[0] | plain[1], changed[0] | changed[1]
    assert {k for k in before if before[k] != after[k]} <= set(change)
    assert any(before[k] != after[k] for k in change), "the preset has it so already"


def test_nothing_of_the_chapter_is_left_to_measure() -> None:
    pairs = [p for page in ablations.CHAPTER for pairs in ablations.ABLATIONS[page].values() for p in pairs]
    assert [p for p in pairs if not ablations.measured(p, RUNS)] == [], "run: python benchmarks/ablations.py"


def test_the_results_say_that_their_runs_are_of_several_commits() -> None:
    assert json.loads(ablations.RESULTS.read_text()).get("note", "") == ablations.note(RUNS), STALE
    made: list[dict[str, Any]] = [{"commit": "a"}, {"commit": "a"}, {"commit": "b", "resolved": {}}]
    names = ["ppo", "ppo epochs=1", "ppo gae_lambda=1.0"]
    assert ablations.note(dict(zip(names[:2], made, strict=False))) == ""
    found = ablations.note(dict(zip(names, made, strict=True)))
    assert "of 2 commits" in found
    assert " 1 comparisons are between" in found
    assert " 2 runs have kept" in found


def test_a_run_keeps_what_made_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every setting, given or not, and the state of the sources."""
    tiny: dict[str, Any] = {"total_steps": 300, "seeds": 2, "eval_episodes": 1, "num_envs": 2, "rollout_steps": 16}
    monkeypatch.setitem(ablations.STARTS, "tiny", ("ppo", "CartPole-v1", {}))
    monkeypatch.setattr(ablations, "git", lambda *command: " ".join(command))
    found = json.loads(json.dumps(ablations.train("tiny", {**tiny, "minibatches": 1, "epochs": 1})))
    assert found["resolved"]["config"]["clip_epsilon"] == 0.2
    assert found["resolved"]["run"]["total_steps"] == 300
    assert found["describe"] == "describe --always --dirty"
    assert len(found["area_by_seed"]) == 2


def test_how_many_are_called_by_chance() -> None:
    """The 4 most extreme of 252 groupings are 1.6 % of them; 6 would be more than 2 %."""
    assert ablations.called_by_chance(58) == pytest.approx(58 * 4 / 252)
    figures = [float(2**i) for i in range(10)]  # no two groupings have the same means
    groupings = itertools.combinations(figures, 5)
    called = [ablations.chance(list(g), [x for x in figures if x not in g]) <= ablations.SIGNIFICANT for g in groupings]
    assert sum(called) == 4


@pytest.mark.parametrize("name", list(RUNS))
def test_every_run_was_made_with_these_options(name: str) -> None:
    run = RUNS[name]
    algorithm, env, options = ablations.settings(*ablations.all_runs()[name])
    assert (run["algorithm"], run["env"], run["options"]) == (algorithm, env, options)
    assert len(run["evaluations"]) == len(run["steps"]) == 10
    by_seed = list(zip(*run["evaluations"], strict=True))
    assert len(by_seed) == 5
    assert run["final_by_seed"] == [seed[-1] for seed in by_seed]
    assert run["area_by_seed"] == pytest.approx([sum(seed) / 10 for seed in by_seed], abs=6e-4)  # kept to 0.001


def test_chance_by_hand() -> None:
    apart, together = [1.0, 2.0, 3.0, 4.0, 5.0], [6.0, 7.0, 8.0, 9.0, 10.0]
    assert ablations.chance(apart, together) == 2 / 252  # this way or the other way round
    assert ablations.chance(apart, apart) == 1.0
    assert ablations.chance([0.0, 1.0], [2.0]) == 2 / 3  # 2 and 0 can stand alone at this distance or more, 1 cannot


def test_verdict_by_hand() -> None:
    low, high = {"area_by_seed": [1.0, 2.0, 3.0, 4.0, 5.0]}, {"area_by_seed": [6.0, 7.0, 8.0, 9.0, 10.0]}
    mixed = {"area_by_seed": [1.5, 2.5, 6.5, 4.5, 8.5]}
    assert ablations.verdict(low, high) == "better"
    assert ablations.verdict(high, low) == "worse"
    assert ablations.verdict(low, mixed) == "no difference seen"
