"""The statistics agree with values computed by hand; the pictures get drawn or say why not."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from steepest.errors import RunError, UsageError
from steepest.runs.view import plots
from steepest.runs.view.plots import compact_number, plot_curve, plot_runs
from steepest.runs.view.statistics import interquartile_mean, mean, stratified_bootstrap

PNG = b"\x89PNG\r\n\x1a\n"


def make_run(
    path: Path,
    algorithm: str,
    env: str,
    seeds: Iterable[int] = (0,),
    *,
    evaluate: bool = True,
    points: int = 30,
    config: dict[str, Any] | None = None,
    run: dict[str, Any] | None = None,
) -> Path:
    path.mkdir()
    description = {"algorithm": algorithm, "env": env, "config": config or {}, "run": run or {}}
    (path / "config.json").write_text(json.dumps(description))
    rows: list[dict[str, Any]] = []
    for step in range(100, 100 * points + 1, 100):
        for seed in seeds:
            row = {"step": step, "wall_seconds": step / 500, "seed": seed, "train/return_mean": step / 10 + seed}
            if step == 100:
                row["train/return_mean"] = None
            if evaluate and step % 1000 == 0:
                row |= {"eval/return_mean": step / 9, "eval/return_std": 5.0}
            rows.append(row)
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([7.0], 7.0),
        ([1.0, 5.0], 3.0),
        ([0.0, 3.0, 9.0], 4.0),  # floor(3/4) = 0: nothing is cut
        ([100.0, 1.0, 2.0, -50.0], 1.5),  # one cut from either end
        ([1.0, 2.0, 3.0, 4.0, 1000.0], 3.0),
        ([8.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], 4.5),  # 3 4 5 6 remain
    ],
)
def test_interquartile_mean_by_hand(values: list[float], expected: float) -> None:
    assert interquartile_mean(np.array(values)) == expected


def test_interquartile_mean_axes_and_refusals() -> None:
    table = np.array([[100.0, 0.0], [1.0, 4.0], [2.0, 8.0], [-50.0, 100.0]])
    np.testing.assert_array_equal(interquartile_mean(table, 0), [1.5, 6.0])
    np.testing.assert_array_equal(interquartile_mean(table.T, 1), [1.5, 6.0])
    with pytest.raises(ValueError, match="NaN"):
        interquartile_mean(np.array([1.0, np.nan]))
    with pytest.raises(ValueError, match="at least one"):
        interquartile_mean(np.zeros((0, 3)))


def test_bootstrap_of_two_runs_by_hand() -> None:
    # Resampling {0, 1} with replacement, the mean is 0, 1/2, 1 with probabilities 1/4, 1/2, 1/4: the central 40 % of
    # resamples are all 1/2, the central 60 % reach from 0 to 1.
    runs = [np.array([[0.0], [1.0]])]
    for interval, expected in [(0.4, (0.5, 0.5)), (0.6, (0.0, 1.0)), (0.95, (0.0, 1.0))]:
        low, high = stratified_bootstrap(
            runs, mean, resamples=20_000, interval=interval, generator=np.random.default_rng(0)
        )
        assert (low[0], high[0]) == expected


def test_bootstrap_approaches_the_normal_interval() -> None:
    # Mean of n = 400 values of standard deviation s: the 95 % interval is mean +- 1.96 s / sqrt(400).
    runs = np.random.default_rng(1).normal(3.0, 2.0, (400, 1))
    low, high = stratified_bootstrap([runs], mean, resamples=20_000, interval=0.95, generator=np.random.default_rng(2))
    half = 1.959964 * runs.std() / 20
    # 3 % of the half width: about four standard errors of a 2.5 % quantile from 20,000 resamples.
    np.testing.assert_allclose([low[0], high[0]], [runs.mean() - half, runs.mean() + half], atol=0.03 * half)


def test_bootstrap_resamples_within_strata() -> None:
    # Each stratum is constant, so a stratified resample never varies; pooling them first would.
    strata = [np.zeros((3, 2)), np.full((3, 2), 10.0)]
    low, high = stratified_bootstrap(strata, mean, resamples=200, generator=np.random.default_rng(0))
    np.testing.assert_array_equal([low, high], [[5.0, 5.0], [5.0, 5.0]])
    low, high = stratified_bootstrap([np.concatenate(strata)], mean, resamples=200, generator=np.random.default_rng(0))
    assert (low < 5).all()
    assert (high > 5).all()


def test_bootstrap_keeps_curves_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    # The second point is always twice the first, so it must be so for the bounds: the points share their resamples,
    # also when the columns are worked off in several pieces.
    first = np.random.default_rng(0).normal(size=(5, 1))
    runs = np.concatenate([first, 2 * first], axis=1)
    low, high = stratified_bootstrap(
        [np.tile(runs, 2000)], interquartile_mean, resamples=300, generator=np.random.default_rng(0)
    )
    np.testing.assert_allclose(low[1::2], 2 * low[::2], rtol=1e-12)
    np.testing.assert_array_equal(high[2:], np.tile(high[:2], 1999))


def test_bootstrap_refusals() -> None:
    generator = np.random.default_rng(0)
    with pytest.raises(ValueError, match="at least one run"):
        stratified_bootstrap([], mean, generator=generator)
    with pytest.raises(ValueError, match="at least one run"):
        stratified_bootstrap([np.zeros((0, 1))], mean, generator=generator)
    with pytest.raises(ValueError, match="interval"):
        stratified_bootstrap([np.zeros((1, 1))], mean, interval=1.0, generator=generator)


def test_resampling_is_exact_on_lines_and_averages_where_dense() -> None:
    grid = np.linspace(0.0, 10.0, 11)
    np.testing.assert_allclose(plots._resample(np.array([0.0, 4.0, 10.0]), np.array([0.0, 8.0, 20.0]), grid), 2 * grid)
    x = np.linspace(0.0, 10.0, 10_001)
    noisy = np.where(np.arange(10_001) % 2, 1.0, -1.0)
    assert np.abs(plots._resample(x, noisy, grid)).max() < 0.01  # the noise averages out


def test_smoothing_keeps_constants_and_lines() -> None:
    np.testing.assert_allclose(plots._smooth(np.full(100, 3.0)), 3.0)
    line = np.arange(100.0)
    np.testing.assert_allclose(plots._smooth(line)[5:-5], line[5:-5])
    np.testing.assert_array_equal(plots._smooth(np.array([4.0])), [4.0])


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (250, "250"), (50_000, "50k"), (1_500_000, "1.5M"), (2e9, "2B"), (-0.02, "-0.02"), (-2000, "-2k")],
)
def test_tick_labels(value: float, text: str) -> None:
    assert compact_number(value) == text


def test_plot_runs_writes_every_kind(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a", "ppo", "CartPole-v1", range(4))
    b = make_run(tmp_path / "b", "reinforce", "CartPole-v1", range(2))
    c = make_run(tmp_path / "c", "ppo", "HalfCheetah-v5")
    out = plot_runs([a, b, c], tmp_path / "out" / "picture", bootstrap=50)
    assert out == tmp_path / "out" / "picture.png"
    assert out.read_bytes().startswith(PNG)
    assert plot_runs([a], tmp_path / "a.pdf", x="steps", statistic="mean", bootstrap=50).read_bytes()[:4] == b"%PDF"
    assert b"<svg" in plot_runs([b], tmp_path / "b.svg", x="wall", bootstrap=50).read_bytes()


def test_plot_runs_draws_the_statistic_over_all_seeds_of_a_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Any] = []
    monkeypatch.setattr(plots, "_save", lambda figure, out: figures.append(figure) or out)
    a = make_run(tmp_path / "a", "ppo", "CartPole-v1", (0, 1))
    b = make_run(tmp_path / "b", "ppo", "CartPole-v1", (2, 3), points=20)
    plot_runs([a, b, a], tmp_path / "p.png", x="steps", statistic="mean", bootstrap=50)  # the same run once only
    (axes,) = figures[0].axes
    (line,) = axes.lines
    x, y = line.get_data()
    assert (x[0], x[-1]) == (200, 2000)  # what all four covered
    np.testing.assert_allclose(y, x / 10 + 1.5)
    band = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert band.min() >= 20
    assert band.max() <= 203
    assert axes.get_legend() is None  # one group needs none
    assert axes.get_title(loc="left") == "PPO on CartPole-v1"


def drawn(runs: list[Path], monkeypatch: pytest.MonkeyPatch, **options: Any) -> Any:
    """The figure that would be saved, laid out."""
    figures: list[Any] = []
    monkeypatch.setattr(plots, "_save", lambda figure, out: figures.append(figure) or out)
    plot_runs(runs, Path("p.png"), x="steps", bootstrap=50, **options)
    figures[0].draw_without_rendering()
    return figures[0]


def legend_texts(axes: Any) -> list[str]:
    return [" ".join(text.get_text().split()) for text in axes.get_legend().get_texts()]


def test_only_runs_of_one_configuration_are_pooled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(name: str, seed: int, rate: float, **settings: Any) -> Path:
        config = {"learning_rate": rate, "hidden_sizes": [64, 64], "clip_epsilon": 0.2}
        return make_run(
            tmp_path / name, "ppo", "CartPole-v1", (seed,), config=config, run={"seed": seed, "num_envs": 8, **settings}
        )

    runs = [run(f"a{seed}", seed, 1e-3, wandb=seed == 0, seeds=1) for seed in range(3)]
    runs += [run(f"b{seed}", seed, 3e-4, wandb=False, seeds=1) for seed in range(2)]
    figure = drawn(runs, monkeypatch)
    (axes,) = figure.axes
    assert legend_texts(axes) == ["PPO learning_rate=0.001 (3 seeds)", "PPO learning_rate=0.0003 (2 seeds)"]
    assert len(axes.lines) == 3  # one curve of three seeds, two thin lines
    other = make_run(tmp_path / "r", "reinforce", "CartPole-v1", config={"gamma": 0.9})
    atari = {"atari": {"sticky": 0.0, "size": 84}}
    more = [other, runs[0], run("c", 0, 1e-3, wandb=False, seeds=4, **atari)]
    (axes,) = drawn(more, monkeypatch).axes
    assert legend_texts(axes) == [
        "REINFORCE (1 seed)",  # what sets one algorithm's runs apart is none of the others' business
        "PPO atari.size=none atari.sticky=none (1 seed)",
        "PPO atari.size=84 atari.sticky=0.0 (1 seed)",
    ]


def test_the_legend_of_every_row_names_what_is_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a = make_run(tmp_path / "a", "ppo", "CartPole-v1", config={"gamma": 0.9})
    b = make_run(tmp_path / "b", "reinforce", "Hopper-v5")
    c = make_run(tmp_path / "c", "ppo", "Hopper-v5", config={"gamma": 0.8})
    figure = drawn([a, b, c], monkeypatch)
    assert [legend_texts(axes) for axes in figure.axes] == [
        ["PPO (1 seed)"],  # another environment's preset is no difference
        ["REINFORCE (1 seed)", "PPO (1 seed)"],
    ]
    colours = [{line.get_label(): line.get_color() for line in axes.lines} for axes in figure.axes]
    assert colours[0]["PPO (1 seed)"] == colours[1]["PPO (1 seed)"] != colours[1]["REINFORCE (1 seed)"]


def outside(legend: Any, figure: Any) -> bool:
    """Whether a legend lies wholly in the figure, and beside all axes."""
    box = legend.get_window_extent()
    inside_figure = figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 and figure.bbox.y0 <= box.y0
    return inside_figure and not any(box.overlaps(axes.get_window_extent()) for axes in figure.axes)


def test_legends_cover_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = [1e-3, 3e-4, 1e-4, 3e-5]
    runs = [
        make_run(tmp_path / f"{r}", "ppo", "CartPole-v1", (0, 1, 2), config={"learning_rate": r, "hidden_sizes": [8]})
        for r in rates
    ]
    figure = drawn(runs, monkeypatch)
    assert outside(figure.axes[-1].get_legend(), figure)
    for seeds in [(0,), (0, 1, 2)]:
        figures: list[Any] = []
        monkeypatch.setattr(plots, "_save", lambda figure, out, figures=figures: figures.append(figure) or out)
        plot_curve(make_run(tmp_path / f"curve-{len(seeds)}", "ppo", "CartPole-v1", seeds))
        (figure,) = figures
        figure.draw_without_rendering()
        (legend,) = figure.legends
        assert outside(legend, figure)
        assert figure.axes[0].get_legend() is None


def test_fewer_than_three_seeds_stay_single_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Any] = []
    monkeypatch.setattr(plots, "_save", lambda figure, out: figures.append(figure) or out)
    plot_runs([make_run(tmp_path / "a", "ppo", "CartPole-v1", (0, 1))], tmp_path / "p.png")
    for axes in figures[0].axes:
        assert len(axes.lines) == 2
        assert not axes.collections


def test_training_return_gives_way_to_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Any] = []
    monkeypatch.setattr(plots, "_save", lambda figure, out: figures.append(figure) or out)
    run = make_run(tmp_path / "a", "cql", "Hopper-v5")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line | {"train/return_mean": None}) + "\n" for line in lines))
    plot_runs([run], tmp_path / "p.png")
    assert figures[0].axes[0].get_ylabel() == "evaluation return per episode"


def test_plot_runs_refusals(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", "ppo", "CartPole-v1")
    out = tmp_path / "p.png"
    with pytest.raises(UsageError, match="at least one"):
        plot_runs([], out)
    with pytest.raises(UsageError, match=r"no run at .*does not exist"):
        plot_runs([tmp_path / "none"], out)
    with pytest.raises(UsageError, match=r"no config\.json"):
        plot_runs([tmp_path], out)
    with pytest.raises(
        UsageError, match=r"did you mean 'eval/return_mean'.*It has: eval/return_mean, eval/return_std, t"
    ):
        plot_runs([run], out, metric="eval/returns_mean")
    with pytest.raises(UsageError, match=r"\.png, \.pdf or \.svg"):
        plot_runs([run], tmp_path / "p.bmp")
    with pytest.raises(UsageError, match="between 0 and 1"):
        plot_runs([run], out, interval=95)
    with pytest.raises(UsageError, match="at least 1"):
        plot_runs([run], out, bootstrap=0)
    (run / "metrics.jsonl").write_text("")
    with pytest.raises(RunError, match="is empty"):
        plot_runs([run], out)
    (run / "config.json").write_text('{"algorithm": "ppo"}')
    with pytest.raises(RunError, match="does not say which env"):
        plot_runs([run], out)
    assert not out.exists()


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
@pytest.mark.parametrize("points", [2, 30])
@pytest.mark.parametrize("evaluate", [False, True])
def test_plot_curve(tmp_path: Path, seeds: tuple[int, ...], points: int, evaluate: bool) -> None:
    run = make_run(tmp_path / "a", "ppo", "CartPole-v1", seeds, evaluate=evaluate, points=points)
    assert plot_curve(run) == run / "curve.png"
    assert (run / "curve.png").read_bytes().startswith(PNG)


def test_plot_curve_without_common_steps(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", "ppo", "CartPole-v1")
    rows = [{"step": s, "wall_seconds": 1.0, "seed": s, "train/return_mean": 1.0} for s in (1, 2, 3)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plot_curve(run)
    plot_runs([run], tmp_path / "p.png")


def test_plot_curve_before_any_episode_ended(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", "ppo", "CartPole-v1", points=1)
    with pytest.raises(RunError, match="no episode ended"):
        plot_curve(run)


def test_heavy_packages_are_imported_only_when_used() -> None:
    script = (
        "import sys\n"
        "import steepest.runs.view.plots, steepest.runs.store.metrics\n"
        "import steepest.runs.view.progress, steepest.runs.store.folder\n"
        "print([name for name in ('matplotlib', 'rich', 'tensorboard', 'torch', 'wandb') if name in sys.modules])\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_what_is_only_measured_tells_no_runs_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = {
        "eval_every": 100,
        "eval_episodes": 5,
        "checkpoint_every": 50,
        "stop_at_return": 400.0,
        "total_steps": 9,
    }
    runs = [
        make_run(tmp_path / "a", "ppo", "CartPole-v1", (0,), run=measured),
        make_run(tmp_path / "b", "ppo", "CartPole-v1", (1,), run=measured | {"eval_every": 7, "eval_episodes": 100}),
        make_run(
            tmp_path / "c", "ppo", "CartPole-v1", (2,), run=measured | {"checkpoint_every": 3, "stop_at_return": 9}
        ),
    ]
    (axes,) = drawn(runs, monkeypatch).axes
    assert axes.get_legend() is None
    assert len(axes.lines) == 1, "the three are seeds of one configuration"


def test_runs_of_other_lengths_are_named_by_their_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short, long = {"run": {"total_steps": 3_000}}, {"run": {"total_steps": 100_000}}
    runs = [
        make_run(tmp_path / "one", "ppo", "CartPole-v1", (0,), **short),
        make_run(tmp_path / "three", "ppo", "CartPole-v1", range(3), **long),
        make_run(tmp_path / "more", "ppo", "CartPole-v1", (5,), **long),
        make_run(tmp_path / "other", "dqn", "CartPole-v1", (0,), **short),
    ]
    (axes,) = drawn(runs, monkeypatch).axes
    assert legend_texts(axes) == ["PPO (one) (1 seed)", "PPO (three, more) (4 seeds)", "DQN (1 seed)"]


def test_labels_name_runs_and_pool_those_of_one_label(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [make_run(tmp_path / n, "ppo", "CartPole-v1", (i,), config={"gamma": i}) for i, n in enumerate("abc")]
    (axes,) = drawn(runs, monkeypatch, labels=["with", "without", "with"]).axes
    assert legend_texts(axes) == ["with (2 seeds)", "without (1 seed)"]
    with pytest.raises(UsageError, match="labels are 2, and runs 3"):
        plot_runs(runs, tmp_path / "p.png", labels=["with", "without"])


@pytest.mark.parametrize(
    ("rows", "low", "high"),
    [
        (
            [{"eval/return_mean": 490.0, "eval/return_std": 30.0, "eval/return_min": 400.0, "eval/return_max": 500.0}],
            460,
            500,
        ),
        ([{"eval/return_mean": 10.0, "eval/return_std": 8.0, "eval/return_min": 9.0, "eval/return_max": 40.0}], 9, 18),
        ([{"eval/return_mean": 490.0, "eval/return_std": 30.0}], 460, 520),  # as earlier versions wrote it
        (
            [
                {"eval/return_mean": m, "eval/return_std": 1.0, "eval/return_min": m, "eval/return_max": m}
                for m in (2, 4)
            ],
            2,
            4,
        ),
    ],
)
def test_whiskers_promise_no_return_that_never_was(
    tmp_path: Path, rows: list[dict[str, float]], low: float, high: float
) -> None:
    path = make_run(tmp_path / "run", "ppo", "CartPole-v1", range(len(rows)), evaluate=False, points=1)
    lines = [{"step": 100, "wall_seconds": 1.0, "seed": seed, **row} for seed, row in enumerate(rows)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    _, centre, _, whiskers, _ = plots._evaluation_points(plots.read_run(path))
    assert (centre[0] - whiskers[0, 0], centre[0] + whiskers[1, 0]) == (low, high)
