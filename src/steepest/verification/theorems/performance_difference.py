"""The performance difference lemma (notes 1.9)."""

from __future__ import annotations

import torch
from torch import Tensor

from steepest.exact import finite_mdp as mdps
from steepest.verification.random_problems import HORIZON, Process, continuing, episodic
from steepest.verification.statement import F64, Rows, Sides

rows = Rows()


@rows.equality("1.9", "P(s_t = s), the product from i = 0", episodic)
@rows.control("1.9", "P(s_t = s), the product from i = 1", episodic, from_step_1=True)
def probability_of_a_state(c: Process, from_step_1: bool = False) -> Sides:
    """The probability of a state after two steps is a sum over what came before.

    Negative control: the product as printed starts at i = 1 and leaves the first step out.

    Equation:  P(s_t = s) = sum_{s_0, a_0, ...} mu_0(s_0) prod_{i=0}^{t-1} pi(a_i|s_i) P(s_{i+1}|s_i, a_i),  t = 2
    Source:    notes 1.9; left, counted over every trajectory.
    """
    counted = torch.zeros(c.mdp.num_states, dtype=F64).index_add(0, c.paths.state[2], c.paths.probability)
    step = c.policy.unsqueeze(-1) * c.mdp.transition
    first = torch.ones_like(step) if from_step_1 else step
    return Sides(counted, torch.einsum("s,sat,tbu->u", c.mdp.initial, first, step))


@rows.equality("1.9", "Lemma 5, arbitrary f", episodic)
def lemma_5(c: Process) -> Sides:
    """Discounted sums along trajectories are expectations under d^pi; for an arbitrary f, absorbing states included.

    Equation:  E_tau[sum_t gamma^t f(s_t, a_t)] = 1/(1 - gamma) E_{s~d^pi} E_{a~pi}[f(s, a)]
    Source:    notes 1.9, Lemma 5; left over every trajectory, whose stay in the end is a geometric sum.
    """
    paths, gamma = c.paths, c.mdp.gamma
    expected = (c.policy * c.function).sum(-1)
    along = torch.where(paths.valid, c.function[paths.state[:-1], paths.action], expected[paths.state[:-1]])
    stay = gamma**HORIZON / (1.0 - gamma) * expected[paths.state[-1]]
    left = paths.probability @ ((c.discounts * along).sum(0) + stay)
    return Sides(left, mdps.state_distribution(c.mdp, c.policy) @ expected / (1.0 - gamma))


@rows.equality("1.9", "Theorem 6: performance difference", continuing)
def theorem_6(c: Process, at_the_other_states: bool = False) -> Sides:
    """The performance difference lemma.

    Negative control: states met by the policy whose advantages are summed, not by the one that acts.

    Equation:  V_pi(s_0) - V_pi'(s_0) = 1/(1 - gamma) E_{s~d^pi} E_{a~pi}[A^pi'(s, a)]
    Source:    notes 1.9, Theorem 6; Kakade & Langford 2002.
    """
    gained = (c.policy * mdps.advantage(c.mdp, c.other)).sum(-1)
    met = mdps.state_distribution(c.mdp, c.other if at_the_other_states else c.policy)
    return Sides(difference(c), met @ gained / (1.0 - c.mdp.gamma))


def difference(c: Process) -> Tensor:
    """V_pi - V_pi' from the first state, a scalar."""
    return mdps.objective(c.mdp, c.policy) - mdps.objective(c.mdp, c.other)


@rows.equality("1.9", "Theorem 6 along trajectories", episodic)
def theorem_6_over_trajectories(c: Process) -> Sides:
    """The lemma's last step but one: the advantages of the other policy, summed along this one's trajectories.

    Equation:  V^pi(s_0) - V^pi'(s_0) = E_{tau~P^pi}[sum_t gamma^t A^pi'(s_t, a_t)]
    Source:    notes 1.9.
    """
    a = mdps.advantage(c.mdp, c.other)[c.paths.state[:-1], c.paths.action] * c.paths.valid
    return Sides(difference(c), c.paths.probability @ (c.discounts * a).sum(0))


@rows.equality("1.9", "Theorem 6, its proof's two steps", episodic)
def theorem_6_proof(c: Process) -> Sides:
    """The proof's two rewritings: the other policy's values telescope, and a step of reward and value is Q.

    Equation:  V_pi(s_0) - V_pi'(s_0) = E[sum_t gamma^t (R_t + gamma V_pi'(s_{t+1})) - sum_t gamma^{t+1} V_pi'(s_{t+1})
               - V_pi'(s_0)],  E[sum_t gamma^t (R_t + gamma V_pi'(s_{t+1}))] = E[sum_t gamma^t Q^pi'(s_t, a_t)]
    Source:    notes 1.9, the proof of Theorem 6.
    """
    paths, gamma = c.paths, c.mdp.gamma
    value = mdps.state_value(c.mdp, c.other)[paths.state]
    q = mdps.action_value(c.mdp, c.other)[paths.state[:-1], paths.action] * paths.valid

    def mean(steps: Tensor) -> Tensor:
        return paths.probability @ (c.discounts * steps).sum(0)

    backed_up = mean(paths.reward + gamma * value[1:])
    telescoped = backed_up - mean(gamma * value[1:]) - paths.probability @ value[0]
    return Sides(torch.stack([difference(c), backed_up]), torch.stack([telescoped, mean(q)]))


rows.control("1.9", "Theorem 6 at the other policy's states", continuing, at_the_other_states=True)(theorem_6)
