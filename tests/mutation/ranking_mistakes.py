"""Mistakes that a person could make with rankings, ties, thumbs, and rewards from labels, as in ``mutations``."""

from __future__ import annotations

Mistakes = dict[str, tuple[str, str]]

RANKING: Mistakes = {
    "Plackett-Luce of the other sign": (
        "rest - score, torch.zeros_like(score)",
        "score - rest, torch.zeros_like(score)",
    ),
    "chosen among those chosen before": (
        "(place.unsqueeze(-1) <= place) & (",
        "(place.unsqueeze(-1) >= place) & (",
    ),
    "the best not among those it is chosen from": (
        "(place.unsqueeze(-1) <= place) & (",
        "(place.unsqueeze(-1) < place) & (",
    ),
    "padding ranked along": ("real = place < _column(candidates)", "real = place < size"),
    "a candidate too few": ("real = place < _column(candidates)", "real = place + 1 < _column(candidates)"),
    "all places ranked whatever was said": (
        "torch.where(place < _column(places), rest",
        "torch.where(place < _column(candidates), rest",
    ),
    "only the best place counts": ("places = candidates if places is None else places", "places = 1"),
    "a mean over places": ("torch.zeros_like(score)).sum(-1)", "torch.zeros_like(score)).mean(-1)"),
    "no preference in Davidson's": (
        "return bradley_terry_loss(chosen_score, rejected_score) + _room",
        "return bradley_terry_loss(rejected_score, chosen_score) + _room",
    ),
    "a tie costs a preference nothing": (
        "rejected_score) + _room_for_ties(difference, tie_weight)",
        "rejected_score) + 0.0 * difference",
    ),
    "a tie without its weight": (" - torch.log(nu)", ""),
    "a tie as likely as its weight alone": ("return _log_worths(difference) + _room", "return _room"),
    "worths without the root": ("return 0.5 * size + softplus(-size)", "return size + softplus(-2.0 * size)"),
    "the smaller worth forgotten": ("return 0.5 * size + softplus(-size)", "return 0.5 * size"),
    "the tie weight squared": ("torch.log1p(tie_weight * torch", "torch.log1p(tie_weight * tie_weight * torch"),
    "no gradient to the tie weight": (
        "torch.log1p(tie_weight * torch.exp(-_log_worths(difference)))",
        "torch.log1p(torch.as_tensor(tie_weight).detach() * torch.exp(-_log_worths(difference)))",
    ),
    "thumbs exchanged": (
        "desirable, desirable_weight * torch.sigmoid(-gain)",
        "~desirable, desirable_weight * torch.sigmoid(-gain)",
    ),
    "KTO without a reference point": (
        "(log_prob - ref_log_prob.detach() - reference_kl.detach())",
        "(log_prob - ref_log_prob.detach())",
    ),
    "KTO's reference point added": (
        "ref_log_prob.detach() - reference_kl.detach()",
        "ref_log_prob.detach() + reference_kl.detach()",
    ),
    "gradient through the reference point": ("- reference_kl.detach())", "- reference_kl)"),
    "gradient into KTO's reference": (
        "log_prob - ref_log_prob.detach() - reference",
        "log_prob - ref_log_prob - reference",
    ),
    "KTO without beta": ("gain = kl_coef * (", "gain = 1.0 * ("),
    "a thumb down gains": ("undesirable_weight * torch.sigmoid(gain)", "undesirable_weight * torch.sigmoid(-gain)"),
    "one weight for both thumbs": (
        "undesirable_weight * torch.sigmoid(gain)",
        "desirable_weight * torch.sigmoid(gain)",
    ),
    "reference points below zero": (".mean(-1).clamp(min=0.0)", ".mean(-1)"),
    "reference points summed": (".mean(-1).clamp(min=0.0)", ".sum(-1).clamp(min=0.0)"),
    "gradient through the estimate": ("(log_prob - ref_log_prob).detach().mean", "(log_prob - ref_log_prob).mean"),
    "negative tie weights": ("and tie_weight < 0.0", "and tie_weight < -1.0"),
    "places beyond the candidates": ("if numbers != sorted(numbers) or numbers[0] < 1:", "if numbers[0] < 1:"),
}

