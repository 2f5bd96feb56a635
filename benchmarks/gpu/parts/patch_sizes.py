"""What ten patch sizes in a batch cost against one, at equal tokens."""

from collections.abc import Iterator
from typing import Any

from gpu.batches import make_batch
from gpu.compiling import TEN
from gpu.options import Options
from gpu.steps import Size, make_trainer, model_config, plan
from gpu.timing import best_seconds, effort, wait


def run(options: Options) -> Iterator[tuple[str, Any]]:
    """Milliseconds of a step with each, rounds in turn, and their ratio."""
    device = options.device
    size = Size(2, 64) if options.tiny else Size(64, 1024)
    name = "B"
    trainer = make_trainer(plan(model_config(name, options.tiny), compiled=not options.tiny), device)
    sets = {"one": (16,), "ten": TEN}
    batches = {key: make_batch(size.rows, size.seq_len, sizes).to(device) for key, sizes in sets.items()}
    best: dict[str, float] = {}
    for key, batch in batches.items():  # compiles
        best[key] = best_seconds(lambda batch=batch: trainer.step(batch), device, 1, 1)
    wait(device)
    calls = effort(max(best.values()), 0.05 if options.tiny else 1.0)
    for _ in range(2 if options.tiny else 5):
        for key, batch in batches.items():
            seconds = best_seconds(lambda batch=batch: trainer.step(batch), device, 1, calls)
            best[key] = min(best[key], seconds)
    yield "ms", {key: seconds * 1e3 for key, seconds in best.items()}
    yield "ten_over_one", best["ten"] / best["one"]
    yield "tokens", size.tokens
    yield "model", f"ViT-{name}"
