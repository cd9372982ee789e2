"""Masked-volume modelling: what is hidden, that nothing of it is seen, and that the encoder is the classifier's."""

import math

import monai.networks.blocks.selfattention as monai_attention
import pytest
import torch
from monai.networks.nets import MaskedAutoEncoderViT

from medvol.errors import MedvolError
from medvol.networks.masked import (
    MaskedVit,
    cube_edge,
    decoder_layout,
    draw_masks,
    enlarged,
    masked_transformer,
    settle_norms,
    start_from,
)
from medvol.networks.swin_unetr import swin_unetr
from medvol.networks.swin_weights import load_swin_unetr_weights
from medvol.networks.vit3d import PRESETS
from medvol.networks.vit_blocks import VisionTransformer, VitLayout
from medvol.networks.volume_transformer import start_from as start_classifier
from medvol.networks.volume_transformer import volume_transformer
from medvol.training.masked import MaskedError

SIZE = (8, 12, 16)
SWIN = {"architecture": "swin", "feature_size": 12}


def network(size=SIZE, seed=0, **options):
    torch.manual_seed(seed)
    return masked_transformer(2, spatial_size=size, **options)


@pytest.fixture
def monais_autoencoder(monkeypatch):
    """Make MONAI's masked autoencoder without einops, which we do not need, hiding the patches that it is told."""

    class Rearrange(torch.nn.Module):
        def __init__(self, pattern, qkv=None, l=None):  # noqa: E741 - MONAI's word
            super().__init__()
            self.splits, self.heads = pattern.startswith("b h (qkv"), l

        def forward(self, x):
            if self.splits:
                return x.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
            return x.permute(0, 2, 1, 3).flatten(2)

    monkeypatch.setattr(monai_attention, "Rearrange", Rearrange)

    def make(visible, **options):
        monkeypatch.setattr(torch, "multinomial", lambda *args, **kwargs: visible)
        learnable = {"pos_embed_type": "learnable", "decoder_pos_embed_type": "learnable"}
        return MaskedAutoEncoderViT(**learnable, **options)

    return make


def test_without_a_stem_it_computes_what_monais_masked_autoencoder_does(monais_autoencoder):
    torch.manual_seed(0)
    layout = VitLayout(patch_size=4, width=24, depth=2, heads=3, mlp_width=40, qkv_bias=False)
    encoder = VisionTransformer("small", 2, 1, SIZE, layout)
    masked = MaskedVit(encoder, layout, 2, 0.75).eval()
    for parameter in masked.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    masked.positions.data[:, 0] = 0  # MONAI's decoder gives the class token none
    volumes = torch.randn(2, 2, *SIZE)
    with torch.no_grad():
        output = masked(volumes)
    hidden = output[:, 2, ::4, ::4, ::4].flatten(1).bool()
    visible = torch.stack([(~row).nonzero().flatten().flip(0) for row in hidden])  # in whatever order

    decoder = {"decoder_hidden_size": 12, "decoder_mlp_dim": 20, "decoder_num_layers": 2, "decoder_num_heads": 3}
    own = {"patch_size": 4, "hidden_size": 24, "num_layers": 2, "num_heads": 3, "mlp_dim": 40}
    stock = monais_autoencoder(visible, in_channels=2, img_size=SIZE, **own, **decoder).eval()
    state = {name: value for name, value in masked.encoder_state().items() if not name.startswith("norm.")}
    state |= {f"blocks.2.{part}": getattr(encoder.norm, part) for part in ("weight", "bias")}
    state |= {f"decoder_blocks.{name}": value for name, value in masked.layers.state_dict().items()}
    state |= {f"decoder_embed.{name}": value for name, value in masked.embed.state_dict().items()}
    state |= {f"decoder_pred.{name}": value for name, value in masked.predict.state_dict().items()}
    state |= {"mask_tokens": masked.mask_token, "decoder_pos_embedding": masked.positions[:, 1:]}
    assert not [name for name in stock.load_state_dict(state, strict=False).missing_keys if "cross_attn" not in name]
    with torch.no_grad():
        tokens, mask = stock(volumes)
    assert torch.equal(mask.bool(), hidden)
    patches = output[:, :2].unfold(2, 4, 4).unfold(3, 4, 4).unfold(4, 4, 4).permute(0, 2, 3, 4, 1, 5, 6, 7)
    torch.testing.assert_close(patches.reshape(tokens.shape), tokens, atol=1e-5, rtol=0)


