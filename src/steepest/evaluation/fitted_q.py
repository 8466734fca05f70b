"""Fitted Q evaluation: the value of a policy, by regression on a dataset of another one; conservative on request.

    repeat
      for a minibatch of the data, one step of Adam on the mean of
          1/2 (Q(s, a) - y)^2 + conservative_weight R(s)                    losses.value_loss, losses.conservative_gap
          y = r + gamma (1 - terminated) E_{a'~pi(.|s')} Q'(s', a')                           losses.q_learning_target
          R = E_pi Q(s, .) - Q(s, a), whose mean under pi bounds its value, or E_pi Q(s, .), a bound at every (s, a)
      Q' <- (1 - rate) Q' + rate Q

The policy is evaluated as the distribution that it is: over discrete actions expectations are sums, over continuous
ones a draw in every step. What it does is worked out once for every row of the data; next actions are of the next
observation.

Source: notes 2.1 (without a weight) and 2.1.1 (with one); Le, Voloshin & Yue 2019; Kumar et al. 2020, section 3.1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from steepest.agents.agent import Agent
from steepest.agents.initial import CPU, build, require_networks
from steepest.distributions import Categorical, Distribution, action_noise
from steepest.errors import UsageError
from steepest.experience.datasets.sampling import DatasetRows
from steepest.fields import Checked, Count, NonNegative, Positive, PositiveShare, Share, Whole
from steepest.files.space import require_space
from steepest.learner.trees import tree_map
from steepest.losses import best_response_value, conservative_gap, q_learning_target, value_loss
from steepest.networks.config import NetworkConfig
from steepest.networks.critics import QEnsemble
from steepest.networks.inputs import Normalization, PolicyInput
from steepest.networks.policies import DeterministicPolicy, unit_action
from steepest.seeding import stream_seed
from steepest.types import Obs

ROWS = 8_192
"""Rows that a network sees at a time."""
DRAWS = 32
"""Actions per observation that stand for a continuous policy's mean of Q, where a value is reported."""


@dataclass(frozen=True, kw_only=True)
class FittedQConfig(Checked):
    """Settings of fitted Q evaluation."""

    updates: Count = 20_000
    """Gradient steps."""
    gamma: Share = 0.99
    """Discount factor."""
    hidden_sizes: tuple[Count, ...] = (256, 256)
    """Widths of the hidden layers of Q."""
    layer_norm: bool = True
    """Normalise the hidden layers of Q."""
    learning_rate: Positive = 3e-4
    """Adam's step size at the start; it goes to 0 linearly, so that the result is not that of a last noisy step."""
    batch_size: Count = 256
    """Transitions per gradient step."""
    target_update_rate: PositiveShare = 0.005
    """Weight of the new in the moving average that the target network is."""
    conservative_weight: NonNegative = 0.0
    """Weight of the penalty, in units of the halved squared error; 0 is plain evaluation."""
    bound: Literal["expectation", "pointwise"] = "expectation"
    """Bound the mean of Q under the policy, or Q at every state and action."""
    seed: Whole = 0
    """Seed of the weights, the minibatches and the draws."""


class TargetPolicy(NamedTuple):
    """A policy at every row of a dataset: its distribution (R, ...), of actions as it draws them."""

    distribution: Distribution
    deterministic: bool
    """Take the mode alone."""


def policy_on(agent: Agent, rows: DatasetRows, *, deterministic: bool = False) -> TargetPolicy:
    """Return what an agent does at every row; a policy with noise only for exploring is its mode.

    Raises:    UsageError for a population, and for a recurrent policy, whose memory rows do not hold
    Verified:  tests/integration/test_ope.py::test_log_probabilities_are_those_that_were_recorded
    """
    if agent.members != 1:
        raise UsageError(f"the agent holds {agent.members} members; evaluate one of them: agent.member(i)")
    if agent.memory_size:
        raise UsageError("the agent is recurrent; its memory at a row of the data is not known")
    explores = isinstance(agent.module, DeterministicPolicy) or "buffers/epsilon" in agent.state
    state = {k: v[0] for k, v in agent.state.items()}
    found: list[Distribution] = []
    with torch.no_grad():
        for part in _parts(np.arange(rows.length)):
            obs = _obs(rows, part)
            inputs = PolicyInput({k: x.to(agent.device) for k, x in obs.items()}, None, None, None, None)
            found.append(agent.forward(state["params"], state, inputs, with_value=False).distribution)
    joined: Distribution = tree_map(lambda *x: torch.cat([part.cpu() for part in x]), *found)
    return TargetPolicy(joined, deterministic or explores)


