"""Agents read back from files, whatever algorithm they are of."""

from __future__ import annotations

from pathlib import Path

import torch

from steepest.agents.agent import Agent
from steepest.agents.config import config_from_json
from steepest.algorithms import find
from steepest.errors import UsageError
from steepest.files.reading import Unusable
from steepest.files.schema import check
from steepest.files.tensors import CheckpointError, load_tensors
from steepest.networks.config import NetworkFactory
from steepest.runs.store.descriptions import SavedAgent


def read_agent(file: Path, *, network: NetworkFactory | None = None, device: torch.device | str = "cpu") -> Agent:
    """The agent in a checkpoint or in a file that ``Agent.save`` wrote.

    Args:      network: the factory of a custom network, again
    Raises:    CheckpointError if the file is damaged or foreign
    """
    tensors, metadata = load_tensors(file)
    try:
        check(metadata, SavedAgent)
        agent_class = find(metadata["algorithm"])
        config_from_json(agent_class.Config, metadata["config"])
    except (Unusable, UsageError) as error:
        raise CheckpointError(f"{file} does not hold an agent that this version of steepest reads: {error}") from error
    try:
        return agent_class.from_saved(tensors, metadata, network=network, device=device)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(
            f"{file} does not hold an agent that this version of steepest reads: {error!r}"
        ) from error
