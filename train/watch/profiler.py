"""A profile of some steps: a trace for chrome://tracing or https://ui.perfetto.dev, and a table."""

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from packvit.common.display import Display
from packvit.train.config import Config

WARM_UP = 5  # steps before those that are recorded: memory is allocated and kernels are compiled
ROWS = 30


class Profiler:
    """Records `train.profile` steps after a few, and writes them into the run's folder:
    profile/step-XXXXXXXX.trace.json.gz and step-XXXXXXXX.txt, named by the first step recorded.

    Args:
        done: steps of the run before this start of it.
    """

    def __init__(self, config: Config, device: torch.device, done: int, display: Display) -> None:
        self.folder, self.device, self.display = config.folder / "profile", device, display
        self.name = f"step-{done + WARM_UP + 1:08d}"
        activities = [ProfilerActivity.CPU]
        if device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        # The profiler itself wants one step to warm up.
        plan = schedule(wait=WARM_UP - 1, warmup=1, active=config.train.profile, repeat=1)
        self.profile = profile(activities=activities, schedule=plan, on_trace_ready=self._write)
        self.profile.start()

    def step(self) -> None:
        """Note that a step is over."""
        self.profile.step()

    def stop(self) -> None:
        """Note that the run is over; writes an incomplete recording."""
        self.profile.stop()
        if not (self.folder / f"{self.name}.txt").exists():
            self.display.say(f"No profile: it begins after {WARM_UP} steps, and the run had no more")

    def _write(self, profile: profile) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        profile.export_chrome_trace(str(self.folder / f"{self.name}.trace.json.gz"))
        order = "self_device_time_total" if self.device.type == "cuda" else "self_cpu_time_total"
        table = profile.key_averages().table(sort_by=order, row_limit=ROWS, max_name_column_width=60)
        (self.folder / f"{self.name}.txt").write_text(table + "\n")
        self.display.say(f"Wrote a profile: {self.folder / self.name}.txt and .trace.json.gz")
