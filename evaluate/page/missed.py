"""Retrieval that went wrong: images whose own captions stand far behind, as the model saw them."""

from xml.etree.ElementTree import Element

import numpy as np

from packvit.common.markup import el
from packvit.data import redact
from packvit.evaluate.page.blocks import amount, note, section
from packvit.evaluate.page.folder import Retrieved, Row, full_name, shorten
from packvit.evaluate.page.pictures import LONGEST_KEY, LONGEST_REASON, MOST_PICTURES, Picture, draw

LONGEST_CAPTION = 120  # signs


def missed_section(row: Row, found: Retrieved | None, picture: Picture | None) -> Element | None:
    """The images with the most captions before their own; None without retrieval or without a miss."""
    if found is None:
        return None
    wrong = np.flatnonzero(found.rank > 0)
    if not len(wrong):
        return None
    order = wrong[np.argsort(-found.rank[wrong], kind="stable")][:MOST_PICTURES]
    cards = [_card(row, found, place, picture) for place in order.tolist()]
    text = (
        f"{full_name(row)} finds another image's caption first for {len(wrong):,} of "
        f"{amount(len(found.rank), 'image')}. These are the ones with the most captions before their own."
    )
    return section("missed", "Captions that were missed", note(text), el("ul", *cards, class_="gallery"))


def _card(row: Row, found: Retrieved, place: int, picture: Picture | None) -> Element:
    key, shard = str(found.keys[place]), str(found.shards[place])
    name = shorten(key, LONGEST_KEY)
    own = shorten(str(found.captions[np.flatnonzero(found.owner == place)[0]]), LONGEST_CAPTION)
    first = shorten(str(found.captions[found.first[place]]), LONGEST_CAPTION)
    before = amount(int(found.rank[place]), "caption")
    words = el("p", el("b", own), f" behind {before}, the first is ", el("b", first))
    shown = draw(picture, shard, key, row, f"{name}: {own}, behind {first}")
    return el("li", shown, words, el("p", name, class_="key", title=shorten(redact(shard), LONGEST_REASON)))
