"""Attempts that are made again, after pauses that grow, where something remote fails."""

import random
import time
from collections.abc import Callable
from typing import TypeVar

from packvit.common.stores.source import Hopeless

BACKOFF = 1.0  # seconds before the second attempt; then twice as long before each

Answer = TypeVar("Answer")


def try_again(attempt: Callable[[], Answer], retries: int) -> Answer:
    """The result of an attempt; after a failure there are up to `retries` more, with growing pauses.

    Raises:
        OSError, ValueError: the error of the last attempt, or of one whose failure is permanent.
    """
    for number in range(retries):
        try:
            return attempt()
        except Hopeless:
            raise
        except (OSError, ValueError):
            # Many workers lose their connections at once: they should not all come back at once.
            time.sleep(BACKOFF * 2**number * random.uniform(0.5, 1.5))
    return attempt()
