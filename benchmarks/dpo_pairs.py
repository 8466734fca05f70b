"""How DPO's error falls with the number of labelled pairs, on a language whose optimum is known exactly.

    python benchmarks/dpo_pairs.py [--seeds 5] [--pairs 100 300 1000 3000 10000 30000]

For every number of pairs, pairs are drawn from the reference and labelled by Bradley-Terry, a tabular policy is trained
on them by steepest.language.dpo, and its KL from the optimum pi_ref exp(r / beta) / Z is computed over all responses.
Beside it stands what the theory of maximum likelihood says for many pairs: tr(H I^-1) / (2 n), I being the information
of one pair about the log-ratios and H the curvature of the KL at the optimum.

Writes benchmarks/results/dpo_pairs.json and docs/images/dpo_pairs.png. About two minutes of one core.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steepest.exact import language as exact
from steepest.exact import preferences
from steepest.exact.token_batches import TabularLM, padded
from steepest.language.models.function_model import as_language_model
from steepest.language.scoring.reference import Reference
from steepest.language.training.dpo import DPO, DPOConfig, ScoredPairs
from steepest.types import PreferenceBatch

HERE = Path(__file__).resolve().parent
KL_COEF = 0.5
STEPS = 300
LEARNING_RATE = 0.1


def problem() -> tuple[exact.EnumerableLanguage, Tensor, Tensor]:
    """Two prompts, 15 responses of up to three tokens out of three; logits of the reference, scores."""
    language = exact.EnumerableLanguage(((1,), (2,)), (0.4, 0.6), vocab_size=3, eos=0, max_length=3)
    g = torch.Generator().manual_seed(0)
    reference = 0.5 * torch.randn(language.table_shape, generator=g, dtype=torch.float64)
    score = 0.5 * torch.randn(language.response_shape, generator=g, dtype=torch.float64)
    return language, reference, score


def labelled_pairs(
    language: exact.EnumerableLanguage, reference: Tensor, score: Tensor, n: int, seed: int
) -> PreferenceBatch:
    """Pairs drawn independently from the reference, labelled with the probabilities of Bradley-Terry."""
    g = torch.Generator().manual_seed(seed)
    x = torch.multinomial(language.prompt_weight, n, replacement=True, generator=g)
    chances = exact.response_log_probs(language, reference).exp()
    y = torch.multinomial(chances[x], 2, replacement=True, generator=g)
    preferred = preferences.preference_probs(score)[x, y[:, 0], y[:, 1]]
    first = torch.rand(n, generator=g, dtype=torch.float64) < preferred
    chosen, rejected = torch.where(first, y[:, 0], y[:, 1]), torch.where(first, y[:, 1], y[:, 0])
    return PreferenceBatch(padded(language, x, chosen), padded(language, x, rejected))


def error(language: exact.EnumerableLanguage, table: Tensor, optimum: Tensor) -> float:
    """KL(pi || pi*) over prompts, nats."""
    log_prob = exact.response_log_probs(language, table)
    return float(exact.prompt_mean(language, exact.kl_divergence(log_prob, optimum)))


def train(language: exact.EnumerableLanguage, reference: Tensor, batch: PreferenceBatch) -> Tensor:
    """The table of logits after full-batch training."""
    policy, before = (
        as_language_model(TabularLM(language, reference), vocab_size=language.vocab_size) for _ in range(2)
    )
    config = DPOConfig(kl_coef=KL_COEF, learning_rate=LEARNING_RATE, schedule="linear", warmup=0.0, epochs=STEPS)
    trainer = DPO(policy, config, (), reference=Reference(before, adapters_are_fresh=False))
    pairs = ScoredPairs(batch, trainer.reference_log_probs(batch))
    while not trainer.done:
        trainer.advance(*trainer.descend([pairs]))
    return trainer.named["function.table"].detach()


def predicted(ref_log_prob: Tensor, optimum: Tensor, score: Tensor) -> float:
    """n times the expected KL for many pairs: half of tr(H I^-1) of every prompt, whose weights cancel."""
    preference, weight = preferences.preference_probs(score), preferences.pair_weights(ref_log_prob)
    spread = weight * preference * (1.0 - preference) * KL_COEF**2  # (P, R, R), symmetric
    information = 2.0 * (torch.diag_embed(spread.sum(-1)) - spread)  # of differences: singular along a shift
    chance = optimum.exp()
    curvature = torch.diag_embed(chance) - chance.unsqueeze(-1) * chance.unsqueeze(-2)
    inverse = torch.linalg.pinv(information, hermitian=True)
    return 0.5 * float((curvature * inverse).sum())


def draw(rows: list[dict[str, Any]], start: float, coefficient: float, out: Path) -> None:
    """The picture of the docs: every seed, the mean, and the prediction."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style = {"font.size": 10.5, "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True}
    with mpl.rc_context(style):
        figure = Figure(figsize=(6.8, 4.3), layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        pairs = [row["pairs"] for row in rows]
        for row in rows:
            axes.plot([row["pairs"]] * len(row["kl"]), row["kl"], "o", color="#0072b2", alpha=0.35, markersize=4)
        axes.plot(pairs, [row["mean"] for row in rows], color="#0072b2", linewidth=2, label="DPO, mean over seeds")
        line = [coefficient / n for n in pairs]
        axes.plot(pairs, line, "--", color="#d55e00", label="maximum likelihood, many pairs: tr(H I⁻¹) / 2n")
        axes.axhline(start, color="#777777", linewidth=1, linestyle=":", label="reference policy")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("labelled pairs n")
        axes.set_ylabel("KL(π ‖ π*)  (nats)")
        axes.grid(visible=True, color="#e6e6e6")
        axes.legend(frameon=False, loc="lower left")
        axes.set_title("DPO's error falls as one over the number of pairs", loc="left", fontweight="bold")
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out, dpi=130)


def main() -> None:
    """Train on every number of pairs and every seed; write the figures and the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--pairs", type=int, nargs="+", default=[100, 300, 1000, 3000, 10_000, 30_000])
    parser.add_argument("--json", type=Path, default=HERE / "results" / "dpo_pairs.json")
    parser.add_argument("--image", type=Path, default=HERE.parent / "docs" / "images" / "dpo_pairs.png")
    options = parser.parse_args()
    began = time.monotonic()
    language, reference, score = problem()
    ref = exact.response_log_probs(language, reference)
    optimum = exact.optimal_log_probs(ref, score, KL_COEF)
    start, coefficient = error(language, reference, optimum), predicted(ref, optimum, score)
    rows: list[dict[str, Any]] = []
    for n in options.pairs:
        found = [
            error(language, train(language, reference, labelled_pairs(language, reference, score, n, seed)), optimum)
            for seed in range(options.seeds)
        ]
        rows.append({"pairs": n, "kl": found, "mean": statistics.mean(found), "predicted": coefficient / n})
        print(f"{n:7} pairs: KL {rows[-1]['mean']:.2e} nats, predicted {coefficient / n:.2e}", flush=True)
    result = {
        "kl_coef": KL_COEF,
        "steps": STEPS,
        "learning_rate": LEARNING_RATE,
        "prompts": len(language.prompts),
        "responses": len(language.tokens),
        "kl_of_the_reference": start,
        "predicted_times_pairs": coefficient,
        "results": rows,
        "seconds": round(time.monotonic() - began, 1),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(result, indent=2) + "\n")
    draw(rows, start, coefficient, options.image)


if __name__ == "__main__":
    main()
