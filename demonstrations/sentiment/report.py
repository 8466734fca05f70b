"""From the stages' records to one file of results, a picture, and the tables of docs/sentiment.md."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from demonstrations.sentiment.methods import Experiment
from demonstrations.sentiment.settings import METHODS, budget
from demonstrations.stages import write_json
from steepest.files.atomic import write_text_atomic
from steepest.files.style import COLOURS, FAINT_INK, INK, STYLE
from steepest.runs.store.folder import environment_report, finite_json

HERE = Path(__file__).resolve().parent
PAGE, IMAGE = HERE.parents[1] / "docs" / "sentiment.md", HERE.parents[1] / "docs" / "images" / "sentiment.png"
FILLED = re.compile(r"(?<=<!-- begin: results -->\n)(.*?)(?=<!-- end: results -->)", re.DOTALL)

ALT = (
    "Reward against KL from the reference for each method; beside it the second classifier's score, the length of "
    "responses and the share of distinct pairs of tokens"
)
BEST_OF = "Best of n"
FAMILY_COLOURS = {
    "DPO": COLOURS["blue"],
    "PPO, learned reward": COLOURS["vermilion"],
    "PPO, true reward": COLOURS["green"],
    "RLOO, learned reward": COLOURS["purple"],
    "Preferred-SFT": COLOURS["orange"],
    BEST_OF: COLOURS["sky blue"],
}
MARKERS = {0.05: "o", 0.2: "s", 1.0: "D", None: "^"}
COLUMNS = ("kl", "kl_k1", "reward", "learned_reward", "second_judge", "length", "distinct_2")

Points = list[dict[str, Any]]


def collect(experiment: Experiment) -> dict[str, Any]:
    """Everything that was found, with all that is needed to find it again."""
    e, seeds = experiment, experiment.variant.seeds
    shared = {"data": e.data, "language model": e.lm_record, "classifiers": e.judges_record,
              "prompts": e.prompts_record, "samples": e.samples_record, "best of n": e.best_of_record,
              "reference": e.start_record}  # fmt: skip
    each = {f"preferences, seed {s}": e.preferences(s) for s in seeds}
    each |= {f"reward model, seed {s}": e.reward(s) for s in seeds}
    methods = {m.name: {str(s): e.method(m, s) for s in seeds} for m in METHODS}
    trained = {f"{name}, seed {s}": r for name, records in methods.items() for s, r in records.items()}
    times = {
        name: {k: record[k] for k in ("seconds", "cpu_seconds")}
        for name, record in {**shared, **each, **trained}.items()
    }
    planned = budget(e.variant)
    return {
        "variant": asdict(e.variant),
        # Without where its files lie, which nobody else has.
        "command": f"python -m demonstrations.sentiment {e.variant.name} --jobs {e.threads}",
        "environment": environment_report(),
        "core_seconds_planned": {**planned, "total": sum(planned.values())},
        "core_seconds_used": sum(t["cpu_seconds"] for t in times.values()),
        "times": times,
        "shared": {name: record["result"] for name, record in {**shared, **each}.items()},
        "methods": {
            name: {seed: record["result"]["points"] for seed, record in records.items()}
            for name, records in methods.items()
        },
    }


def mean_points(by_seed: dict[str, Points]) -> Points:
    """Means over seeds, checkpoint by checkpoint."""
    return [
        {name: statistics.fmean(point[name] for point in points) for name in (*COLUMNS, "share")}
        for points in zip(*by_seed.values(), strict=True)
    ]


def best_of_points(results: dict[str, Any], by: str) -> dict[str, Points]:
    """Best-of-n's points by seed; ``by`` "learned" or "true"."""
    seeds = results["variant"]["seeds"]
    return {str(s): results["shared"][f"reward model, seed {s}"]["best_of_n"][by] for s in seeds}


# ---------------------------------------------------------------------------------------------------------------------
# The picture
# ---------------------------------------------------------------------------------------------------------------------


