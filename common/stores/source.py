"""The interface of sources, which provide the bytes of a remote file."""

from typing import Protocol


class Source(Protocol):
    """A source of bytes.

    Attributes:
        facts: facts about the contents, to notice changes: `ETag`, `Last-Modified`, and as `Content-Length`
            their whole size; empty if nothing is known.
        start: the position of the first byte in the contents.
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
        """End a `read` in another thread, now or at the source's time-out."""
        ...

    def close(self) -> None:
        """Release everything."""
        ...


class Hopeless(OSError):
    """A failure that a retry does not solve."""


class Gone(Hopeless):
    """There is nothing under the name any more."""


class Changed(OSError):
    """The contents are not those that were requested."""


def strong(facts: dict[str, str]) -> str | None:
    """The ETag if it is a strong one, so that equal ETags mean equal bytes."""
    tag = facts.get("ETag", "")
    return None if tag.startswith("W/") else tag or None
