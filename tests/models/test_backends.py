"""Which backend is chosen where: by what is installed and computes, and by measurement."""

import json
import sys
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace

import pytest
import torch

from packvit.models import activate_flash, choose_backend, fastest_backend, measure_backends
from packvit.models.attention import backends, cuda, measure

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.fixture(autouse=True)
def _pretended_gpu(monkeypatch) -> Iterator[None]:
    """A GPU of capability 9.0 by name, and nothing remembered."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "GPU of the test")
    monkeypatch.setattr(measure, "_chosen", {})
    caches = (choose_backend, backends._xformers_obstacle)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


def install_xformers(monkeypatch, attend: Callable) -> None:
    """An xformers whose attention is `attend`."""
    names = ("xformers", "xformers.ops", "xformers.ops.fmha", "xformers.ops.fmha.attn_bias")
    modules = {name: ModuleType(name) for name in names}
    modules["xformers"].__spec__ = SimpleNamespace(name="xformers")  # type: ignore[assignment]
    modules["xformers.ops"].memory_efficient_attention = attend  # type: ignore[attr-defined]
    mask = SimpleNamespace(from_seqlens=lambda lengths, device: lengths)
    modules["xformers.ops.fmha.attn_bias"].BlockDiagonalMask = mask  # type: ignore[attr-defined]
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)


def no_kernel(*arguments, **options):
    """As xformers does that was built for another CUDA."""
    raise NotImplementedError("No operator found for `memory_efficient_attention_forward`:\nnot built")


def test_xformers_without_kernels_is_not_chosen(monkeypatch):
    install_xformers(monkeypatch, no_kernel)
    with pytest.raises(NotImplementedError):
        cuda.try_xformers(CPU, torch.float32, 16)
    assert choose_backend("auto", CUDA, torch.float32) == "sdpa"
    with pytest.raises(ValueError, match="'xformers' is installed, but cannot compute here"):
        choose_backend("xformers", CUDA, torch.float32)
    reason = backends._xformers_obstacle(CPU, torch.float32, 16)
    assert reason is not None
    assert "(No operator found for `memory_efficient_attention_forward`:; see" in reason


def test_xformers_that_computes_is_chosen_where_varlen_cannot(monkeypatch):
    install_xformers(monkeypatch, lambda q, k, v, attn_bias, scale: q * k * v)
    with torch.inference_mode():
        cuda.try_xformers(CPU, torch.float32, 12)  # forward and backward, in whatever mode
    monkeypatch.setattr(backends, "try_xformers", lambda *_: None)
    assert choose_backend("auto", CUDA, torch.float32) == "xformers"
    assert choose_backend("auto", CUDA, torch.bfloat16) == "varlen"
    assert choose_backend("auto", CUDA, torch.float64) == "sdpa"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    choose_backend.cache_clear()
    assert choose_backend("auto", CUDA, torch.float16) == "xformers"


def test_a_missing_xformers_says_what_to_install(monkeypatch):
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs xformers: pip install 'packvit\[xformers\]'"):
        choose_backend("xformers", CUDA, torch.float32)


def test_varlen_takes_heads_of_at_most_256_channels(monkeypatch):
    monkeypatch.setattr(backends, "try_xformers", no_kernel)
    assert choose_backend("auto", CUDA, torch.bfloat16, 250) == "varlen"
    assert choose_backend("varlen", CUDA, torch.bfloat16, 256) == "varlen"
    assert choose_backend("auto", CUDA, torch.bfloat16, 257) == "sdpa"
    with pytest.raises(ValueError, match="at most 256 channels, not 320: use xformers or sdpa"):
        choose_backend("varlen", CUDA, torch.bfloat16, 320)


def pretend(times: dict[str, float]) -> Callable[..., dict[str, float]]:
    """A measurement that may be made once."""
    left = [times]
    return lambda *_: left.pop()


def test_the_fastest_is_measured_once_and_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("PACKVIT_CACHE", str(tmp_path))
    case = (CUDA, torch.bfloat16, 12, 64, [256] * 8)
    assert fastest_backend(*case, measure=pretend({"sdpa": 2.0, "flex": 1.0, "varlen": 3.0})) == "flex"
    assert fastest_backend(*case, measure=pretend({})) == "flex"  # as this process remembers
    monkeypatch.setattr(measure, "_chosen", {})
    assert fastest_backend(*case, measure=no_kernel) == "flex"  # as the file says
    ((key, kept),) = json.loads((tmp_path / "backends.json").read_text()).items()
    assert kept == {"backend": "flex", "ms": {"sdpa": 2.0, "flex": 1.0, "varlen": 3.0}}
    for part in ("GPU of the test", torch.__version__, "FA2", "bfloat16", "12 heads of 64", "2^11 tokens"):
        assert part in key
    assert list(tmp_path.iterdir()) == [tmp_path / "backends.json"]


def test_another_case_is_measured_by_itself(monkeypatch, tmp_path):
    monkeypatch.setenv("PACKVIT_CACHE", str(tmp_path))
    cases = [
        (CUDA, torch.bfloat16, 12, 64, [256] * 8),
        (CUDA, torch.float16, 12, 64, [256] * 8),
        (CUDA, torch.bfloat16, 12, 80, [256] * 8),
        (CUDA, torch.bfloat16, 12, 64, [2048]),
        (CUDA, torch.bfloat16, 12, 64, [256] * 64),
    ]
    for case in cases:
        assert fastest_backend(*case, measure=pretend({"flex": 1.0})) == "flex"
    # Lengths that are about the same are the same case.
    assert fastest_backend(CUDA, torch.bfloat16, 12, 64, [250, 260] * 4, measure=no_kernel) == "flex"
    monkeypatch.setattr(torch, "__version__", "9.9")
    assert fastest_backend(*cases[0], measure=pretend({"sdpa": 1.0})) == "sdpa"


def test_what_is_kept_and_cannot_run_any_more_is_measured_anew(monkeypatch, tmp_path):
    monkeypatch.setenv("PACKVIT_CACHE", str(tmp_path))
    case = (CUDA, torch.float32, 12, 64, [256] * 8)
    assert fastest_backend(*case, measure=pretend({"xformers": 1.0, "sdpa": 2.0})) == "xformers"
    monkeypatch.setattr(measure, "_chosen", {})
    install_xformers(monkeypatch, no_kernel)
    assert fastest_backend(*case, measure=pretend({"sdpa": 2.0})) == "sdpa"


@pytest.mark.parametrize("damage", ["", "no json", "[1]", '{"key": 3}'])
def test_a_damaged_file_is_replaced(monkeypatch, tmp_path, damage: str):
    monkeypatch.setenv("PACKVIT_CACHE", str(tmp_path))
    (tmp_path / "backends.json").write_text(damage)
    case = (CUDA, torch.bfloat16, 12, 64, [256])
    assert fastest_backend(*case, measure=pretend({"varlen": 1.0})) == "varlen"
    monkeypatch.setattr(measure, "_chosen", {})
    assert fastest_backend(*case, measure=no_kernel) == "varlen"


def test_without_a_folder_or_a_measurement_it_still_chooses(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("PACKVIT_CACHE", str(tmp_path / "file"))
    case = (CUDA, torch.bfloat16, 12, 64, [256])
    assert fastest_backend(*case, measure=pretend({"flex": 1.0})) == "flex"
    monkeypatch.setattr(measure, "_chosen", {})
    assert fastest_backend(*case, measure=pretend({})) == "varlen"
    assert fastest_backend(CPU, torch.float32, 12, 64, [256], measure=no_kernel) == "sdpa"


def test_a_measurement_runs_forward_and_backward_of_whatever_can(monkeypatch, caplog):
    monkeypatch.setattr(measure, "CANDIDATES", ("varlen", "dense", "sdpa"))
    gradients, seconds = [], iter((3.0, 1.0))

    def timed(run: Callable) -> float:
        gradients.append([g.shape for g in run()])
        return next(seconds)

    times = measure_backends(CPU, torch.float32, 2, 8, [5, 3], time=timed)
    assert list(times.items()) == [("sdpa", 1.0), ("dense", 3.0)]  # varlen needs CUDA
    assert gradients == [[(8, 2, 8)] * 3] * 2
    assert not caplog.records


def test_a_backend_that_raises_is_left_out_with_a_sentence(monkeypatch, caplog):
    monkeypatch.setattr(measure, "CANDIDATES", ("sdpa", "dense"))
    monkeypatch.setitem(backends.BACKENDS, "dense", backends.Backend(lambda *_: None, no_kernel))
    times = measure_backends(CPU, torch.float32, 2, 8, [5, 3], time=lambda run: len(run()))
    assert times == {"sdpa": 3}
    assert "'dense' is left out, as it fails here: No operator found" in caplog.text


class FlashImplementations:
    """PyTorch's switch of FlashAttention, with some that are installed and some that compute."""

    def __init__(self, monkeypatch, installed: set[str], computing: set[str]) -> None:
        self.active: str | None = None
        self.installed = installed
        attention = torch.nn.attention
        monkeypatch.setattr(attention, "list_flash_attention_impls", lambda: ["FA3", "FA4"])
        monkeypatch.setattr(attention, "activate_flash_attention_impl", self.activate)
        monkeypatch.setattr(attention, "current_flash_attention_impl", lambda: self.active)
        monkeypatch.setattr(attention, "restore_flash_attention_impl", self.restore)

        def attend(*_):
            if self.active not in computing:
                raise RuntimeError("needs another GPU")

        monkeypatch.setattr(cuda, "_try", attend)

    def activate(self, name: str) -> None:
        if name not in self.installed:
            raise ModuleNotFoundError(f"no module of {name}")
        self.active = name

    def restore(self) -> None:
        assert self.active is not None
        self.active = None