AGREEMENT: Mistakes = {
    "an answer pairs with itself": (" - torch.diag_embed(counts)", ""),
    "units of many labellers count more": (
        "(together / (counts.sum(-1) - 1.0).view(-1, 1, 1)).sum(0)",
        "together.sum(0)",
    ),
    "chance with the unit itself": ("1.0 - (n.sum() - 1.0) * (observed", "1.0 - n.sum() * (observed"),
    "alpha of a nominal scale": (
        "distance = (middle.unsqueeze(-1) - middle).square()",
        "distance = 1.0 - torch.eye(kinds, dtype=F64)",
    ),
    "ranks at the upper edge": ("middle = n.cumsum(0) - 0.5 * n", "middle = n.cumsum(0)"),
    "distances not squared": ("(middle.unsqueeze(-1) - middle).square()", "(middle.unsqueeze(-1) - middle).abs()"),
    "units of one labeller count": ("counts = counts[enough]", "counts = counts + 0.0"),
    "kappa without chance": ("return (equal - chance) / (1.0 - chance)", "return equal"),
    "chance of one labeller twice": ("chance = (p * q).sum()", "chance = (p * p).sum()"),
    "Wald's interval": ("+ z * z / (4.0 * n * n))", ")"),
    "Wilson's centre at the share": ("centre, scale = p + z * z / (2.0 * n),", "centre, scale = p,"),
    "repeats judge": ('j.kind not in ("skip", "retract") and not j.repeat]', 'j.kind not in ("skip", "retract")]'),
    "kappa of any number of labellers": ("if len(table.labellers) == 2 and", "if len(table.labellers) >= 2 and"),
}

ANSWERS: Mistakes = {
    "ties lost": ('torch.tensor([j.kind == "tie" for j in said]', "torch.tensor([False for j in said]"),
}

SCORES: Mistakes = {
    "losses for wins": (
        "share = 0.5 if answer == TIE else float(answer == FIRST)",
        "share = 0.5 if answer == TIE else float(answer != FIRST)",
    ),
    "a tie is a win": ("share = 0.5 if answer == TIE else", "share = 1.0 if answer == TIE else"),
    "repeats counted": ("if judgement.repeat:\n            continue", "if False:\n            continue"),
    "scores not centred": ("centred = score - score.mean(-1, keepdim=True)", "centred = score + 1.0"),
    "undirected wins determine": (
        "return _reach(count > 0.0).all(-1).all(-1)",
        "return _reach((count > 0.0) | (count.mT > 0.0)).all(-1).all(-1)",
    ),
    "labels resampled, not prompts": (
        "tables = (drawn @ found.table.flatten(1))",
        "tables = (drawn @ found.table.flatten(1).mean(0, keepdim=True).expand(prompts, -1))",
    ),
    "resamples without scores left out": (
        "torch.where(resampled.isnan(), open_end, resampled)",
        "resampled.nan_to_num(0.0)",
    ),
    "too narrow an interval": (
        "(1.0 - share) / 2.0), (torch.inf, (1.0 + share) / 2.0)",
        "(1.0 - share)), (torch.inf, share)",
    ),
}