def test_every_volume_hides_the_stated_share_of_its_cells_and_each_its_own():
    hidden = draw_masks(50, (2, 3, 4), 0.75, torch.Generator().manual_seed(0))
    assert (hidden.shape, hidden.dtype) == ((50, 2, 3, 4), torch.bool)
    assert (hidden.flatten(1).sum(1) == 18).all()
    assert len({tuple(row.tolist()) for row in hidden.flatten(1)}) > 40
    # No cell is favoured: each is hidden in about three of four volumes.
    many = draw_masks(4000, (2, 3, 4), 0.75, torch.Generator().manual_seed(1)).float().mean(0)
    assert (many - 0.75).abs().max() < 5 * math.sqrt(0.75 * 0.25 / 4000)


@pytest.mark.parametrize(("ratio", "count"), [(0.01, 1), (0.5, 4), (0.99, 7)])
def test_something_is_always_hidden_and_something_always_visible(ratio, count):
    assert int(draw_masks(1, (2, 2, 2), ratio).sum()) == count


def test_a_cell_covers_its_voxels_along_each_axis():
    cells = torch.zeros(1, 1, 2, 3, dtype=torch.bool)
    cells[0, 0, 1, 2] = True
    voxels = enlarged(cells, 2)
    assert voxels.shape == (1, 1, 2, 4, 6)
    assert voxels.nonzero().min(0).values.tolist() == [0, 0, 0, 2, 4]
    assert int(voxels.sum()) == 8


@pytest.mark.parametrize(
    ("options", "size", "cell", "share"),
    [
        ({}, SIZE, 4, 18 / 24),
        ({"patch_size": 2, "mask_ratio": 0.5}, (4, 4, 6), 2, 0.5),
        (SWIN, (32, 32, 32), 8, 0.75),
        ({**SWIN, "mask_cube": 16, "mask_ratio": 0.6}, (32, 32, 32), 16, 5 / 8),
    ],
)
def test_the_output_is_a_prediction_of_every_voxel_and_the_mask_in_whole_cells(options, size, cell, share):
    output = network(size, **options)(torch.randn(2, 2, *size))
    assert output.shape == (2, 3, *size)
    mask = output[:, 2]
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    assert mask.mean().item() == pytest.approx(share, abs=1e-6)
    assert torch.equal(mask, enlarged(mask[:, ::cell, ::cell, ::cell], cell)[:, 0])


@pytest.mark.parametrize(("options", "size"), [({}, SIZE), ({"patch_size": 2}, (4, 4, 6)), (SWIN, (32, 32, 32))])
def test_hidden_voxels_change_nothing_and_visible_ones_do(options, size):
    masked = network(size, **options).eval()  # in evaluation mode the same cells are hidden each time
    volumes = torch.randn(1, 2, *size)
    with torch.no_grad():
        before = masked(volumes)
        hidden = before[:, 2:].bool()
        changed = torch.where(hidden, torch.randn_like(volumes), volumes)
        assert torch.equal(masked(changed), before)
        assert not torch.allclose(masked(torch.where(hidden, volumes, -volumes))[:, :2], before[:, :2])


def test_in_training_other_patches_are_hidden_each_time_and_the_seed_says_which():
    masked, volumes = network(), torch.randn(3, 2, *SIZE)
    torch.manual_seed(5)
    first, second = masked(volumes)[:, 2], masked(volumes)[:, 2]
    torch.manual_seed(5)
    again = masked(volumes)[:, 2]
    assert not torch.equal(first, second)
    assert torch.equal(first, again)


