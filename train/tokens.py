"""The mean number of tokens of a run's images, before any image is read."""

from random import Random

from packvit.packing import draw_view, views_at
from packvit.train.config import Config

SIZE = 375, 500  # pixels, of an ordinary photograph of ImageNet
DRAWS = 8000


def mean_tokens(config: Config) -> float:
    """Tokens of an image of SIZE at the start of the run: the mean of DRAWS views."""
    views, rng = views_at(config.views, 0), Random(1)
    drawn = (draw_view(rng, SIZE, views, config.packing.seq_len).num_tokens for _ in range(DRAWS))
    return sum(drawn) / DRAWS
