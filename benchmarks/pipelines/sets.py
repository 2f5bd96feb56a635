"""The same JPEGs in the format of each library."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from packvit.data import write_shards
from packvit.data.make.write import Sample

LABEL_BYTES = 8


def write_tars(pictures: list[bytes], number: int, per_file: int, folder: Path) -> None:
    """Shards for packvit and webdataset."""
    samples = (Sample(f"p{i:06d}", pictures[i % len(pictures)], "jpg", i % 10) for i in range(number))
    write_shards(samples, folder, per_file)


def write_chunks(pictures: list[bytes], number: int, per_file: int, folder: Path) -> None:
    """litData's chunks, the files of the pictures unchanged."""
    import litdata  # pyright: ignore[reportMissingImports]

    litdata.optimize(
        fn=partial(_sample, pictures),
        inputs=list(range(number)),
        output_dir=str(folder),
        chunk_size=per_file,
        num_workers=1,
        verbose=False,
    )


def _sample(pictures: list[bytes], place: int) -> dict:
    return {"image": pictures[place % len(pictures)], "label": place % 10}


def write_records(pictures: list[bytes], number: int, per_file: int, folder: Path) -> None:
    """ArrayRecords for grain, a record a group as its documentation says, without compression: a label and a
    JPEG."""
    from array_record.python import array_record_module  # pyright: ignore[reportMissingImports]

    folder.mkdir(parents=True)
    for first in range(0, number, per_file):
        path = str(folder / f"{first:06d}.array_record")
        writer = array_record_module.ArrayRecordWriter(path, "group_size:1,uncompressed")
        for record in _records(pictures, range(first, min(number, first + per_file))):
            writer.write(record)
        writer.close()


def _records(pictures: list[bytes], places: range) -> Iterator[bytes]:
    for place in places:
        yield (place % 10).to_bytes(LABEL_BYTES, "little") + pictures[place % len(pictures)]