def test_predictions_return_to_the_place_of_their_patch():
    masked = network(mask_ratio=0.5).eval()
    # Every patch predicts its own number: the decoder passes its positions on, of which one axis holds that number.
    with torch.no_grad():
        masked.layers = torch.nn.Identity()
        masked.embed.weight.zero_(), masked.embed.bias.zero_(), masked.mask_token.zero_()
        masked.positions.zero_()[0, 1:, 0] = torch.arange(24.0)
        masked.predict.weight.zero_()[:, 0] = 1
        masked.predict.bias.copy_(torch.arange(2 * 64) / 1000)
        output = masked(torch.zeros(1, 2, *SIZE))[0]
    for channel, x, y, z in [(0, 0, 0, 0), (1, 5, 6, 7), (0, 7, 11, 15), (1, 4, 0, 13)]:
        patch = (x // 4 * 3 + y // 4) * 4 + z // 4
        within = ((channel * 4 + x % 4) * 4 + y % 4) * 4 + z % 4
        assert output[channel, x, y, z].item() == pytest.approx(patch + within / 1000, abs=1e-4)


@pytest.mark.parametrize(("options", "size"), [({}, SIZE), (SWIN, (32, 32, 32))])
def test_every_parameter_but_the_unused_head_receives_a_gradient(options, size):
    masked, volumes = network(size, **options), torch.randn(2, 2, *size)
    MaskedError()(masked(volumes), volumes).backward()
    without = {name for name, value in masked.named_parameters() if value.grad is None or not value.grad.any()}
    assert without == ({f"encoder.classification_head.{part}" for part in ("weight", "bias")} if not options else set())


def test_it_learns_to_fill_in_what_is_hidden():
    masked = network((8, 8, 8), patch_size=2)
    # A volume is 1 or -1 throughout: without a look at the visible patches the best answer is 0, with an error of 1.
    optimizer = torch.optim.AdamW(masked.parameters(), lr=3e-3)
    generator, losses = torch.Generator().manual_seed(0), []
    for _ in range(60):
        volumes = torch.randn(8, 1, 1, 1, 1, generator=generator).sign().expand(-1, 2, 8, 8, 8)
        loss = MaskedError()(masked(volumes), volumes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 0.9
    assert sum(losses[-3:]) / 3 < 0.1


@pytest.mark.parametrize(("options", "size"), [({}, SIZE), ({"patch_size": 8}, (8, 16, 8)), (SWIN, (32, 32, 32))])
def test_the_encoder_has_the_classifiers_names_and_arrives_in_it(options, size, tmp_path):
    torch.save(network(size, **options).encoder_state(), tmp_path / "encoder.pt")
    classifier = volume_transformer(2, 3, spatial_size=size, **options)
    heads = {name: value.clone() for name, value in classifier.state_dict().items() if "head" in name}
    assert len(heads) == 2
    start_classifier(classifier, tmp_path / "encoder.pt")
    saved, own = torch.load(tmp_path / "encoder.pt"), classifier.state_dict()
    assert set(own) == set(saved) | set(heads)
    assert all(torch.equal(own[name], {**saved, **heads}[name]) for name in own)


def test_the_swin_encoder_arrives_in_a_segmentation_network():
    state = network((32, 32, 32), **SWIN).encoder_state()
    segmentation = swin_unetr(2, 4, feature_size=12)
    result = load_swin_unetr_weights(segmentation, state)
    assert set(result.loaded) == set(state)
    assert all(torch.equal(segmentation.state_dict()[name], state[name]) for name in state)
    assert not any(name.startswith("swinViT.") for name in result.left)


@pytest.mark.parametrize(("options", "size"), [({}, SIZE), (SWIN, (32, 32, 32))])
def test_pretraining_goes_on_from_an_encoder(options, size, tmp_path):
    state = network(size, **options).encoder_state()
    torch.save(state, tmp_path / "e.pt")
    other = network(size, seed=1, **options)
    assert not all(torch.equal(value, state[name]) for name, value in other.encoder_state().items())
    assert start_from(other, tmp_path / "e.pt") is other
    assert all(torch.equal(value, state[name]) for name, value in other.encoder_state().items())
    assert start_from(other, "") is other


@pytest.mark.parametrize(
    ("made", "wanted", "message"),
    [
        (({}, SIZE), (SWIN, (32, 32, 32)), "architecture vit; expected swin; pass --architecture vit"),
        ((SWIN, (32, 32, 32)), ({}, SIZE), "architecture swin; expected vit"),
        (({"patch_size": 4}, (8, 8, 8)), ({"patch_size": 8}, (8, 8, 8)), "patch_embeddings"),
        (({}, (8, 8, 12)), ({}, (8, 8, 8)), "positions of 12 patches"),
        ((SWIN, (32, 32, 32)), ({**SWIN, "feature_size": 24}, (32, 32, 32)), "24x2x2x2x2"),
    ],
)
def test_an_encoder_of_another_architecture_or_size_is_refused(made, wanted, message, tmp_path):
    torch.save(network(made[1], **made[0]).encoder_state(), tmp_path / "e.pt")
    with pytest.raises(MedvolError, match=f"OTHER_NETWORK.*{message}"):
        start_classifier(volume_transformer(2, 3, spatial_size=wanted[1], **wanted[0]), tmp_path / "e.pt")


def test_batch_norms_end_on_what_whole_volumes_show_them():
    masked, batches = network(), [torch.randn(3, 2, *SIZE) + shift for shift in (0.0, 1.0)]
    masked(batches[0])
    settle_norms(masked.eval(), batches)
    first, norm = masked.encoder.patch_embedding.patch_embeddings[:2]
    with torch.no_grad():
        seen = [first(batch).transpose(0, 1).flatten(1) for batch in batches]
    torch.testing.assert_close(norm.running_mean, sum(part.mean(1) for part in seen) / 2, atol=1e-5, rtol=0)
    torch.testing.assert_close(norm.running_var, sum(part.var(1) for part in seen) / 2, atol=1e-4, rtol=0)
    assert not any(module.training for module in masked.modules())
    settle_norms(network((32, 32, 32), **SWIN), batches)  # has none, and is not run


def test_the_decoder_is_half_as_wide_and_a_third_as_deep_without_dropout():
    assert decoder_layout(PRESETS["compact"]) == VitLayout(4, 48, 2, 3, 96, stem=True)
    assert decoder_layout(PRESETS["base"]) == VitLayout(16, 384, 4, 12, 1536, qkv_bias=False)


def test_cubes_are_a_quarter_to_a_sixth_of_an_axis():
    assert [cube_edge((edge, edge, 64)) for edge in (32, 64, 96)] == [8, 16, 16]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask_ratio": 0.0}, "BAD_VALUE: mask_ratio 0.0"),
        ({"mask_ratio": 1.0}, "BAD_VALUE: mask_ratio 1.0"),
        ({"mask_cube": 8}, "UNKNOWN_OPTION: mask_cube with a vit"),
        ({"architecture": "swim"}, "UNKNOWN_OPTION.*'swin'"),
        ({"architecture": "swin"}, "INPUT_SIZE"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(MedvolError, match=message):
        network(**options)


def test_a_cube_that_does_not_divide_the_grid_and_a_volume_of_another_size_are_refused():
    with pytest.raises(MedvolError, match="UNKNOWN_OPTION: mask_cube 12"):
        network((32, 32, 32), **SWIN, mask_cube=12)
    with pytest.raises(MedvolError, match="INPUT_SIZE"):
        network((32, 32, 32), **SWIN)(torch.zeros(1, 2, 32, 32, 33))
    with pytest.raises(MedvolError, match="INPUT_SIZE"):
        network()(torch.zeros(1, 2, 8, 8, 8))