def draw(results: dict[str, Any], out: Path) -> None:
    """Reward against KL, a colour for each method, and beside it what would show that the reward is hacked."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11.0, 7.6), layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        grid = figure.add_gridspec(3, 3)
        main = figure.add_subplot(grid[:, :2])
        panels = [main, *(figure.add_subplot(grid[row, 2]) for row in range(3))]
        titles = {
            "reward": "true reward: the first classifier's standardised logit (asinh scale)",
            "second_judge": "second classifier, never trained on (asinh)",
            "length": "tokens of a response",
            "distinct_2": "share of distinct pairs of tokens",
        }
        for axes, (what, title) in zip(panels, titles.items(), strict=True):
            frontier(axes, results, what)
            axes.set_xscale("function", functions=root_scale())
            axes.set_xlim(left=0)
            if what in ("reward", "second_judge"):  # learned rewards gain a tenth of what the true one does
                axes.set_yscale("asinh", linear_width=0.3)
                low, high = axes.get_ylim()
                axes.set_yticks([t for t in (-1, -0.5, -0.2, 0, 0.2, 0.5, 1, 2, 5, 10, 20) if low <= t <= high])
                axes.yaxis.set_major_formatter("{x:g}")
                axes.minorticks_off()
            axes.set_title(title, loc="left", fontsize=10.5)
        for axes in (main, panels[-1]):
            axes.set_xlabel("KL from the reference (nats a response)")
        for axes in panels:
            axes.set_xticks(root_ticks(axes.get_xlim()[1], count=9 if axes is main else 5))
            axes.xaxis.set_major_formatter("{x:g}")
        figure.legend(handles=legend(results), loc="outside lower center", ncols=4, fontsize=9, handlelength=2.4)
        figure.suptitle(
            "Reward and distance from the reference, through training", x=0.01, ha="left", fontweight="bold"
        )
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out)


def root_scale() -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """The square root, on which both the first nat and the last have room."""
    import numpy as np

    return lambda x: np.sqrt(np.maximum(x, 0.0)), np.square


def root_ticks(largest: float, *, count: int) -> list[float]:
    """Round numbers from 0 to the largest, about evenly spaced on the scale of the square root."""
    places = [0.0]
    for i in range(1, count):
        exact = largest * (i / (count - 1)) ** 2
        size = 10.0 ** math.floor(math.log10(exact))
        rounded = max(m * size for m in (1, 2, 3, 4, 5, 6, 8, 10) if m * size <= exact * (1 + 1e-9))
        if rounded > places[-1]:
            places.append(rounded)
    return places


def frontier(axes: Any, results: dict[str, Any], what: str) -> None:
    """One panel: the mean over seeds from checkpoint to checkpoint, and each seed's as a thin mark."""
    start = results["shared"]["reference"]
    axes.axhline(start[what], color=FAINT_INK, linewidth=0.8, linestyle=":")
    for method in METHODS:
        by_seed, colour = results["methods"][method.name], FAMILY_COLOURS[method.family]
        for points in by_seed.values():
            axes.plot([p["kl"] for p in points], [p[what] for p in points], MARKERS[method.kl_coef], color=colour,
                      markersize=3.5, alpha=0.4, markeredgewidth=0)  # fmt: skip
        mean = mean_points(by_seed)
        axes.plot([0.0, *(p["kl"] for p in mean)], [start[what], *(p[what] for p in mean)], color=colour, linewidth=1.4)
        axes.plot(mean[-1]["kl"], mean[-1][what], MARKERS[method.kl_coef], color=colour, markersize=8,
                  markeredgecolor="white")  # fmt: skip
    for by, line in (("learned", "-"), ("true", "--")):
        by_seed = best_of_points(results, by)
        if what not in next(iter(by_seed.values()))[0]:
            continue
        for points in by_seed.values():
            axes.plot([p["kl"] for p in points], [p[what] for p in points], ".", color=FAMILY_COLOURS[BEST_OF],
                      markersize=4, alpha=0.4, markeredgewidth=0)  # fmt: skip
        columns = list(zip(*by_seed.values(), strict=True))
        axes.plot([c[0]["kl"] for c in columns], [statistics.fmean(p[what] for p in c) for c in columns], line,
                  color=FAMILY_COLOURS[BEST_OF], linewidth=1.4)  # fmt: skip


def legend(results: dict[str, Any]) -> list[Any]:
    """Colours are methods, marks are prices of the KL."""
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], color=c, linewidth=1.8, label=f) for f, c in FAMILY_COLOURS.items() if f != BEST_OF]
    lines += [Line2D([], [], color=FAMILY_COLOURS[BEST_OF], linestyle=style, linewidth=1.8, label=f"{BEST_OF}, {by}")
              for by, style in (("learned reward", "-"), ("true reward", "--"))]  # fmt: skip
    for value, mark in MARKERS.items():
        if value is not None:
            lines.append(
                Line2D([], [], color=INK, marker=mark, linestyle="", markersize=6, label=f"β = {value:g}, end")
            )
    seeds = len(results["variant"]["seeds"])
    if seeds > 1:
        lines.append(Line2D([], [], color=FAINT_INK, marker="o", linestyle="", markersize=3.5, alpha=0.6,
                            label=f"one of {seeds} seeds"))  # fmt: skip
    return lines


# ---------------------------------------------------------------------------------------------------------------------
# The page
# ---------------------------------------------------------------------------------------------------------------------


