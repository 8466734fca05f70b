"""Mistakes that a person could make with datasets, as in ``mutations``: rows, layouts, recording, figures."""

from __future__ import annotations

Mistakes = dict[str, tuple[str, str]]

ROWS: Mistakes = {
    "scores from the expert": ("(returns - self.random) / (self.expert", "(returns - self.expert) / (self.expert"),
    "scores in shares": ("return 100.0 * (returns", "return (returns"),
    "an expert as bad as random accepted": ("and expert > random)", "and expert >= random)"),
    "lengths not compared": ("if array.ndim == 0 or len(array) != rows:", "if array.ndim == 0:"),
    "rewards of two axes accepted": ('for name in ("reward", "log_prob"):', 'for name in ("log_prob",):'),
    "finiteness of decided rows alone": ("None if name in observed else self.valid", "self.valid"),
    "finiteness of final actions too": ("None if name in observed else self.valid", "None"),
    "both flags accepted": ("both = self.terminated & self.truncated", "both = self.terminated & ~self.valid"),
    "ends of undecided rows accepted": ("if (ends & ~self.valid).any():", "if False:"),
    "no final row expected": ("wrong = expected != ~self.valid", "wrong = expected & self.valid"),
    "any undecided row is final": ("wrong = expected != ~self.valid", "wrong = ~expected & ~self.valid"),
    "a last row without an end accepted": ("if wrong.any() or self.valid[-1]:", "if wrong.any():"),
    "steps count final rows": ("return int(self.valid.sum())", "return len(self.valid)"),
    "episodes begin at final rows": ("[[0], last[:-1] + 1]), last", "[[0], last[:-1]]), last"),
    "returns over undecided rows": (
        "np.add.reduceat(np.where(self.valid, self.reward, 0.0)",
        "np.add.reduceat(np.where(~self.valid, self.reward, 0.0)",
    ),
    "episodes without their final observation": ("slice(first, last + 1)),", "slice(first, last)),"),
    "ends read from the final row": ("bool(self.terminated[last - 1])", "bool(self.terminated[last])"),
    "flags exchanged in an episode": ("bool(self.terminated[last - 1])", "bool(self.truncated[last - 1])"),
    "returns to go undiscounted": ("reward[t] + gamma * following", "reward[t] + following"),
    "returns to go across episodes": ("if going[t] else 0.0", "if True else 0.0"),
    "a piece skipped": (
        "slice(start, min(start + step, len(array)))",
        "slice(start + 1, min(start + step, len(array)))",
    ),
    "both flags mean truncated": (
        "= episode.truncated and not episode.terminated",
        "= episode.truncated",
    ),
    "flags at the final row": ('self.arrays["terminated"][end - 1] =', 'self.arrays["terminated"][end] ='),
    "log-probabilities of some episodes kept": ("self.arrays.pop(name, None)", "pass"),
    "whole rewards make all whole": ('if name == "reward" and array.dtype.kind != "f"', "if False"),
    "other shapes broadcast": ("if array.shape[1:] != rows.shape[1:]:", "if False:"),
    "fractions cut to whole numbers": ('if not np.can_cast(array.dtype, rows.dtype, "same_kind"):', "if False:"),
    "any number of observations": ("if len(array) != expected:", "if len(array) < steps:"),
    "episodes without an end accepted": ("if not (episode.terminated or episode.truncated):", "if False:"),
}

