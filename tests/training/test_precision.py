"""The precision that ``auto`` chooses follows what the hardware can do."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType, SimpleNamespace

import pytest
import torch

from lumitok.errors import LumitokError
from lumitok.nn import precision as nn_precision
from lumitok.training.begin import accelerator_in
from lumitok.training.precision import choose_precision, default_device


def with_cpu(monkeypatch: pytest.MonkeyPatch, **flags: object) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: MappingProxyType(flags), raising=False)


def with_cuda(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], emulated: bool = True) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Some GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(
        torch.cuda,
        "is_bf16_supported",
        lambda including_emulation: capability >= (8, 0) or (including_emulation and emulated),
    )


@pytest.mark.parametrize(("flag", "name"), [("amx_bf16", "AMX"), ("avx512_bf16", "AVX512-BF16")])
def test_a_processor_with_fast_bfloat16_uses_it(
    monkeypatch: pytest.MonkeyPatch, flag: str, name: str
) -> None:
    with_cpu(monkeypatch, avx2=True, **{flag: True})
    chosen = choose_precision("auto", "cpu")
    assert chosen.dtype == torch.bfloat16
    assert name in chosen.reason


def test_a_processor_without_it_stays_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    # The keys are there on every x86 processor: only a True among the values counts.
    with_cpu(monkeypatch, avx512_f=True, avx512_bf16=False, amx_bf16=False, num_sockets=1)
    chosen = choose_precision("auto", "cpu")
    assert chosen.dtype == torch.float32
    assert "neither AMX nor AVX512-BF16" in chosen.reason


def test_an_older_torch_is_answered_by_the_system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    listing = tmp_path / "cpuinfo"
    monkeypatch.setattr(nn_precision, "Path", lambda _: listing)
    assert choose_precision("auto", "cpu").dtype == torch.float32  # There is no listing, as on macOS.
    listing.write_text("processor : 0\nmodel name : x\nflags\t\t: fpu amx_bf16 amx_tile\n\nprocessor : 1\n")
    assert choose_precision("auto", "cpu").dtype == torch.bfloat16
    listing.write_text("processor : 0\nflags\t\t: fpu avx512f\n")
    assert choose_precision("auto", "cpu").dtype == torch.float32


@pytest.mark.parametrize(
    ("capability", "dtype"),
    [((9, 0), torch.bfloat16), ((8, 0), torch.bfloat16), ((7, 5), torch.float32)],
)
def test_cuda_follows_the_compute_capability(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], dtype: torch.dtype
) -> None:
    with_cuda(monkeypatch, capability)
    chosen = choose_precision("auto", "cuda")
    assert chosen.dtype == dtype
    assert "Some GPU has compute capability {}.{}".format(*capability) in chosen.reason


def test_mps_stays_in_float32() -> None:
    assert choose_precision("auto", "mps").dtype == torch.float32


def test_a_setting_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    with_cpu(monkeypatch, amx_bf16=True)
    assert choose_precision("fp32", "cpu").dtype == torch.float32
    with_cpu(monkeypatch)
    assert choose_precision("bf16", "cpu").dtype == torch.bfloat16


def test_bfloat16_is_refused_where_it_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    with_cuda(monkeypatch, (6, 1), emulated=False)
    with pytest.raises(
        LumitokError, match=r"compute capability 6\.1.*set training\.precision to fp32 or auto"
    ):
        choose_precision("bf16", "cuda")


def test_the_accelerator_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    def have(cuda: bool, mps: bool) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(torch.backends, "mps", SimpleNamespace(is_available=lambda: mps))

    for cuda, mps, kind in ((True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")):
        have(cuda, mps)
        assert default_device().type == kind


def test_one_process_may_train_in_one_precision_after_the_other() -> None:
    cpu, x = torch.device("cpu"), torch.ones(1, 1)
    for dtype in (torch.float32, torch.bfloat16, torch.bfloat16, torch.float32):
        with accelerator_in(dtype, cpu).autocast():
            assert (x @ x).dtype == dtype
