"""Whole updates against the same algorithm written out plainly: loops, boolean indexing, torch.optim.

Two updates in a row in float64, so that statistics, moments and schedules of the first show in the second. Every
hyper-parameter is a short binary fraction: the agent keeps them in float32.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.distributions as td
from torch import Tensor, nn
from torch.func import functional_call

from helpers import F64, defining_gae, defining_vtrace, discrete, synthetic_rollout, to_float64, vector
from steepest.agents.agent import Agent
from steepest.algorithms.actor_critic import ActorCritic, ActorCriticConfig
from steepest.algorithms.ppo import PPO, PPOConfig
from steepest.algorithms.ppo_kl import PPOKL, PPOKLConfig
from steepest.algorithms.reinforce import REINFORCE, REINFORCEConfig
from steepest.algorithms.trpo import TRPO, TRPOConfig
from steepest.learner.step import autograd_gradient
from steepest.learner.trees import tree_map
from steepest.networks.inputs import Normalization, PolicyInput
from steepest.types import Rollout

STEPS, ENVS, CHOICES = 12, 4, 3
GAMMA, LAMBDA, EPSILON = 0.875, 0.75, 0.25
COMMON: dict[str, Any] = {
    "hidden_sizes": (6,),
    "rollout_steps": STEPS,
    "learning_rate": 2.0**-5,
    "learning_rate_schedule": "linear",
    "gamma": GAMMA,
    "value_coef": 0.75,
    "entropy_coef": 0.125,
    "max_gradient_norm": 0.5,
}
PPO_ONLY: dict[str, Any] = {
    "epochs": 3,
    "minibatches": 2,
    "gae_lambda": LAMBDA,
    "clip_epsilon": EPSILON,
    "clip_schedule": "constant",
}
KL_ONLY: dict[str, Any] = {"epochs": 3, "minibatches": 2, "gae_lambda": LAMBDA, "kl_coef": 0.5, "target_kl": 2.0**-7}
TRPO_ONLY: dict[str, Any] = {
    "hidden_sizes": (6,),
    "rollout_steps": STEPS,
    "gamma": GAMMA,
    "gae_lambda": LAMBDA,
    "learning_rate": 2.0**-5,
    "epochs": 3,
    "minibatches": 2,
    "max_kl": 2.0**-6,
    "cg_iterations": 60,
    "cg_damping": 2.0**-4,
    "line_search_steps": 6,
    "line_search_backtrack": 0.75,
}
"""Iterations enough to solve the system to rounding, as the dense solver does."""
LOOSE = 64.0
"""Nats: a limit that no trial comes near, since probabilities have a floor, after a step that is far too long."""
NORMALISED = {"normalize_obs": True, "normalize_reward": True}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"normalize_advantage": False},
    "normalised": NORMALISED,
    "schedules exchanged": {"learning_rate_schedule": "constant", "clip_schedule": "linear"},
    "clipped values": {"value_clip": 0.125},
    "stopped by the target KL": {"target_kl": 2.0**-9, **NORMALISED},
    "corrected by V-trace": {"off_policy_correction": "vtrace", **NORMALISED},
    "KL as printed in the notes": {"kl_direction": "new_old"},
    "searching": {"max_kl": 2.0, "cg_damping": 2.0**-8},
    "restoring": {"max_kl": 2.0, "cg_damping": 2.0**-8, "line_search_steps": 1},
    "unchecked": {"max_kl": 2.0, "cg_damping": 2.0**-8, "line_search_steps": 0},
    "refused for the surrogate alone": {"max_kl": LOOSE, "cg_damping": 2.0**-8},
    "thinned Fisher matrix": {"fisher_subsample": 2},
    "average reward": {"objective": "average", "gain_rate": 2.0**-2},
    "average reward, corrected by V-trace": {
        "objective": "average",
        "gain_rate": 2.0**-2,
        "off_policy_correction": "vtrace",
    },
}
PROGRESS = (0.25, 0.5)


def masked_rollout(agent: Agent, seed: int) -> Rollout:
    """Ragged experience with action masks, each of which allows what was done; nothing terminates for a gain."""
    rollout = synthetic_rollout(agent, STEPS, seed=seed, dtype=F64)
    g = torch.Generator().manual_seed(seed)
    mask = torch.rand((1, STEPS + 1, ENVS, CHOICES), generator=g) < 0.6
    taken = nn.functional.one_hot(rollout.action, CHOICES).to(torch.bool)
    mask[:, :-1] |= taken
    mask[:, -1, :, 0] = True
    obs = {"obs": 2.0 * rollout.obs["obs"] + 1.0}
    if getattr(agent.config, "objective", "discounted") == "average":
        never = torch.zeros_like(rollout.terminated)
        rollout = rollout._replace(truncated=rollout.truncated | rollout.terminated, terminated=never)
    return rollout._replace(obs=obs, action_mask=mask)


class Written:
    """The state of a training run, kept by hand."""

    def __init__(self, agent: Agent) -> None:
        self.config: Any = agent.config
        self.module = copy.deepcopy(agent.module)
        self.parameters = dict(self.module.named_parameters())
        for name, value in agent.parameters.items():
            self.parameters[name].data = value[0].clone()
        self.optimiser = torch.optim.Adam(self.module.parameters(), lr=1.0, eps=1e-5)
        self.generator = torch.Generator()
        self.generator.set_state(agent.generators[0].get_state())
        self.observations: list[Tensor] = []
        self.returns: list[float] = []
        self.running = [0.0] * ENVS
        self.average = getattr(agent.config, "objective", "discounted") == "average"
        self.gamma = 1.0 if self.average else GAMMA
        self.gain = 0.0
        self.rollouts = 0
        self.refused: list[tuple[float, float]] = []
        self.kl_coef = getattr(agent.config, "kl_coef", 0.0)

    def forward(self, obs: Tensor, mask: Tensor) -> tuple[td.Categorical, Tensor]:
        statistics = Normalization({}, {})
        if self.config.normalize_obs:
            seen = torch.cat(self.observations) if self.observations else torch.tensor([[-1.0] * 3, [1.0] * 3])
            seen = seen.to(F64)
            statistics = Normalization({"obs": seen.mean(0)}, {"obs": seen.var(0, correction=0)})
        output = self.module(PolicyInput({"obs": obs}, mask, None, None, None), statistics, True)
        return td.Categorical(logits=output.distribution.log_probs), output.value

    def scaled(self, rollout: Rollout) -> Tensor:
        """Rewards less the gain, or divided by the running discounted return's deviation, this rollout's included."""
        if self.average:
            self.rollouts += 1
            error = float(rollout.reward[rollout.valid].mean()) - self.gain
            self.gain += max(self.config.gain_rate, 1 / self.rollouts) * error
            return rollout.reward - self.gain
        if not self.config.normalize_reward:
            return rollout.reward
        for t in range(STEPS):
            for n in range(ENVS):
                if rollout.valid[t, n]:
                    self.running[n] = float(rollout.reward[t, n]) + GAMMA * self.running[n]
                    self.returns.append(self.running[n])
                    if rollout.terminated[t, n] or rollout.truncated[t, n]:
                        self.running[n] = 0.0
        return rollout.reward / (torch.tensor(self.returns, dtype=F64).var(correction=0) + 1e-8).sqrt()

    def advantages(self, rollout: Rollout, lam: float) -> tuple[Tensor, Tensor, Tensor]:
        """(advantage, old values, old log-probabilities), each (T, N)."""
        with torch.no_grad():
            obs, mask = rollout.obs["obs"], rollout.action_mask
            assert mask is not None
            policy, value = self.forward(obs.flatten(0, 1), mask.flatten(0, 1))
            value = value.view(STEPS + 1, ENVS)
            log_prob = policy.logits.view(STEPS + 1, ENVS, CHOICES)[:-1].gather(-1, rollout.action.unsqueeze(-1))
        flags = (rollout.terminated, rollout.truncated, rollout.valid)
        self.reward = self.scaled(rollout)
        return defining_gae(self.reward, value, *flags, self.gamma, lam), value[:-1], log_prob.squeeze(-1)

    def pinned(self, target: Tensor, value: Tensor, rollout: Rollout) -> Tensor:
        """Targets of differential values, lowered by a tenth of the values' own mean."""
        return target - 0.1 * value[rollout.valid].mean() if self.average else target

    def gain_figure(self) -> dict[str, float]:
        return {"gain": self.gain} if self.average else {}

    def corrected(self, rollout: Rollout, old_log_prob: Tensor) -> tuple[Tensor, Tensor]:
        """(advantage, target), each (T, N), by V-trace with the parameters as they are now."""
        with torch.no_grad():
            obs, mask = rollout.obs["obs"], rollout.action_mask
            assert mask is not None
            policy, value = self.forward(obs.flatten(0, 1), mask.flatten(0, 1))
            value = value.view(STEPS + 1, ENVS)
            log_prob = policy.logits.view(STEPS + 1, ENVS, CHOICES)[:-1].gather(-1, rollout.action.unsqueeze(-1))
        flags = (rollout.terminated, rollout.truncated, rollout.valid)
        v, q = defining_vtrace(log_prob.squeeze(-1) - old_log_prob, self.reward, value, *flags, self.gamma, LAMBDA)
        return q - value[:-1], self.pinned(v, value[:-1], rollout)

    def step(self, loss: Tensor, learning_rate: float, active: bool) -> float:
        """One step of Adam; the norm of the gradient before it is clipped."""
        self.optimiser.zero_grad()
        loss.backward()
        gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
        norm = float(torch.cat([g.flatten() for g in gradients]).norm())
        if active:
            for g in gradients:
                g *= min(1.0, self.config.max_gradient_norm / norm)
            self.optimiser.param_groups[0]["lr"] = learning_rate
            self.optimiser.step()
        return norm

    def rate(self, progress: float) -> float:
        return self.config.learning_rate * (1 - progress if self.config.learning_rate_schedule == "linear" else 1)

    def merge(self, rollout: Rollout) -> None:
        self.observations.append(rollout.obs["obs"][:-1][rollout.valid])


