"""Short runs of every algorithm, and how their state is told apart from any other.

    python tests/recorded/record.py      writes what the code at hand makes of them, anew, into this folder

A digest is of bits, which hold on one kind of machine; the summary beside it, of every tensor its sum and its norm,
holds on all of them, to rounding.
"""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch

import steepest
from helpers_language import demonstrations, preferences, shout, tiny
from steepest.algorithms import find
from steepest.runs.language_run import LanguageRun

FOLDER = Path(__file__).parent
UPDATES = 3

Summary = dict[str, list[float]]


class Case(NamedTuple):
    algorithm: str
    env: str
    options: dict[str, Any]


RECURRENT = {"recurrent": "gru", "recurrent_size": 8, "sequence_length": 4}
NORMALIZED = {"normalize_obs": True, "normalize_reward": True}
LINEAR = {"learning_rate_schedule": "linear"}
AVERAGE = {"objective": "average", "normalize_reward": False}
WHOLE = {"gaussian": "full"}

CASES: dict[str, Case] = {
    "ppo": Case("ppo", "CartPole-v1", {}),
    "ppo, all": Case(
        "ppo", "Pendulum-v1",
        {**NORMALIZED, **LINEAR, "clip_schedule": "linear", "value_clip": 0.2, "target_kl": 0.05, "entropy_coef": 0.01,
         "off_policy_correction": "vtrace"},
    ),
    "ppo, recurrent": Case("ppo", "CartPole-v1", {**RECURRENT, "off_policy_correction": "vtrace"}),
    "ppo, average": Case("ppo", "Pendulum-v1", {**AVERAGE, **WHOLE, "off_policy_correction": "vtrace"}),
    "ppo_kl": Case("ppo_kl", "CartPole-v1", {}),
    "ppo_kl, all": Case(
        "ppo_kl", "Pendulum-v1",
        {**NORMALIZED, **LINEAR, "kl_direction": "new_old", "entropy_coef": 0.01, "off_policy_correction": "vtrace"},
    ),
    "ppo_kl, recurrent": Case("ppo_kl", "CartPole-v1", RECURRENT),
    "ppo_kl, average": Case("ppo_kl", "Pendulum-v1", AVERAGE),
    "trpo": Case("trpo", "CartPole-v1", {}),
    "trpo, all": Case("trpo", "Pendulum-v1", {**NORMALIZED, "fisher_subsample": 2, "cg_iterations": 7}),
    "trpo, average": Case("trpo", "Pendulum-v1", {**AVERAGE, "line_search_steps": 0}),
    "actor_critic": Case("actor_critic", "CartPole-v1", {}),
    "actor_critic, all": Case(
        "actor_critic", "Pendulum-v1",
        {**NORMALIZED, **LINEAR, "advantage": "n_step", "n_steps": 3, "critic": "monte_carlo",
         "state_weighting": "discounted", "entropy_coef": 0.01},
    ),
    "actor_critic, recurrent": Case("actor_critic", "CartPole-v1", RECURRENT),
    "actor_critic, average": Case("actor_critic", "Pendulum-v1", AVERAGE),
    "reinforce": Case("reinforce", "CartPole-v1", {}),
    "reinforce, all": Case(
        "reinforce", "Pendulum-v1",
        {**NORMALIZED, **LINEAR, "estimator": "full_return", "baseline": "average_return",
         "state_weighting": "discounted", "entropy_coef": 0.01},
    ),
    "reinforce, recurrent": Case("reinforce", "CartPole-v1", {**RECURRENT, "at_cut": "drop"}),
    "off_pac": Case("off_pac", "CartPole-v1", {}),
    "off_pac, all": Case(
        "off_pac", "Pendulum-v1",
        {**NORMALIZED, **LINEAR, "emphasis_decay": 0.5, "state_weighting": "discounted",
         "auxiliary_learning_rate": 0.0},
    ),
    "dpg": Case("dpg", "Pendulum-v1", {}),
    "dpg, all": Case("dpg", "Pendulum-v1", {**NORMALIZED, **LINEAR, "critic": "gradient_q"}),
    "dpg, sarsa": Case("dpg", "Pendulum-v1", {"critic": "sarsa"}),
    "sac": Case("sac", "Pendulum-v1", {}),
    "sac, all": Case(
        "sac", "Pendulum-v1",
        {**LINEAR, "normalize_obs": True, "num_critics": 3, "policy_q": "mean", "policy_delay": 2,
         "updates_per_call": 2, "layer_norm": True, "dropout": 0.1, "n_steps": 3, "prioritized": True,
         "max_gradient_norm": 1.0},
    ),
    "sac, discrete": Case("sac", "CartPole-v1", {}),
    "sac, fixed": Case("sac", "Pendulum-v1", {"temperature": 0.2, "asynchronous": True}),
    "sac_v": Case("sac_v", "Pendulum-v1", {}),
    "sac_v, all": Case("sac_v", "Pendulum-v1", {**LINEAR, "normalize_obs": True, "prioritized": True}),
    "td3": Case("td3", "Pendulum-v1", {"updates_per_call": 2}),
    "td3, all": Case(
        "td3", "Pendulum-v1", {**LINEAR, "normalize_obs": True, "updates_per_call": 2, "max_gradient_norm": 1.0}
    ),
    "ddpg": Case("ddpg", "Pendulum-v1", {}),
    "ddpg, all": Case("ddpg", "Pendulum-v1", {**LINEAR, "normalize_obs": True, "noise_correlation": 0.9}),
    "dqn": Case("dqn", "CartPole-v1", {}),
    "dqn, all": Case(
        "dqn", "CartPole-v1",
        {**LINEAR, "normalize_obs": True, "dueling": True, "double": False, "n_steps": 3, "prioritized": True,
         "huber_threshold": None, "target_update_every": 2},
    ),
}  # fmt: skip

