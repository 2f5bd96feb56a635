"""Answers to parts of many images, each kept in a file of its own until all are there.

A part is a shard, or some files. Its answers depend on nothing but the part and what was asked, and its file
is named by both: whoever begins again has only those parts to answer that have no file.
"""

import json
import os
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import numpy as np

from packvit.common.engine.engine import Engine
from packvit.common.files import write_whole
from packvit.common.stores.objects import describe_objects, is_object
from packvit.data import FetchConfig, is_remote, redact
from packvit.data.shards.fetch import ASK_TIMEOUT
from packvit.data.shards.source import current_facts
from packvit.evaluate.predict.prediction import Prediction
from packvit.evaluate.predict.predictor import Predictor
from packvit.evaluate.predict.read import Break, Source
from packvit.evaluate.predict.sources import Found, Place
from packvit.packing import derive_seed

Answer = tuple[str, Prediction]  # with the image's name


def answer_here(predictor: Predictor, found: Found) -> Generator[Answer, None, None]:
    """The answers to all images, in their order, as they come."""
    names: deque[str] = deque()

    def sources() -> Iterator[Source | Break]:
        for image in found.images():
            if isinstance(image, Break):
                yield image
            else:
                names.append(image.name)
                yield image.source

    predictions = predictor.stream(sources())
    try:
        for prediction in predictions:
            yield names.popleft(), prediction
    finally:
        predictions.close()  # at once, so that nothing goes on decoding


def answer_parts(
    engine: Engine, found: Found, asked: str, folder: Path, setup: Callable[[str], Predictor], device: str
) -> Iterator[Answer]:
    """The same by an engine, once there is a file of each part.

    Args:
        engine: answers the parts.
        found: the images.
        asked: all that answers depend on but the images.
        folder: gets the files.
        setup: makes a predictor from a device.
        device: of the predictors.
    """
    folder.mkdir(exist_ok=True)
    parts, stamp = list(found.parts()), Stamps().of
    files = [folder / f"{derive_seed(asked, *map(stamp, part)):032x}.json" for part in parts]
    jobs = [
        (describe(part), str(file), part, found.fetch)
        for part, file in zip(parts, files, strict=True)
        if not file.exists()
    ]
    for file, answers in engine.run("predicting", answer_part, jobs, setup, device):
        write_whole(Path(file), json.dumps([_to_json(*answer) for answer in answers]))
    for file in files:
        yield from map(_from_json, json.loads(file.read_text()))


def answer_part(
    predictor: Predictor, _: str, file: str, part: Sequence[Place], fetch: FetchConfig
) -> tuple[str, list[Answer]]:
    """The answers to the images of a part, and the file that is to keep them: a job."""
    return file, list(answer_here(predictor, Found(iter(part), None, fetch)))


def describe(part: Sequence[Place]) -> str:
    """What a part is called."""
    first = redact(part[0].path)
    return first if len(part) == 1 else f"{first} and {len(part) - 1} files after it"


class Stamps:
    """What tells images from others without a look at them: the place, and what is said of its contents."""

    def __init__(self) -> None:
        self._listed: dict[str, dict[str, str]] = {}  # by folder of a store: what it says of its objects

    def of(self, place: Place) -> str:
        """The stamp of a shard or an image."""
        path = place.path
        if is_object(path):
            return f"{place!r} {self._in_store(path)}"
        if is_remote(path):
            return f"{place!r} {current_facts(path, ASK_TIMEOUT)}"
        try:
            status = os.stat(path)
        except OSError:
            return repr(place)
        return f"{place!r} {status.st_size} {status.st_mtime_ns}"

    def _in_store(self, path: str) -> str:
        folder = path.rpartition("/")[0]
        if folder not in self._listed:
            self._listed[folder] = {}
            with suppress(OSError):  # whoever reads the shard will say so
                self._listed[folder] = describe_objects(folder)
        return self._listed[folder].get(path, "")


def _to_json(name: str, prediction: Prediction) -> dict:
    features = None if prediction.features is None else prediction.features.tolist()
    return asdict(prediction) | {"image": name, "features": features}


def _from_json(line: dict) -> Answer:
    name, features = line.pop("image"), line.pop("features")
    lists = {key: tuple(line.pop(key)) for key in ("labels", "scores", "names") if line[key] is not None}
    vector = None if features is None else np.array(features, np.float32)
    return name, Prediction(**lists, **line, features=vector)