class FittedQ:
    """A Q-function of one policy on one dataset, ``fit`` to it.

    Verified:  tests/exact/test_fitted_q.py::test_it_finds_the_value_on_the_empirical_model,
               tests/exact/test_fitted_q.py::test_conservative_forms_find_their_fixed_points
    """

    def __init__(self, agent: Agent, rows: DatasetRows, policy: TargetPolicy, config: FittedQConfig) -> None:
        self.rows, self.policy, self.config = rows, policy, config
        self.action_spec = agent.action_spec
        if self.action_spec.kind not in ("box", "discrete"):
            raise UsageError(f"fitted Q evaluation takes one discrete action or a box; this is {self.action_spec.kind}")
        self.squashes = agent.action_map.squash == "tanh"
        ranges = zip(self.action_spec.low, self.action_spec.high, strict=True)
        # In units of half the range; a component without two bounds keeps its own units.
        self.limit = torch.tensor([1.0 if math.isfinite(high - low) else math.inf for low, high in ranges])
        self.generator = torch.Generator().manual_seed(stream_seed(config.seed, "fitted q"))
        network = NetworkConfig(hidden_sizes=config.hidden_sizes, activation="relu")
        box = self.action_spec.kind == "box"

        def make() -> dict[str, Any]:
            shape: Any = {"actions": self.action_spec.dimension} if box else {"choices": self.action_spec.sizes[0]}
            shape["layer_norm"] = config.layer_norm
            return {"": QEnsemble(network, agent.obs_spec, None, critics=1, **shape)}

        require_networks(config.hidden_sizes)
        self.q_network, self.target = (build(make, config.seed, CPU)[""] for _ in range(2))
        require_space(
            12 * config.batch_size * sum(config.hidden_sizes),  # outputs, their gradients, and those of the target
            f"a gradient step on {config.batch_size:,} transitions",
            "give a smaller batch_size",
        )
        moments = {k: [x.float() for x in m] for k, m in rows.moments().items()}
        self.statistics = Normalization({k: m[0] for k, m in moments.items()}, {k: m[1] for k, m in moments.items()})

    def fit(self) -> float:
        """Take all gradient steps; return the mean loss of the last tenth."""
        config = self.config
        optimizer = torch.optim.Adam(self.q_network.parameters(), lr=config.learning_rate)
        losses: list[float] = []
        for step in range(config.updates):
            for part in optimizer.param_groups:
                part["lr"] = config.learning_rate * (1.0 - step / config.updates)
            draw = torch.randint(len(self.rows.decided), (config.batch_size,), generator=self.generator).numpy()
            loss = self.loss(self.rows.decided[draw])
            optimizer.zero_grad()
            loss.backward()  # pyright: ignore[reportUnknownMemberType]
            optimizer.step()
            with torch.no_grad():
                for slow, fast in zip(self.target.parameters(), self.q_network.parameters(), strict=True):
                    slow.lerp_(fast, config.target_update_rate)
            if step >= 0.9 * config.updates:
                losses.append(float(loss.detach()))
        return float(np.mean(losses))

    def loss(self, row: Any) -> Tensor:
        """Return the mean loss over transitions that begin at these rows, ()."""
        config = self.config
        batch = self.rows.transitions(row, np.zeros_like(row), gamma=config.gamma)
        with torch.no_grad():
            following = self._expected(self.target, row + 1)
        target = q_learning_target(batch["reward"], following, batch["terminated"], batch["discount"])
        q = self._q(self.q_network, row, batch["action"])
        loss = value_loss(q, target).mean()
        if config.conservative_weight > 0.0:
            pushed = self._expected(self.q_network, row)
            gap = conservative_gap(pushed, q) if config.bound == "expectation" else pushed
            loss = loss + config.conservative_weight * gap.mean()
        return loss

    def values(self, row: Any) -> Tensor:
        """Return V = E_pi Q at these rows, (N,) reward units; of continuous actions the mean over ``DRAWS`` draws."""
        with torch.no_grad():
            draws = 1 if self.policy.deterministic or self.action_spec.kind == "discrete" else DRAWS
            drawn = [[self._expected(self.q_network, part) for _ in range(draws)] for part in _parts(row)]
            return torch.cat([torch.stack(values).mean(0) for values in drawn])

    def q_values(self, row: Any) -> Tensor:
        """Return Q of the actions that were taken at these rows, (N,) reward units."""
        with torch.no_grad():
            action = self.rows.flat["action"]
            return torch.cat([self._q(self.q_network, p, torch.from_numpy(action[p])) for p in _parts(row)])

    def _q(self, network: Any, row: Any, action: Tensor) -> Tensor:
        obs = _obs(self.rows, row)
        if self.action_spec.kind == "box":
            return network(obs, self.statistics, action)[0]
        return network(obs, self.statistics, None)[0].gather(-1, action.unsqueeze(-1)).squeeze(-1)

    def _expected(self, network: Any, row: Any) -> Tensor:
        """E_{a~pi} Q(s, a) at these rows, (N,): a sum over discrete actions, one draw of continuous ones."""
        at = torch.from_numpy(np.ascontiguousarray(row))
        policy: Distribution = tree_map(lambda x: x[at], self.policy.distribution)
        if isinstance(policy, Categorical):
            q = network(_obs(self.rows, row), self.statistics, None)[0]
            if self.policy.deterministic:
                return q.gather(-1, policy.mode().unsqueeze(-1)).squeeze(-1)
            return best_response_value(q, policy.log_probs.exp())
        if self.policy.deterministic:
            draw = policy.mode()
        else:
            draw = policy.sample(action_noise(self.action_spec, (len(row),), self.generator))
        unit = unit_action(self.action_spec, draw) if self.squashes else draw.clamp(-self.limit, self.limit)
        return network(_obs(self.rows, row), self.statistics, unit)[0]


def _obs(rows: DatasetRows, row: Any) -> Obs:
    names = [field.name for field in rows.obs_fields]
    return {name: torch.from_numpy(np.ascontiguousarray(rows.flat[f"obs/{name}"][row])) for name in names}


def _parts(row: Any) -> list[Any]:
    """Split rows into pieces that a network sees at a time."""
    return [row[i : i + ROWS] for i in range(0, len(row), ROWS)]
