"""How environments are asked for: settings that a run's options hold, without a line that plays anything."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

from steepest.errors import UsageError

Vectorization = Literal["auto", "native", "sync", "async", "envpool"]
VECTORIZATIONS: tuple[str, ...] = get_args(Vectorization)


@dataclass(frozen=True, kw_only=True)
class AtariOptions:
    """Preprocessing between the emulator (60 frames a second, 210 x 160 colours) and the agent.

    The defaults are the protocol of Machado et al. 2018 ("Revisiting the Arcade Learning Environment"), as the
    ALE/...-v5 ids and Dopamine have it: sticky actions instead of random no-op starts, no life-loss signal, no help to
    press FIRE. The older protocol (Mnih et al. 2015; CleanRL, SB3-zoo) is
    ``AtariOptions(sticky=0.0, noop_max=30, fire_reset=True, life_loss_terminates=True)``.
    Frames are always grey, of one byte a pixel, and each is the pixelwise maximum of the last two emulator frames,
    since the console draws some sprites only every second frame. Observations are (frame_stack, size, size).

    Rewards are the game's score. Train with ``clip_reward=True``, evaluate without; likewise evaluate without
    ``life_loss_terminates``, so that an episode is a whole game: ``for_evaluation()``.
    """

    frame_skip: int = 4
    """Emulator frames per action."""
    sticky: float | None = None
    """Probability, per frame, that the console repeats its last action; None: as the id is registered (0.25 for
    ALE/...-v5 and EnvPool, 0 for ...-v4)."""
    size: int = 84
    """Height and width of the observed frames, pixels."""
    frame_stack: int = 4
    """Observed frames per observation, oldest first."""
    noop_max: int = 0
    """Up to so many no-op frames begin each game."""
    fire_reset: bool = False
    """Press FIRE once at the start of a game (and of a life, with ``life_loss_terminates``) where the game has it."""
    life_loss_terminates: bool = False
    """A lost life is ``terminated``; the game goes on, and only after its last life starts anew."""
    clip_reward: bool = False
    """Replace rewards by their sign."""
    full_action_space: bool = False
    """All 18 actions instead of those the game uses."""
    num_threads: int = 0
    """Threads that step the emulators (not in the render path); 0: as many as there are cores."""

    def __post_init__(self) -> None:
        for field, least in (("frame_skip", 1), ("size", 1), ("frame_stack", 1), ("noop_max", 0), ("num_threads", 0)):
            if getattr(self, field) < least:
                raise UsageError(f"AtariOptions.{field} is {getattr(self, field)}; it must be at least {least}.")
        if self.sticky is not None and not 0.0 <= self.sticky <= 1.0:
            raise UsageError(f"AtariOptions.sticky is {self.sticky}; it is a probability.")

    @property
    def changes_episodes(self) -> bool:
        """Return whether rewards or episodes differ from the game's score or whole games."""
        return self.clip_reward or self.life_loss_terminates

    def for_evaluation(self) -> AtariOptions:
        """The same game, whole and with its own score."""
        return replace(self, clip_reward=False, life_loss_terminates=False)
