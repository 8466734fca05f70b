"""What a project's judgements say of its labellers and models, in words. Loads torch: the page asks for it last."""

from __future__ import annotations

import torch

from steepest.preferences.agreement import Proportion, agreement
from steepest.preferences.scores import model_scores, wins
from steepest.preferences.store import Project


def labeller_measures(project: Project) -> list[str]:
    """Return how far labellers agree with each other and with themselves, a sentence each; what cannot be said is not.

    Verified:  tests/unit/test_preference_labelling.py::test_agreement_is_put_into_words
    """
    found = agreement(project.judgements())
    lines: list[str] = []
    if found.alpha is not None:
        lines.append(f"Labellers agree to {found.alpha:.2f} (Krippendorff's alpha, ordinal: 1 always, 0 as by chance).")
    if found.kappa is not None:
        lines.append(f"{' and '.join(found.labellers)} agree to {found.kappa:.2f} (Cohen's kappa).")
    if found.consistency is not None:
        lines.append(f"Asked again with the sides swapped, {_share(found.consistency)} answers were the same.")
    if found.left is not None:
        lines.append(f"Of preferences, {_share(found.left)} are for the left side; half without a bias.")
    return lines


def model_measures(project: Project) -> list[str]:
    """Return the scores of the models whose responses were compared with each other's, a line each; none for one model.

    Verified:  tests/unit/test_preference_labelling.py::test_models_are_scored_from_labels
    """
    items = {item.id for item in project.items() if item.kind == "text"}
    judgements = [j for j in project.judgements() if j.item in items]
    counted = wins(judgements, project.responses())
    if len(counted.models) < 2 or not bool(counted.table.any()):
        return []
    found = model_scores(counted, torch.Generator().manual_seed(0))
    lines = [
        f"{name}: score {score:+.2f} (95%: {low:+.2f} to {high:+.2f})"
        for name, score, low, high in zip(
            found.models, found.score.tolist(), found.low.tolist(), found.high.tolist(), strict=True
        )
    ]
    return [*lines, found.word] if found.word else lines


def _share(found: Proportion) -> str:
    """Return a share with its interval and the number that it is of."""
    return f"{found.share:.0%} of {found.number:,} (95%: {found.low:.0%} to {found.high:.0%})"
