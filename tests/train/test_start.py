"""Several ranks begin a run on many shards: none looks at each of them, and together they read as one."""

import io
import json

from PIL import Image

from packvit.data import write_shards
from packvit.data.make.write import Sample

SHARDS = 300
PLACES = ("3-0", "3-1", "3-2")  # size and rank


def test_no_rank_looks_at_every_shard_and_together_they_read_as_one(tmp_path, run_ranks):
    picture = io.BytesIO()
    Image.new("RGB", (20, 30)).save(picture, "jpeg")
    samples = (Sample(f"s{number:04d}", picture.getvalue(), "jpg", 0) for number in range(4 * SHARDS))
    write_shards(samples, tmp_path / "shards", 4)
    shards = f"{tmp_path}/shards/shard-{{000000..{SHARDS - 1:06d}}}.tar"
    run_ranks("start_program.py", shards, str(tmp_path))
    alone, *ranks = [json.loads((tmp_path / f"{name}.json").read_text()) for name in ("1-0", *PLACES)]
    assert max(rank["looks"] for rank in (alone, *ranks)) < SHARDS / 10
    assert alone["keys"] == [rank["keys"][0] for rank in ranks]
    assert all(rank["state"]["streams"] == alone["state"]["streams"] for rank in ranks)
