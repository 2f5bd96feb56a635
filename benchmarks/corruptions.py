"""A contact sheet of all corruptions, and how long each takes: docs/images/corruptions.jpg.

    python benchmarks/corruptions.py

The picture is scikit-learn's china.jpg, by danielbuechele on Flickr, CC BY 2.0.
"""

import argparse
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from sklearn.datasets import load_sample_image

from packvit.data.samples.corrupt import KINDS, STRENGTHS, Corruption, bring_to_area

SHEET = Path(__file__).parent.parent / "docs/images/corruptions.jpg"
TILE, LABEL = (132, 99), 124  # pixels: width and height of a picture, width of the kind's name


def main() -> None:
    """Draw, time, print a table."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    # The middle of the photograph, at 4:3, so that the roof's details are large enough to see.
    image = load_sample_image("china.jpg")[60:360, 120:520]
    width, height = TILE
    sheet = Image.new("RGB", (LABEL + (len(STRENGTHS) + 1) * width, len(KINDS) * height), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    clean = bring_to_area(image)
    print("| kind | ms an image |\n| --- | ---: |")
    for row, kind in enumerate(KINDS):
        pen.text((6, (row + 0.5) * height), kind.replace("_", " "), "black", font, "lm")
        for strength in STRENGTHS:  # what is made once is not timed
            Corruption(kind, strength)(image, "china")
        began = time.perf_counter()
        shown = [clean, *(Corruption(kind, strength)(image, "china") for strength in STRENGTHS)]
        print(f"| {kind} | {(time.perf_counter() - began) / len(STRENGTHS) * 1000:.0f} |")
        for column, pixels in enumerate(shown):
            tile = Image.fromarray(np.ascontiguousarray(pixels)).resize(TILE, Image.Resampling.BOX)
            sheet.paste(tile, (LABEL + column * width, row * height))
    sheet.save(SHEET, quality=80, optimize=True)
    print(f"Wrote {SHEET}")


if __name__ == "__main__":
    main()
