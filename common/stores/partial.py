"""A file that is being fetched, perhaps in several attempts."""

from dataclasses import dataclass, field
from pathlib import Path

from packvit.common.stores.source import strong


@dataclass
class Partial:
    """A file that is being fetched, perhaps in several attempts.

    Args:
        path: path of the file.
        facts: facts about the contents that its bytes belong to (see Source).
    """

    path: Path
    facts: dict[str, str] = field(default_factory=dict)

    def kept(self) -> int:
        """Number of bytes that need not be requested again, because their contents can be identified."""
        size = self.path.stat().st_size if strong(self.facts) and self.path.exists() else 0
        return size if size < int(self.facts.get("Content-Length", 0)) else 0

    def drop(self) -> None:
        """Remove the file."""
        self.facts = {}
        self.path.unlink(missing_ok=True)
