"""What gives the bytes of something remote."""

from typing import Protocol


class Source(Protocol):
    """Something that gives bytes.

    Attributes:
        facts: of the contents, to tell whether they changed: `ETag`, `Last-Modified`, and as `Content-Length`
            the bytes of all; empty where nothing is known.
        start: where the bytes begin in the contents.
    """

    facts: dict[str, str]
    start: int

    def read(self, size: int) -> bytes:
        """At most `size` bytes, as soon as there are any; none at the end.

        Raises:
            OSError: what came is not whole.
        """
        ...

    def kill(self) -> None:
        """End a `read` of another thread, now or at the source's time-out."""
        ...

    def close(self) -> None:
        """Let go of everything."""
        ...


class Hopeless(OSError):
    """Asking again will not help."""


class Changed(OSError):
    """The contents are others than those that were asked for."""


def strong(facts: dict[str, str]) -> str | None:
    """The ETag, if equal ones mean equal bytes."""
    tag = facts.get("ETag", "")
    return None if tag.startswith("W/") else tag or None