SAMPLING: Mistakes = {
    "final rows drawn": ("row = self.decided[np.stack(drawn).ravel()]", "row = np.stack(drawn).ravel()"),
    "everybody draws the first member's": (
        "generator=g).numpy() for g in generators]",
        "generator=generators[0]).numpy() for g in generators]",
    ),
    "actions in their own units": (
        "unit = (action - box.centre) / np.where(box.half_width > 0, box.half_width, 1.0)",
        "unit = action + 0 * box.centre",
    ),
    "actions not centred": ("(action - box.centre)", "action"),
    "half a share for the last integers of a box": ("(0.5 if integer else 0.0) * bounded", "0.0 * bounded"),
    "discrete actions from their start": ("counted = flat - np.array(spec.start)", "counted = flat"),
    "an infinite bound frees the other": (
        "slack_low, slack_high = (1e-6 * np.maximum(1.0, np.abs(bound)) for bound in (low, high))",
        "slack_low = slack_high = 1e-6 * np.maximum(np.abs(low), np.abs(high))",
    ),
    "lower bounds not checked": ("((action < low) | (action > high))", "(action > high)"),
    "upper bounds not checked": ("((action < low) | (action > high))", "(action < low)"),
    "fractions as choices": ('if action.dtype.kind == "f" and', "if False and"),
    "a fingerprint of the observations alone": (
        "for name in sorted(arrays):",
        "for name in sorted(arrays)[-1:]:",
    ),
    "the worst episodes kept": ("np.argsort(-returns,", "np.argsort(returns,"),
    "the next action is the last one": (
        'np.roll(self.flat["action"], -1, axis=0)',
        'np.roll(self.flat["action"], 1, axis=0)',
    ),
    "next actions beyond the end": ('np.roll(self.flat["valid"], -1)', 'self.flat["valid"]'),
}

LAYOUTS: Mistakes = {
    "timeouts terminate": (
        "truncated[-1] |= not terminated[-1]",
        "terminated = terminated | truncated\n    truncated[:] = False",
    ),
    "the recording's end is none": ("truncated[-1] |= not terminated[-1]", "pass"),
    "next observations not compared": ("if jumps.any():", "if False:"),
    "compared across ends": (" & ~ends[piece.start : until]", ""),
    "a step that timed out kept": ("taken = np.flatnonzero(~truncated)", "taken = np.arange(len(truncated))"),
    "the step before a cut goes on": (
        "truncated = followed_by_cut & ~terminated\n",
        "truncated = followed_by_cut & False\n",
    ),
    "the next episode's first observation as final": (
        "np.where(terminated, taken, taken + 1)[terminated",
        "np.where(terminated, taken + 1, taken + 1)[terminated",
    ),
    "the last observation stays where it was cut": (
        "np.where(terminated, taken, taken + 1)[terminated",
        "np.where(terminated, taken, taken)[terminated",
    ),
    "both flags accepted in a file": ("both = terminated & truncated", "both = terminated & False"),
    "any number is a flag": ("wrong = (flags != 0) & (flags != 1)", "wrong = flags < 0"),
    "masks read as solved": ('~_flags(source, arrays, "masks")', '_flags(source, arrays, "masks")'),
    "the final row of a trajectory is a step": (
        "taken = np.flatnonzero(~final_rows)",
        "taken = np.arange(len(final_rows))",
    ),
    "trajectories that end terminate": (
        "terminated = solved[taken]",
        "terminated = np.append(final_rows[1:], True)[taken]",
    ),
    "solving a task ends nothing": ("terminated = solved[taken]", "terminated = solved[taken] & False"),
    "valids ignored": ('if "valids" in arrays else last', "if False else last"),
    "final observations a row early": ("new[place[ends][part] + 1] = values", "new[place[ends][part]] = values"),
    "one row for every end before": ("np.concatenate([[0], np.cumsum(ends)[:-1]])", "np.cumsum(ends)"),
    "next observations written from the present": ("array, rows + 1)]", "array, rows)]"),
    "gathered from the file's beginning": ("[index[part] - piece.start]", "[index[part] - part.start]"),
    "Minari's both flags": ('bool(ended["truncations"][-1:].any())', 'bool(ended["terminations"][-1:].any())'),
    "flags in the midst of an episode": ("if flags[:-1].any():", "if False:"),
    "images as JPEG": ("jpeg_encoding=False", "jpeg_encoding=True"),
    "the time limit forgotten": ("spec.max_episode_steps = dataset.max_episode_steps", "pass"),
    "constructor arguments forgotten": ("spec.kwargs.update(dataset.env_kwargs or {})", "pass"),
    "references exchanged": (
        "Reference(float(low), float(high))",
        "Reference(float(high), float(low))",
    ),
    "a newer schema accepted": ('if description["schema"] > SCHEMA:', "if False:"),
    "anything fits into memory": ("size > SHARE_OF_MEMORY * free", "size > 1e9 * free"),
    "a cache of other data taken": ('.get("made_from") != stamp', '.get("made_from") is None'),
    "written over what is there": (
        '    if path.exists():\n        raise UsageError(f"{path} exists',
        '    if False:\n        raise UsageError(f"{path} exists',
    ),
    "objects unpickled": ("if dtype.hasobject:", "if False:"),
    "arrays of a cache read into memory": (
        'np.load(folder / f"{_stem(name)}.npy", mmap_mode="r", allow_pickle=False)',
        'np.load(folder / f"{_stem(name)}.npy", allow_pickle=False)',
    ),
    "discrete observations from zero": ("array = array + np.asarray(space.start, array.dtype)", "pass"),
    "images stay channels first": ("array = array.transpose(0, 2, 3, 1)", "pass"),
}

