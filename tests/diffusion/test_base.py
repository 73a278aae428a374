"""What every diffusion network keeps: its outputs, its conditioner, its files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lumitok.diffusion import Conditioning, DiffusionNetwork, LightningDiT, SiT, build_network
from lumitok.errors import LumitokError
from lumitok.nn.folders import WEIGHTS
from tests.diffusion.networks import KINDS, PROJECTOR, inputs, network, settings
from tests.parity.fixtures import relative_error


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_new_network_predicts_nothing_and_a_filled_one_uses_all_it_is_given(kind: str) -> None:
    made = build_network(settings(kind))
    out = made(**inputs(made))
    assert out.velocity.shape == (2, 3, 4, 4)
    assert not out.velocity.any()
    made = network(kind)
    given = inputs(made)
    first = made(**given).velocity
    for name in given:
        other = given[name] + (1 if name == "labels" else 0.1)
        assert not torch.allclose(made(**{**given, name: other}).velocity, first, atol=1e-4), name


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_is_trained_and_none_is_drawn_twice_alike(kind: str) -> None:
    made = network(kind, projector=PROJECTOR).train()
    out = made(**inputs(made))
    loss = out.velocity.square().mean() + out.projected.square().mean()
    if out.class_velocity is not None:
        loss = loss + out.class_velocity.square().mean()
    loss.backward()
    idle = [name for name, p in made.named_parameters() if p.grad is None or not p.grad.any()]
    assert not idle


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_sample_is_the_same_in_any_batch(kind: str) -> None:
    made = network(kind)
    given = inputs(made, count=3)
    alone = made(**{name: value[1:2] for name, value in given.items()}).velocity
    assert relative_error(alone, made(**given).velocity[1:2]) < 1e-4


@torch.no_grad()
def test_no_label_is_the_null_label() -> None:
    made = network("lightningdit")
    given = {**inputs(made), "labels": None}
    null = torch.full((2,), made.null_label)
    assert torch.equal(made(**given).velocity, made(**{**given, "labels": null}).velocity)
    free = network("lightningdit", classes=0)
    assert free.conditioner.table is None
    assert free(**given).velocity.any()
    made.check_labels([0, 5])
    for wrong in (-1, 6):
        with pytest.raises(LumitokError, match=f"there is no class {wrong}: the network has 5, from 0"):
            made.check_labels(torch.tensor([0, wrong]))


class TextConditioner(nn.Module):
    """What a text conditioner will be: a condition of its own kind, tokens beside the vector."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.words = nn.Embedding(9, width)

    def forward(self, labels: Tensor, time: Tensor) -> Conditioning:
        return Conditioning(time, self.words(labels))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_tokens_of_a_condition_need_no_other_network(kind: str) -> None:
    made = network(kind)
    made.conditioner = TextConditioner(24)
    given = {**inputs(made), "labels": torch.tensor([[1, 2, 3], [4, 5, 6]])}
    out = made(**given, blocks=[1])
    assert out.velocity.shape == (2, 3, 4, 4)
    assert out.tokens[1].shape == (2, 17 if kind == "reg" else 16, 24)
    changed = made(**{**given, "labels": torch.tensor([[1, 2, 7], [4, 5, 6]])}).velocity
    assert not torch.allclose(changed[0], out.velocity[0], atol=1e-4)
    torch.testing.assert_close(changed[1], out.velocity[1])
    # Words have no position: their order does not matter.
    turned = made(**{**given, "labels": torch.tensor([[3, 1, 2], [4, 5, 6]])}).velocity
    torch.testing.assert_close(turned, out.velocity, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_blocks_and_projector_on_demand() -> None:
    made = network("reg")
    given = inputs(made)
    out = made(**given)
    assert out.projected is None
    assert not out.tokens
    assert out.class_velocity is not None
    assert out.class_velocity.shape == (2, 7)
    asked = made(**given, blocks=(2,), project=True)
    assert list(asked.tokens) == [2]
    assert asked.projected is not None
    assert asked.projected.shape == (2, 17, 6)
    both = made(**given, blocks=(1, 2)).tokens
    assert torch.equal(made.projector(both[1]), asked.projected)
    final = made.final_layer.modulated(both[2], torch.zeros(2, 1, 24))
    assert final.shape == (2, 17, 24)
    assert made.train()(**given).projected is not None


def test_wrong_arguments_say_what_was_wanted() -> None:
    made = network("reg")
    given = inputs(made)
    for changes, said in [
        ({"x": torch.zeros(2, 3, 4, 5)}, r"latents of \(2, 3, 4, 5\) do not fit this network's \(3, 4, 4\)"),
        ({"t": torch.zeros(())}, r"times of \(\) for 2 latents"),
        ({"class_token": None}, r"class_token is None, this network takes \(2, 7\)"),
        ({"blocks": [3]}, "there is no block 3: they are 1 to 2"),
    ]:
        with pytest.raises(LumitokError, match=said):
            made(**{**given, **changes})
    with pytest.raises(LumitokError, match=r"class_token is \(2, 7\), this network takes None"):
        network("sit")(**given)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_network_comes_back_as_it_was(kind: str, tmp_path: Path) -> None:
    made = network(kind)
    made.save_pretrained(tmp_path / "checkpoints" / "step-00000010" / "network")
    state = torch.get_rng_state()
    back = DiffusionNetwork.from_pretrained(tmp_path)
    assert torch.equal(torch.get_rng_state(), state), "no weights are drawn that the file replaces"
    assert type(back) is type(made)
    assert back.settings == made.settings
    assert not back.training
    given = inputs(made)
    assert torch.equal(back(**given).velocity, made(**given).velocity)
    assert all(parameter.requires_grad for parameter in back.parameters())
    half = DiffusionNetwork.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    given = {n: v.bfloat16() if v.is_floating_point() and n != "t" else v for n, v in given.items()}
    assert half(**given).velocity.dtype == torch.bfloat16


@torch.no_grad()
def test_a_file_written_over_does_not_change_a_network_read_from_it(tmp_path: Path) -> None:
    made = network("sit")
    made.save_pretrained(tmp_path)
    back = DiffusionNetwork.from_pretrained(tmp_path)
    for parameter in made.parameters():
        parameter.zero_()
    made.save_pretrained(tmp_path)
    assert all(parameter.any() for parameter in back.parameters())


def test_damaged_folders_are_refused(tmp_path: Path) -> None:
    made = network("lightningdit")
    made.save_pretrained(tmp_path)
    with pytest.raises(LumitokError, match="holds a LightningDiT, not a SiT; open it with DiffusionNetwork"):
        SiT.from_pretrained(tmp_path)
    state = load_file(tmp_path / WEIGHTS)
    state["stranger"] = state.pop("patch_embedding.bias")
    state["conditioner.table.weight"] = torch.zeros(6, 23)
    save_file(state, tmp_path / WEIGHTS)
    said = (
        r"does not fit the model: missing patch_embedding\.bias; unexpected stranger; "
        r"conditioner\.table\.weight is \(6, 23\), not \(6, 24\)"
    )
    with pytest.raises(LumitokError, match=said):
        LightningDiT.from_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "widht": 3}))
    with pytest.raises(LumitokError, match="there is no key 'widht'; did you mean 'width'"):
        LightningDiT.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**config, "_class_name": "LightningDit"}))
    with pytest.raises(LumitokError, match="holds a 'LightningDit', not a network; did you mean 'LightningD"):
        DiffusionNetwork.from_pretrained(tmp_path)
    with pytest.raises(LumitokError, match="there is no folder"):
        DiffusionNetwork.from_pretrained(tmp_path / "missing")


@pytest.mark.parametrize("kind", KINDS)
def test_on_the_meta_device_nothing_is_on_another(kind: str) -> None:
    with torch.device("meta"):
        made = build_network(settings(kind))
    given = {name: value.to("meta") for name, value in inputs(made).items()}
    assert made(**given).velocity.shape == (2, 3, 4, 4)


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # The compiler's own look at it.
@pytest.mark.parametrize("kind", KINDS)
def test_blocks_compile_whole_and_compute_the_same(kind: str) -> None:
    made = network(kind)
    given = inputs(made)
    wanted = made(**given).velocity
    names = set(made.state_dict())
    made.compile_blocks(fullgraph=True, backend="eager")
    torch.testing.assert_close(made(**given).velocity, wanted)
    assert set(made.state_dict()) == names