def standardised(x: Tensor) -> Tensor:
    return (x - x.mean()) / (x.std(correction=0) + 1e-8)


def written_ppo(run: Written, rollout: Rollout, progress: float) -> dict[str, float]:
    config = run.config
    advantage, old_value, old_log_prob = run.advantages(rollout, LAMBDA)
    target = run.pinned(advantage + old_value, old_value, rollout)
    epsilon = EPSILON * (1 - progress if config.clip_schedule == "linear" else 1)
    figures: list[dict[str, float]] = []
    orders = [torch.randperm(STEPS * ENVS, generator=run.generator) for _ in range(config.epochs)]
    active = True
    assert rollout.action_mask is not None
    first_target = target
    for number, index in enumerate(torch.cat(orders).split(STEPS * ENVS // config.minibatches)):
        if config.off_policy_correction == "vtrace" and number > 0 and number % config.minibatches == 0:
            advantage, target = run.corrected(rollout, old_log_prob)
        index = index[rollout.valid.flatten()[index]]
        pick = [x.flatten(0, 1)[index] for x in (rollout.obs["obs"], rollout.action_mask, rollout.action)]
        a, v_old, g, l_old = (x.flatten()[index] for x in (advantage, old_value, target, old_log_prob))
        policy, value = run.forward(pick[0], pick[1])
        if config.normalize_advantage:
            a = standardised(a)
        log_ratio = policy.log_prob(pick[2]) - l_old
        ratio = log_ratio.exp()
        surrogate = -torch.min(ratio * a, ratio.clip(1 - epsilon, 1 + epsilon) * a)
        regression = 0.5 * (value - g) ** 2
        if config.value_clip is not None:
            near = v_old + (value - v_old).clip(-config.value_clip, config.value_clip)
            regression = torch.max(regression, 0.5 * (near - g) ** 2)
        entropy = policy.entropy()
        kl = (ratio - 1 - log_ratio).mean().item()
        active = active and (config.target_kl is None or kl <= 1.5 * config.target_kl)
        loss = (surrogate + config.value_coef * regression - config.entropy_coef * entropy).mean()
        norm = run.step(loss, run.rate(progress), active)
        figures.append(
            {
                "policy_loss": surrogate.mean().item(),
                "value_loss": regression.mean().item(),
                "entropy": entropy.mean().item(),
                "approx_kl": kl,
                "clip_fraction": float(((ratio < 1 - epsilon) | (ratio > 1 + epsilon)).double().mean()),
                "gradient_norm": norm,
                "steps_taken": float(active),
            }
        )
    run.merge(rollout)
    means = {k: sum(f[k] for f in figures) / len(figures) for k in figures[0]}
    return {**means, **critic_figures(rollout, first_target, old_value), **run.gain_figure()}


def written_ppo_kl(run: Written, rollout: Rollout, progress: float) -> dict[str, float]:
    config = run.config
    advantage, old_value, old_log_prob = run.advantages(rollout, LAMBDA)
    target = first_target = run.pinned(advantage + old_value, old_value, rollout)
    assert rollout.action_mask is not None
    obs, mask, action = (x.flatten(0, 1) for x in (rollout.obs["obs"][:-1], rollout.action_mask[:-1], rollout.action))
    with torch.no_grad():
        old_logits = run.forward(obs, mask)[0].logits

    def divergence(new: td.Categorical, index: Tensor) -> Tensor:
        old = td.Categorical(logits=old_logits[index])
        return td.kl_divergence(old, new) if config.kl_direction == "old_new" else td.kl_divergence(new, old)

    figures: list[dict[str, float]] = []
    orders = [torch.randperm(STEPS * ENVS, generator=run.generator) for _ in range(config.epochs)]
    for number, index in enumerate(torch.cat(orders).split(STEPS * ENVS // config.minibatches)):
        if config.off_policy_correction == "vtrace" and number > 0 and number % config.minibatches == 0:
            advantage, target = run.corrected(rollout, old_log_prob)
        index = index[rollout.valid.flatten()[index]]
        a, g, l_old = (x.flatten()[index] for x in (advantage, target, old_log_prob))
        policy, value = run.forward(obs[index], mask[index])
        if config.normalize_advantage:
            a = standardised(a)
        log_ratio = policy.log_prob(action[index]) - l_old
        surrogate = -log_ratio.exp() * a + run.kl_coef * divergence(policy, index)
        regression = 0.5 * (value - g) ** 2
        entropy = policy.entropy()
        loss = (surrogate + config.value_coef * regression - config.entropy_coef * entropy).mean()
        norm = run.step(loss, run.rate(progress), active=True)
        figures.append(
            {
                "policy_loss": surrogate.mean().item(),
                "value_loss": regression.mean().item(),
                "entropy": entropy.mean().item(),
                "approx_kl": (log_ratio.exp() - 1 - log_ratio).mean().item(),
                "gradient_norm": norm,
            }
        )
    decided = rollout.valid.flatten().nonzero().flatten()
    with torch.no_grad():
        kl = divergence(run.forward(obs[decided], mask[decided])[0], decided).mean().item()
    used = run.kl_coef
    if kl < config.target_kl / 1.5:
        run.kl_coef /= 2
    elif kl > config.target_kl * 1.5:
        run.kl_coef *= 2
    run.merge(rollout)
    means = {k: sum(f[k] for f in figures) / len(figures) for k in figures[0]}
    return {**means, "kl": kl, "kl_coef": used, **critic_figures(rollout, first_target, old_value), **run.gain_figure()}


def written_one_step(run: Written, rollout: Rollout, progress: float) -> dict[str, float]:
    """REINFORCE, to the end of the episode less the baseline; with a lambda, the actor-critic."""
    config = run.config
    advantage, baseline, _ = run.advantages(rollout, getattr(config, "gae_lambda", 1.0))
    target = run.pinned(advantage + baseline, baseline, rollout)
    here = rollout.valid
    assert rollout.action_mask is not None
    policy, value = run.forward(rollout.obs["obs"][:-1][here], rollout.action_mask[:-1][here])
    a = standardised(advantage[here]) if config.normalize_advantage else advantage[here]
    policy_loss = -policy.log_prob(rollout.action[here]) * a
    regression = 0.5 * (value - target[here]) ** 2
    entropy = policy.entropy()
    loss = (policy_loss + config.value_coef * regression - config.entropy_coef * entropy).mean()
    norm = run.step(loss, run.rate(progress), active=True)
    run.merge(rollout)
    figures = {"policy_loss": policy_loss, "value_loss": regression, "entropy": entropy}
    return {
        **{k: x.mean().item() for k, x in figures.items()},
        "gradient_norm": norm,
        **critic_figures(rollout, target, baseline),
        **run.gain_figure(),
    }


def written_trpo(run: Written, rollout: Rollout, _: float) -> dict[str, float]:
    """The Fisher matrix as the dense Hessian of the KL, and a dense solve."""
    config = run.config
    advantage, old_value, old_log_prob = run.advantages(rollout, LAMBDA)
    target, here = run.pinned(advantage + old_value, old_value, rollout), rollout.valid
    assert rollout.action_mask is not None
    a = standardised(advantage[here]) if config.normalize_advantage else advantage[here]
    start = torch.cat([p.detach().flatten() for p in run.parameters.values()])

    def parts(vector: Tensor) -> dict[str, Tensor]:
        split = vector.split([p.numel() for p in run.parameters.values()])
        return {k: x.view_as(p) for (k, p), x in zip(run.parameters.items(), split, strict=True)}

    def policy(vector: Tensor, rows: Tensor) -> td.Categorical:
        view: Any = copy.copy(run)
        view.module = lambda *inputs: functional_call(run.module, parts(vector), inputs)
        assert rollout.action_mask is not None
        return view.forward(rollout.obs["obs"][:-1][rows], rollout.action_mask[:-1][rows])[0]

    def divergence(vector: Tensor, rows: Tensor) -> Tensor:
        old = policy(start, rows)
        return (old.probs * (old.logits - policy(vector, rows).logits)).sum(-1).mean()

    def surrogate(vector: Tensor) -> Tensor:
        log_prob = policy(vector, here).log_prob(rollout.action[here])
        return ((log_prob - old_log_prob[here]).exp() * a).mean()

    thinned = here & (torch.arange(STEPS) % config.fisher_subsample == 0).unsqueeze(1)
    fisher = torch.autograd.functional.hessian(lambda v: divergence(v, thinned), start)
    damped = fisher + config.cg_damping * torch.eye(len(start), dtype=F64)
    slope = torch.autograd.functional.jacobian(surrogate, start)
    x = torch.linalg.solve(damped, slope)
    step = (2.0 * config.max_kl / (x @ damped @ x)).sqrt() * x
    figures = {"surrogate_improvement": 0.0, "kl": 0.0, "accepted": 0.0}
    entropy, point = float(policy(start, here).entropy().mean().detach()), start
    trials = 0
    while trials < max(config.line_search_steps, 1) and figures["accepted"] == 0.0:
        trial = start + config.line_search_backtrack**trials * step
        gain, kl = (float(f.detach()) for f in (surrogate(trial) - surrogate(start), divergence(trial, here)))
        trials += 1
        if config.line_search_steps == 0 or (gain > 0 and kl <= config.max_kl):
            figures, point = {"surrogate_improvement": gain, "kl": kl, "accepted": 1.0}, trial
        else:
            run.refused.append((gain, kl))
    for name, part in parts(point).items():
        run.parameters[name].data = part.clone()
    value_losses: list[float] = []
    orders = [torch.randperm(STEPS * ENVS, generator=run.generator) for _ in range(config.epochs)]
    for index in torch.cat(orders).split(STEPS * ENVS // config.minibatches):
        index = index[here.flatten()[index]]
        _, value = run.forward(*(y[:-1].flatten(0, 1)[index] for y in (rollout.obs["obs"], rollout.action_mask)))
        loss = (0.5 * (value - target.flatten()[index]) ** 2).mean()
        run.optimiser.zero_grad()
        loss.backward()
        run.optimiser.param_groups[0]["lr"] = config.learning_rate
        run.optimiser.step()
        value_losses.append(loss.item())
    run.merge(rollout)
    return {
        **figures,
        "entropy": entropy,
        "gradient_norm": float(slope.norm()),
        "cg_residual": 0.0,
        "step_norm": float(step.norm()),
        "line_search_steps": float(trials),
        "value_loss": sum(value_losses) / len(value_losses),
        **critic_figures(rollout, target, old_value),
        **run.gain_figure(),
    }


def critic_figures(rollout: Rollout, target: Tensor, value: Tensor) -> dict[str, float]:
    g, v = target[rollout.valid], value[rollout.valid]
    explained = 1.0 - float((g - v).var(correction=0) / g.var(correction=0))
    return {"explained_variance": explained, "value_mean": float(v.mean())}


ALGORITHMS: dict[str, tuple[Any, Any, dict[str, Any], Any]] = {
    "ppo": (PPO, PPOConfig, COMMON | PPO_ONLY, written_ppo),
    "ppo_kl": (PPOKL, PPOKLConfig, COMMON | KL_ONLY, written_ppo_kl),
    "reinforce": (REINFORCE, REINFORCEConfig, COMMON, written_one_step),
    "actor_critic": (ActorCritic, ActorCriticConfig, COMMON | {"gae_lambda": LAMBDA}, written_one_step),
    "trpo": (TRPO, TRPOConfig, TRPO_ONLY, written_trpo),
}
SURROGATE = "refused for the surrogate alone"
TRPO_VARIANTS = ("searching", "restoring", SURROGATE, "unchecked", "thinned Fisher matrix")
AVERAGE = "average reward"
KL_VARIANT = "KL as printed in the notes"
CASES = [
    *[("ppo", v) for v in VARIANTS if v not in (KL_VARIANT, *TRPO_VARIANTS)],
    *[("ppo_kl", v) for v in ("plain", "normalised", "corrected by V-trace", KL_VARIANT)],
    *[("ppo_kl", v) for v in (AVERAGE, "average reward, corrected by V-trace")],
    *[("reinforce", v) for v in ("plain", "normalised")],
    *[("actor_critic", v) for v in ("plain", "normalised", AVERAGE)],
    *[("trpo", v) for v in ("plain", "normalised", *TRPO_VARIANTS, AVERAGE)],
]


@pytest.mark.parametrize(("algorithm", "variant"), CASES)
def test_updates_are_those_of_the_written_algorithm(algorithm: str, variant: str) -> None:
    kind, config, settings, written = ALGORITHMS[algorithm]
    agent = kind(config(**{**settings, **VARIANTS[variant]}), vector(3), discrete(CHOICES), num_envs=ENVS, seeds=(7,))
    to_float64(agent)
    run = Written(agent)
    taken: list[float] = []
    trials: list[tuple[float, float]] = []
    # Conjugate gradients stop at a residual of 4e-11 of the gradient, which the inverse enlarges by up to 2^8.
    smallest = 1e-8 if algorithm == "trpo" else 1e-11
    for seed, progress in enumerate(PROGRESS):
        rollout = masked_rollout(agent, 10 * seed)
        assert not rollout.valid.all()
        figures = agent.update(rollout, progress)
        expected = written(run, tree_map(lambda x: x[0], rollout), progress)
        assert figures.keys() == expected.keys()
        for name, value in expected.items():
            assert float(figures[name][0]) == pytest.approx(value, rel=1e-9, abs=smallest), name
        for name, value in agent.parameters.items():
            torch.testing.assert_close(value[0], run.parameters[name].detach(), rtol=1e-9, atol=smallest)
        taken.append(expected.get("steps_taken", 1.0))
        trials.append((expected.get("accepted", 1.0), expected.get("line_search_steps", 1.0)))
    if variant in TRPO_VARIANTS:
        assert (0.0 in {a for a, _ in trials}) == (variant in ("restoring", SURROGATE))
        assert max(n for _, n in trials) > 1.0 or variant != "searching"
    if variant == SURROGATE:
        assert run.refused
        assert all(gain <= 0.0 and kl < LOOSE for gain, kl in run.refused)
    if VARIANTS[variant].get("objective") == "average":
        assert abs(run.gain) > 1e-2
    if variant == "stopped by the target KL":
        assert 0.0 < min(taken) < 1.0
    if algorithm == "ppo_kl":
        assert float(agent.state["kl_coef"][0]) == run.kl_coef
        assert expected["kl_coef"] != settings["kl_coef"], "the first update should have changed it"
    if VARIANTS[variant].get("normalize_reward"):
        found = agent.state["return_variance"][0]
        torch.testing.assert_close(found, torch.tensor(run.returns, dtype=F64).var(correction=0), rtol=1e-9, atol=0)


def test_a_stopped_update_stays_stopped() -> None:
    """Once a minibatch was beyond the target KL, one within it changes nothing any more."""
    agent = to_float64(PPO(PPOConfig(**(COMMON | PPO_ONLY)), vector(3), discrete(CHOICES), num_envs=ENVS))
    rollout = tree_map(lambda x: x[0], masked_rollout(agent, 0))
    state = {k: x[0] for k, x in agent.state.items()}
    names = ("gamma", "gae_lambda", "learning_rate", "clip_epsilon", "value_coef", "entropy_coef", "max_gradient_norm")
    hyper = agent.hyper(**{name: getattr(agent.config, name) for name in names}, target_kl=float("inf"))
    with torch.no_grad():
        _, batch, _ = agent.prepare(state, rollout, hyper)
    index = torch.arange(STEPS * ENVS).view(2, -1)
    for active in (1.0, 0.0):
        start = {**state, "active": torch.tensor(active, dtype=F64)}
        new, figures = agent.gradient_steps(autograd_gradient, start, batch, index, hyper)
        assert float(figures["steps_taken"]) == active
        assert float(new["active"]) == active
        assert torch.equal(new["params"], state["params"]) == (active == 0.0)