RECORDING: Mistakes = {
    "restarts end nothing": ("cut[before[before >= 0]] = True", "pass"),
    "restarts end the step after": ("np.searchsorted(taken, restarts) - 1", "np.searchsorted(taken, restarts)"),
    "the recording's end is no end": ("cut[-1:] = True", "pass"),
    "more steps than asked for": ("taken[:limit], ended[:limit], cut[:limit]", "taken, ended, cut"),
    "a cut at an end counts twice": ("(cut & ~ended)", "cut"),
    "the last observation is not the true next one": ("seen(taken[steps.ends] + 1)", "seen(taken[steps.ends])"),
    "the drawn action executed": ("        player.to_env(drawn),\n", "        drawn,\n"),
    "the mode has a log-probability": (
        "if self.deterministic:\n            return action, None",
        "if False:\n            return action, None",
    ),
    "draws for the mode": ("None if self.deterministic else noise", "noise"),
    "log-probabilities of the mode": ("policy.log_prob(action), memory", "policy.log_prob(policy.mode()), memory"),
    "one environment takes the rest": ("quota[: steps % n] += 1", "quota[0] += steps % n"),
    "one choice is as likely as all": (
        "floored_log_probs(torch.zeros(*leading, size), 0.0, legal)",
        "torch.zeros(*leading, size)",
    ),
    "masks ignored by the random policy": (
        "masks = [None] * len(spec.sizes) if mask is None",
        "masks = [None] * len(spec.sizes) if True",
    ),
    "density of one component": ("-spec.dimension * math.log(2.0)", "-math.log(2.0)"),
    "the random policy is normal": ("torch.erf(noise / math.sqrt(2.0))", "noise.clamp(-1.0, 1.0)"),
    "statistics left out": ("self.statistics = normalization(state)", "self.statistics = normalization({})"),
}

SUMMARY: Mistakes = {
    "episodes that were truncated count as terminated": (
        "terminated=float(ended / len(returns)),",
        "terminated=float(1 - ended / len(returns)),",
    ),
    "quartiles of tenths": ("(0.25, 0.5, 0.75)", "(0.1, 0.5, 0.9)"),
    "bounds exchanged": (
        "((unit <= -1 + 1e-6).mean(0), (unit >= 1 - 1e-6).mean(0))",
        "((unit >= 1 - 1e-6).mean(0), (unit <= -1 + 1e-6).mean(0))",
    ),
    "spaces not checked": ("DatasetRows(dataset, obs_spec(known[0]), action_spec(known[1]))", "pass"),
    "coverage is a count": ("np.exp(-(share * np.log(share)).sum())", "len(share)"),
    "coverage over filled cells": ("/ grid.size)", "/ len(share))"),
    "choices from zero": (
        "first, count = spec.start[component], spec.sizes[component]",
        "first, count = 0, spec.sizes[component]",
    ),
    "a cell less": ("if len(distinct) <= CELLS:", "if len(distinct) < 3:"),
    "final rows count among the log-probabilities": (
        "figures(dataset.log_prob[dataset.valid])",
        "figures(dataset.log_prob)",
    ),
}
