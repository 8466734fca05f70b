"""Types shared by all storeys: the shapes of spaces, and batches of experience.

Observations travel as a flat ``dict[str, Tensor]``. A bare (non-Dict) observation space is the single key ``"obs"``;
a nested Dict space is flattened, with ``"outer/inner"`` keys. One convention means that images, vectors and structured
observations take the same path everywhere, and that every batch is a plain pytree which ``vmap`` and ``compile`` know.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

Obs = dict[str, Tensor]
"""Observation tensors by field name; every tensor shares the same leading (batch) axes."""

BARE_OBS = "obs"
"""The field name under which a bare (non-Dict) observation travels."""

ObsKind = Literal["vector", "image", "discrete"]
ActionKind = Literal["discrete", "multi_discrete", "multi_binary", "box"]


@dataclass(frozen=True)
class ObsField:
    """One observation tensor.

    ``vector``: floats of any shape. ``image``: channels-first (C, H, W), usually uint8, kept so until the network.
    ``discrete``: int64 of ``shape``, component i taking values in 0..sizes[i]-1; ``start`` is the environment's first
    value per component, which conversion has already subtracted.
    """

    name: str
    kind: ObsKind
    shape: tuple[int, ...]
    dtype: str
    sizes: tuple[int, ...] = ()
    start: tuple[int, ...] = ()

    @property
    def torch_dtype(self) -> torch.dtype:
        return {"float32": torch.float32, "uint8": torch.uint8, "int64": torch.int64}[self.dtype]


@dataclass(frozen=True)
class ObsSpec:
    """The observation space: its fields in a fixed order, and whether users see a dict or a bare array."""

    fields: tuple[ObsField, ...]
    is_dict: bool


@dataclass(frozen=True)
class ActionSpec:
    """The action space as the policy sees it.

    ``sizes``: number of choices per component (discrete: one entry; multi_binary: 2 each; box: empty).
    ``start``: first legal value per component of discrete spaces (the policy counts from 0).
    ``low``, ``high``: bounds per flattened box component, possibly infinite on either side.
    """

    kind: ActionKind
    shape: tuple[int, ...]
    dtype: str
    sizes: tuple[int, ...] = ()
    start: tuple[int, ...] = ()
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()

    @property
    def mask_size(self) -> int:
        """Length of a flat action mask: one entry per choice of every discrete component."""
        return sum(self.sizes) if self.kind in ("discrete", "multi_discrete") else 0

    @property
    def dimension(self) -> int:
        """Number of components of one action."""
        return max(1, len(self.low)) if self.kind == "box" else len(self.sizes)


def spec_to_json(spec: ObsSpec | ActionSpec) -> dict[str, Any]:
    """Plain dict that ``json`` can write (infinite bounds become the strings "inf" and "-inf")."""
    data = asdict(spec)
    for key in ("low", "high"):
        if key in data:
            data[key] = [str(x) if x in (float("inf"), float("-inf")) else x for x in data[key]]
    return data


def obs_spec_from_json(data: dict[str, Any]) -> ObsSpec:
    """The inverse of ``spec_to_json``."""
    fields = tuple(
        ObsField(f["name"], f["kind"], tuple(f["shape"]), f["dtype"], tuple(f["sizes"]), tuple(f["start"]))
        for f in data["fields"]
    )
    return ObsSpec(fields, bool(data["is_dict"]))


def action_spec_from_json(data: dict[str, Any]) -> ActionSpec:
    """The inverse of ``spec_to_json``."""
    return ActionSpec(
        data["kind"],
        tuple(data["shape"]),
        data["dtype"],
        tuple(data["sizes"]),
        tuple(data["start"]),
        tuple(float(x) for x in data["low"]),
        tuple(float(x) for x in data["high"]),
    )


class Rollout(NamedTuple):
    """T steps of N environments, time-major, in the NEXT_STEP convention.

    ``obs[t + 1]`` is always the true observation that followed ``obs[t]``, also where the episode ended there, so
    bootstrapping needs no second copy. A row that only restarts an environment, or waits for another one to restart,
    has ``valid`` 0: nothing was decided there, and nothing may be learned from it.

    A leading member axis M is added when several members train together.
    """

    obs: Obs  # each (T+1, N, ...): raw, not normalised
    action: Tensor  # (T, N) or (T, N, D): as the policy drew it, before clipping or squashing
    reward: Tensor  # (T, N) reward units
    terminated: Tensor  # (T, N) bool: the process ended
    truncated: Tensor  # (T, N) bool: only the recording ended
    valid: Tensor  # (T, N) bool
    episode_step: Tensor  # (T+1, N) int64: actions taken since the episode began; 0 marks its first observation
    action_mask: Tensor | None  # (T+1, N, mask_size) bool, True where legal
    memory: Tensor | None  # (T / sequence_length, N, K): recurrent state at the start of every sequence
    behaviour_log_prob: Tensor | None = None  # (T, N) nats, of the action under the policy that took it; None: unknown


class TokenBatch(NamedTuple):
    """Sequences of tokens for a language model: prompts, and the responses in which every token is an action.

    A mask says of a token itself what it is; whatever is scored (log-probabilities, advantages, losses) has the same
    shape and sits at the token that it is about, not at the one before it. The first token of a sequence is no action.
    Which tokens are real the masks say, never their ids, since padding often has the id of EOS. A response's last
    token is its EOS or, at the token limit, whatever stands there: both end the episode.

    Padded: every row is one sequence. Packed: a row holds several sequences end to end, ``position_ids`` starts again
    from 0 at each, and ``attention_mask`` is None.
    """

    tokens: Tensor  # (B, L) int64
    attention_mask: Tensor | None  # (B, L) bool, True at real tokens; None where sequences are packed
    response_mask: Tensor  # (B, L) bool: the token is an action (of a response, to be learned from), EOS included
    position_ids: Tensor | None = None  # (B, L) int64: place of the token in its own sequence; None: by the mask

    @property
    def attended(self) -> Tensor:
        """The attention mask. ValueError where sequences are packed, which none but SFT takes."""
        if self.attention_mask is None:
            raise ValueError("attention_mask is None, as of packed sequences; expected one sequence a row, and a mask")
        return self.attention_mask

    def rows(self, index: Tensor | slice) -> TokenBatch:
        """Some of the rows."""
        return TokenBatch(*(None if x is None else x[index] for x in self))  # pyright: ignore[reportArgumentType]

    def to(self, device: torch.device | str) -> TokenBatch:
        """The same batch on a device."""
        return TokenBatch(*(None if x is None else x.to(device) for x in self))  # pyright: ignore[reportArgumentType]


class PreferenceBatch(NamedTuple):
    """Pairs of responses to the same prompts: row i of ``chosen`` was preferred to row i of ``rejected``."""

    chosen: TokenBatch
    rejected: TokenBatch

    def to(self, device: torch.device | str) -> PreferenceBatch:
        """The same batch on a device."""
        return PreferenceBatch(self.chosen.to(device), self.rejected.to(device))


def described(spec: ObsSpec | ActionSpec) -> str:
    """A space in a few words."""
    if isinstance(spec, ActionSpec):
        if spec.kind == "box":
            return f"{spec.shape} from {list(spec.low)} to {list(spec.high)}"
        start = f" from {list(spec.start)}" if any(spec.start) else ""
        return f"{spec.kind} {list(spec.sizes)}{start}"
    parts = [f"{f.kind} {f'of {list(f.sizes)}' if f.sizes else f.shape}" for f in spec.fields]
    if not spec.is_dict:
        return parts[0]
    return "{" + ", ".join(f"{f.name}: {part}" for f, part in zip(spec.fields, parts, strict=True)) + "}"
