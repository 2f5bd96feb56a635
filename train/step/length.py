"""How far a run is, and how long it is."""

from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass
class Counters:
    """How far a run is, over all ranks; part of every checkpoint."""

    step: int = 0
    images_seen: int = 0
    tokens_seen: int = 0
    nonfinite_steps: int = 0
    gflops_seen: float = 0.0

    def state_dict(self) -> dict[str, Any]:
        """The counts."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the counts that `state_dict` returned."""
        for f in fields(self):
            setattr(self, f.name, state[f.name])


@dataclass(frozen=True)
class Length:
    """A run's length.

    Args:
        unit: the counter that measures the run's progress.
        total: its value at the end.
    """

    unit: str
    total: int


@dataclass(frozen=True, kw_only=True)
class LengthConfig:
    """How long a run is; part of `train.*`.

    Args:
        steps: length of the run in optimizer steps, unless one of the next three is set.
        images: length of the run in images seen by all ranks; 0: not measured in images.
        tokens: length of the run in tokens; 0: not measured in tokens.
        gflops: length of the run in 10^9 FLOPs, including teachers'; 0: not measured in FLOPs.
    """

    steps: int = 1000
    images: int = 0
    tokens: int = 0
    gflops: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"train.steps={self.steps} must be at least 1")
        for name in ("images", "tokens", "gflops"):
            if getattr(self, name) < 0:
                raise ValueError(f"train.{name}={getattr(self, name)} must not be negative")
        if (self.images > 0) + (self.tokens > 0) + (self.gflops > 0) > 1:
            raise ValueError(
                "only one of train.images, train.tokens and train.gflops can be the run's length"
            )

    @property
    def length(self) -> Length:
        """The length that is set."""
        for unit, total in (("images_seen", self.images), ("tokens_seen", self.tokens)):
            if total:
                return Length(unit, total)
        return Length("gflops_seen", self.gflops) if self.gflops else Length("step", self.steps)