def tables(results: dict[str, Any]) -> str:
    """What docs/sentiment.md shows of the results: how it ran, the end of every method, and samples."""
    variant, shared, seeds = results["variant"], results["shared"], results["variant"]["seeds"]
    lm, judges, samples = shared["language model"], shared["classifiers"], shared["samples"]
    environment = results["environment"]
    accuracy = [shared[f"reward model, seed {s}"]["eval/accuracy"] for s in seeds]
    commit = ((environment.get("git") or {}).get("commit") or "unknown")[:10]
    start = shared["reference"]
    lines = [
        f"![{ALT}](images/{IMAGE.name})",
        "",
        f"`{results['command']}` at commit {commit}, on {environment['cpu']}, {environment['cpu_count']} cores, "
        f"{len(seeds)} seed{'s' * (len(seeds) > 1)}: {results['core_seconds_used']:,.0f} core-seconds, of "
        f"{results['core_seconds_planned']['total']:,.0f} planned.",
        "",
        f"The language model has {lm['parameters'] / 1e6:.1f} million weights and a perplexity of "
        f"{lm['eval/perplexity']:.1f} a token on held-out reviews. The two classifiers are right on "
        f"{judges['accuracy']['truth']:.0%} and {judges['accuracy']['second']:.0%} of held-out snippets; on the "
        f"reference's samples their scores correlate by {samples['correlation_of_judges']:.2f}. "
        f"{min(shared[f'preferences, seed {s}']['labels_that_follow_the_truth'] for s in seeds):.0%} of the labels "
        "follow the truth, and the learned reward agrees with "
        f"{min(accuracy):.0%}" + (f" to {max(accuracy):.0%}" if len(accuracy) > 1 else "") + " of held-out labels. "
        f"{samples['usable']:.0%} of the sampled texts give the tokens that they were drawn as.",
        "",
        "| method | β | KL | k1 | true reward | learned reward | second classifier | length | distinct-2 |",
        "|---|---|---|---|---|---|---|---|---|",
        f"| reference | | 0 | 0 | {start['reward']:.2f} | | {start['second_judge']:.2f} | {start['length']:.1f} | "
        f"{start['distinct_2']:.2f} |",
    ]
    for method in METHODS:
        by_seed = results["methods"][method.name]
        ends = [points[-1] for points in by_seed.values()]
        beta = "" if method.kl_coef is None else f"{method.kl_coef:g}"
        cells = [spread([end[name] for end in ends], 1 if name == "length" else 2) for name in COLUMNS]
        lines.append(f"| {method.family} | {beta} | {' | '.join(cells)} |")
    for by in ("learned", "true"):
        by_seed = best_of_points(results, by)
        last = [points[-1] for points in by_seed.values()]
        cells = [spread([p[name] for p in last], 1 if name == "length" else 2) if name in last[0] else ""
                 for name in COLUMNS]  # fmt: skip
        cells[0] = f"at most {last[0]['kl']:.2f}"
        lines.append(f"| best of {last[0]['n']}, {by} reward | | {' | '.join(cells)} |")
    error = statistics.fmean(p[-1]["standard_error"]["reward"] for m in results["methods"].values() for p in m.values())
    lines += [
        "",
        f"Means over seeds, with their smallest and largest, of {variant['held_out']} responses each to held-out "
        f"prompts; one seed's reward has a standard error of {error:.2f}.",
        "",
        "The same prompts with the same random numbers, seed 0, at the end of training; the true reward in brackets:",
        "",
    ]
    shown = [("reference", start["samples"])]
    shown += [(label(m.family, m.kl_coef), results["methods"][m.name][str(seeds[0])][-1]["samples"]) for m in METHODS]
    for i in range(min(3, len(start["samples"]))):
        lines += [f"**{quoted(start['samples'][i]['prompt'])}** ...", ""]
        for name, texts in shown:
            lines.append(f"- {name} [{texts[i]['reward']:+.1f}]:{quoted(texts[i]['response'])}")
        lines.append("")
    return "\n".join(lines)


def spread(values: Sequence[float], digits: int) -> str:
    """A mean, and the range where there are several."""
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def label(family: str, kl_coef: float | None) -> str:
    """A method in a few words."""
    return family if kl_coef is None else f"{family}, β = {kl_coef:g}"


def quoted(text: str) -> str:
    """Text of a model inside Markdown: one line, without what Markdown or HTML would read as its own."""
    return re.sub(r"([\\`*_<>\[\]|#~&])", r"\\\1", re.sub(r"\s+", " ", text))


def write(experiment: Experiment, *, publish: bool) -> dict[str, Any]:
    """Results, picture and tables into the experiment's folder; with ``publish`` into the documentation as well."""
    results = finite_json(collect(experiment))
    folder = experiment.root
    write_json(folder / "results.json", results)
    draw(results, folder / "frontier.png")
    write_text_atomic(folder / "tables.md", tables(results))
    if publish:
        write_json(HERE / f"results-{experiment.variant.name}.json", results)
        draw(results, IMAGE)
        filled = FILLED.sub(lambda _: tables(results) + "\n", PAGE.read_text(encoding="utf-8"))
        write_text_atomic(PAGE, filled)
    return results
