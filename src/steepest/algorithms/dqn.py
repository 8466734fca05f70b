"""Deep Q-network, with double and dueling Q-learning, n-step returns and prioritised replay as settings.

Source: Mnih et al. 2015 (https://doi.org/10.1038/nature14236); double: van Hasselt, Guez & Silver 2016
(https://arxiv.org/abs/1509.06461); dueling: Wang et al. 2016 (https://arxiv.org/abs/1511.06581); prioritised: Schaul et
al. 2016 (https://arxiv.org/abs/1511.05952). Not in the notes, whose conservative Q-learning (2.1) builds on it.

    repeat
      1. play train_every steps of the greedy action, or with probability epsilon of any, into the replay buffer
                                                                                      distributions.epsilon_greedy
      2. for a minibatch of the buffer, one step of Adam on the mean of weight huber(Q(s, a) - y)
                                                                          losses.chosen_q_value, losses.huber_loss
             y = r + gamma (1 - terminated) max_a' Q'(s', a')                                     losses.dqn_target
             double:                        Q'(s', argmax_a' Q(s', a'))                    losses.double_dqn_target
      3. every target_update_every-th time, Q' <- (1 - rate) Q' + rate Q                 agents.replay_updates.track

Reward and gamma are those of n steps; the weight is 1, or what undoes prioritised drawing. Illegal actions are neither
played nor the maximum.

Differences from the papers: Adam instead of RMSProp. The dueling network's gradients are not scaled down where its
streams meet, and epsilon falls in stairs of steps_per_iteration.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor

from steepest.agents.greedy import GreedyAgent
from steepest.agents.replay_updates import Batch, Noise, batch_obs, descend, sample_weight
from steepest.algorithms.configs.dqn import DQNConfig
from steepest.learner.step import Gradient, Hyper, Metrics, State
from steepest.losses import chosen_q_value, huber_loss


class DQN(GreedyAgent):
    """DQN over one or several members."""

    algorithm = "dqn"
    Config = DQNConfig
    config: DQNConfig

    def gradient_step(
        self, gradient: Gradient, hyper: Hyper, state: State, batch: Batch, noise: Noise, with_policy: bool
    ) -> tuple[State, Metrics, Tensor]:
        """One step of the network, and of its target if that is due."""
        del noise, with_policy  # nothing here is random, and the policy is the network
        loss = partial(self.loss, state=state, batch=batch, target=self.target(state, batch), hyper=hyper)
        slope, (_, metrics) = gradient(loss, state["params"])
        error = metrics.pop("error")
        state, norm = descend(state, "", slope, hyper["learning_rate"], hyper["max_gradient_norm"])
        metrics |= {"gradient_norm": norm, "epsilon": state["buffers/epsilon"]}
        return self.follow(state, hyper), metrics, error

    def loss(self, vector: Tensor, state: State, batch: Batch, target: Tensor, hyper: Hyper) -> tuple[Tensor, Metrics]:
        """The mean loss of the actions that were taken; gradient through ``vector`` alone."""
        q = chosen_q_value(self.q(vector, state, batch_obs(batch, "obs/")), batch["action"])
        loss = (sample_weight(batch) * huber_loss(q, target, hyper["huber_threshold"])).mean()
        return loss, {"q_loss": loss, "q_mean": q.mean(), "error": (q - target).abs()}