SELECTION: Mistakes = {
    "deviation for variance": (".var(0, correction=0)", ".std(0, correction=0)"),
    "scores for probabilities": ("torch.sigmoid(first_score - second_score).var", "(first_score - second_score).var"),
    "the least disputed first": ("descending=True, stable=True", "descending=False, stable=True"),
    "reserved ones disputed": ("rest = shuffled[~reserved[shuffled]]", "rest = shuffled"),
    "evaluation of what is learned": (
        "evaluation = shuffled[reserved[shuffled]][:apart]",
        "evaluation = shuffled[:apart]",
    ),
    "reserved in order": (
        "shuffled = torch.randperm(len(disagreement), generator=generator)",
        "shuffled = torch.arange(len(disagreement))",
    ),
    "members reserved, not groups": (
        "torch.unique(group, return_inverse=True)",
        "torch.unique(torch.arange(len(group)), return_inverse=True)",
    ),
}

CLIPS: Mistakes = {
    "a clip's mean": ("return reward.sum(-1)", "return reward.mean(-1)"),
    "ties are preferences": ("if bool(said.tie.any()):\n        pair = ", "if False:\n        pair = "),
    "rankings by their first two": (
        "return torch.where(said.size == 2, pair, plackett",
        "return torch.where(said.size >= 2, pair, plackett",
    ),
    "observations after the action": ("torch.as_tensor(np.array(array[:-1]))", "torch.as_tensor(np.array(array[1:]))"),
    "boxes not scaled": ("return torch.where(bounded, unit, flat).float()", "return flat.float()"),
    "choices not counted from their start": ("choice = flat.long() - torch.tensor(spec.start)", "choice = flat.long()"),
    "members normalised together": (
        "self.mean = each.mean(1, keepdim=True)",
        "self.mean = each.mean().expand_as(self.mean).clone()",
    ),
    "rewards not divided by their deviation": ("/ self.deviation.view(shape)).mean(0)", ").mean(0)"),
    "one draw for all members": (
        "torch.poisson(torch.ones((self.config.members, count)), generator=self.generator)",
        "torch.ones((self.config.members, count))",
    ),
    "ties expected where there are none": (
        "return self.log_tie.exp() if bool(said.tie.any()) else 0.0",
        "return self.log_tie.exp()",
    ),
    "the tie weight stays at one": ("return self.log_tie.exp() if bool(said.tie.any()) else 0.0", "return 1.0"),
    "ties right or wrong": (" & ~said.tie.view(-1, 1, 1)", ""),
    "draws not saved": ('self.generator.set_state(tensors["generator"].cpu())', "pass"),
}

LEARNED: Mistakes = {
    "the environment's reward shown": (
        "torch.where(rollout.valid, learned, 0.0)",
        "torch.where(rollout.valid, rollout.reward, 0.0)",
    ),
    "the environment's reward until labels come": (
        "return rollout._replace(reward=torch.zeros_like(rollout.reward)), metrics",
        "return rollout, metrics",
    ),
    "rows without a decision rewarded": ("torch.where(rollout.valid, learned, 0.0)", "learned"),
    "labels at one rate": ("math.log2(1.0 + progress)", "progress"),
    "all labels learned from": ("learned = ~labels.evaluation", "learned = labels.evaluation | True"),
    "mixed pairs asked": ("for side in (aside, ~aside)])", "for side in (aside, aside | True)])"),
    "the second is the first": ("torch.where(second.unsqueeze(-1), pairs.flip(-1), pairs)[said]", "pairs[said]"),
    "clips over the end of an episode": (
        "valid.unfold(0, steps, 1).all(-1)",
        "valid.unfold(0, steps, 1)[..., [0, -1]].all(-1)",
    ),
    "no clip ends with its episode": ("windows = valid.unfold", "windows = (valid & ~done).unfold"),
    "an episode a number late": ("done.long().cumsum(0) - done.long()", "done.long().cumsum(0)"),
    "episodes numbered anew in every rollout": ("ends = before + done", "ends = 0 * before + done"),
    "questions numbered from nought": ("for i, j in pairs.tolist()], self.asked)", "for i, j in pairs.tolist()], 0)"),
    "labels forgotten": ("new if self.labels is None else _joined(self.labels, new)", "new"),
    "other clips than compared": ("other.pairs + len(one.clips.action)", "other.pairs"),
}