SMALL = {
    "rollout_steps": 16, "hidden_sizes": (16,), "epochs": 2, "minibatches": 2, "steps_per_call": 2, "buffer_size": 400,
    "learning_starts": 32, "batch_size": 16, "train_every": 2, "update_ratio": 0.25, "steps_per_iteration": 64,
}  # fmt: skip
"""Sizes, of which an algorithm takes those that it has."""

LANGUAGE_CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "sft": ("sft", {}),
    "sft, adapters": ("sft", {"lora_rank": 4, "lora_dropout": 0.1}),
    "sft, packed": ("sft", {"packing": True, "batch_size": 2, "weight_decay": 0.1}),
    "reward": ("reward", {}),
    "dpo": ("dpo", {}),
    "dpo, adapters": ("dpo", {"lora_rank": 4}),
    "ppo": ("ppo", {"update_epochs": 2, "minibatches": 2}),
    "rloo": ("rloo", {"group_size": 2}),
    "grpo": ("grpo", {"group_size": 2, "lora_rank": 4}),
}
LANGUAGE_OPTIONS: dict[str, Any] = {
    "epochs": 2, "batch_size": 8, "micro_batch_size": 4, "learning_rate": 1e-3, "threads": 1, "max_length": 64,
    "tensorboard": False,
}  # fmt: skip


def options_of(name: str, members: int, compiled: bool) -> dict[str, Any]:
    """Every option of a run."""
    case = CASES[name]
    known = find(case.algorithm).Config.__dataclass_fields__
    small = {k: v for k, v in SMALL.items() if k in known}
    return {
        "num_envs": 4, "seed": 3, "seeds": members, "threads": 1, "compile": "on" if compiled else "off",
        "total_steps": 4000, "eval_episodes": 0, **small, **case.options,
    }  # fmt: skip


def run_case(name: str, members: int, compiled: bool) -> tuple[str, Summary]:
    """Digest and summary of the agents after three updates."""
    case = CASES[name]
    with steepest.Run(case.algorithm, case.env, **options_of(name, members, compiled)) as run:
        rows = [run.iterate() for _ in range(UPDATES)]
    assert run.agent.modes(), "nothing has learned"
    return of_tensors(run.agent.tensors(), rows)


@functools.cache
def language_data() -> dict[str, list[dict[str, str]]]:
    return {"pairs": preferences(24), "demonstrations": demonstrations(56), "prompts": demonstrations(20)}


def run_language_case(name: str) -> tuple[str, Summary]:
    """Digest and summary of a trainer after three updates."""
    algorithm, options = LANGUAGE_CASES[name]
    of = {"sft": "demonstrations", "reward": "pairs", "dpo": "pairs"}.get(algorithm, "prompts")
    more: dict[str, Any] = {"reward": shout, "max_new_tokens": 6} if of == "prompts" else {}
    model = tiny(scale=1.0, dropout=0.1)
    with LanguageRun(algorithm, model, language_data()[of], **{**LANGUAGE_OPTIONS, **more, **options}) as run:
        rows = [run.iterate() for _ in range(UPDATES)]
    return of_tensors(run.trainer.tensors(), rows)


def of_tensors(tensors: dict[str, torch.Tensor], rows: list[dict[str, Any]]) -> tuple[str, Summary]:
    """A digest of all bits of the tensors and of what was logged, and a sum and a norm of every tensor."""
    digest = hashlib.sha256()
    summary: Summary = {}
    for name in sorted(tensors):
        x = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {x.dtype} {tuple(x.shape)}".encode())
        digest.update(x.reshape(-1).view(torch.uint8).numpy().tobytes())
        if x.is_floating_point() and not name.startswith("generator/"):
            wide = x.to(torch.float64)
            summary[name] = [float(wide.sum()), float(torch.linalg.vector_norm(wide))]
    kept = [{k: v for k, v in sorted(row.items()) if "seconds" not in k and not k.startswith("time/")} for row in rows]
    digest.update(json.dumps(kept).encode())
    return digest.hexdigest()[:24], summary


def machine() -> str:
    """What the bits of a computation rest on."""
    found: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition(":")
        found.setdefault(key.strip(), value.strip())
    cpu = " ".join(found.get(k, "") for k in ("vendor_id", "cpu family", "model"))
    return f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, {cpu}"