@pytest.mark.parametrize(
    ("installed", "computing", "expected"),
    [
        ({"FA3", "FA4"}, {"FA3", "FA4"}, "FA4"),
        ({"FA3"}, {"FA3", "FA4"}, "FA3"),
        ({"FA3", "FA4"}, {"FA3"}, "FA3"),
        ({"FA4"}, {"FA3"}, None),
        (set(), set(), None),
    ],
)
def test_the_newest_flash_attention_that_computes_is_activated(monkeypatch, installed, computing, expected):
    switch = FlashImplementations(monkeypatch, installed, computing)
    assert activate_flash(CUDA, torch.bfloat16, 64) == expected
    assert switch.active == expected


def test_no_flash_attention_is_activated_on_a_cpu_or_by_an_old_torch(monkeypatch):
    switch = FlashImplementations(monkeypatch, {"FA4"}, {"FA4"})
    assert activate_flash(CPU, torch.bfloat16, 64) is None
    monkeypatch.delattr(torch.nn.attention, "activate_flash_attention_impl")
    assert activate_flash(CUDA, torch.bfloat16, 64) is None
    assert switch.active is None


@pytest.mark.parametrize(
    ("unable", "measured"), [((), ["varlen", "flex"]), (("varlen",), ["flex", "xformers", "sdpa"])]
)
def test_what_plans_on_the_host_is_no_match_for_varlen(unable, measured, monkeypatch):
    monkeypatch.setattr(measure, "obstacle", lambda name, *_: "cannot" if name in unable else None)
    monkeypatch.setattr(measure.Segments, "build", lambda *_, **__: None)
    monkeypatch.setattr(measure, "attention", lambda q, k, v, segments: q * k * v)
    times = measure_backends(CPU, torch.float32, 2, 8, [3, 4], time=lambda run: 1.0)
    assert list(times) == measured
