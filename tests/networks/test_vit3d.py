"""Transformers for volumes against MONAI's own: names, logits, weights of self-supervised encoders, sizes."""

import monai.networks.blocks.selfattention as monai_attention
import monai.networks.nets.swin_unetr as monai_swin
import pytest
import torch
from monai.networks.nets import MaskedAutoEncoderViT, ViT, ViTAutoEnc
from torch import nn
from torch.nn import functional

from medvol.errors import MedvolError
from medvol.networks.swin_unetr import swin_unetr
from medvol.networks.swin_weights import load_swin_unetr_weights
from medvol.networks.vit3d import load_monai_vit, swin_classifier, vit3d
from medvol.networks.vit_blocks import Attention, VisionTransformer, VitLayout, fit_positions

SMALL = VitLayout(patch_size=4, width=24, depth=2, heads=3, mlp_width=40, qkv_bias=False)
AS_SMALL = {"patch_size": 4, "hidden_size": 24, "num_layers": 2, "num_heads": 3, "mlp_dim": 40}
SIZE = (8, 8, 8)


class Rearrange(nn.Module):
    """The two permutations that MONAI's attention wants einops for, which we do not need."""

    def __init__(self, pattern, qkv=None, l=None):  # noqa: E741 - MONAI's word
        super().__init__()
        self.pattern, self.heads = pattern, l

    def forward(self, x):
        if self.pattern == "b h (qkv l d) -> qkv b l h d":
            return x.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        assert self.pattern == "b l h d -> b h (l d)"
        return x.permute(0, 2, 1, 3).flatten(2)


def permute(tensor, pattern):
    before, after = (side.split() for side in pattern.split("->"))
    return tensor.permute([before.index(name) for name in after])


@pytest.fixture(autouse=True)
def _monai_without_einops(monkeypatch):
    monkeypatch.setattr(monai_attention, "Rearrange", Rearrange)
    monkeypatch.setattr(monai_swin, "rearrange", permute)


def shuffled(network):
    """Return the network with no parameter at a value that hides a mistake."""
    generator = torch.Generator().manual_seed(3)
    for name, parameter in network.named_parameters():
        if parameter.dim() == 1 or "token" in name or "bias_table" in name:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data = noise * 0.3 + float("norm" in name and name.endswith("weight"))
    return network


def small(num_outputs=3, size=SIZE, layout=SMALL):
    torch.manual_seed(0)
    return VisionTransformer("small", 2, num_outputs, size, layout).eval()


def without_cross_attention(state):
    return {name: value for name, value in state.items() if "cross_attn" not in name}


def test_names_shapes_and_logits_are_those_of_monais_vit():
    stock = shuffled(ViT(2, SIZE, classification=True, num_classes=3, post_activation=None, **AS_SMALL)).eval()
    network = small()
    expected = without_cross_attention(stock.state_dict())
    assert {name: value.shape for name, value in network.state_dict().items()} == {
        name: value.shape for name, value in expected.items()
    }
    result = load_monai_vit(network, stock.state_dict())
    assert result.left == ()
    assert set(result.ignored) == set(stock.state_dict()) - set(expected)
    volumes = torch.randn(2, 2, *SIZE)
    with torch.no_grad():
        logits, theirs = network(volumes), stock(volumes)[0]
    assert theirs.std() > 0.1
    torch.testing.assert_close(logits, theirs, atol=1e-5, rtol=0)


def test_the_base_preset_is_the_encoder_of_monais_default_autoencoder():
    with torch.device("meta"):
        stock = ViTAutoEnc(1, 96, 16).state_dict()
        own = vit3d(1, 2, spatial_size=(96, 96, 96), preset="base").state_dict()
    encoder = {name: value.shape for name, value in without_cross_attention(stock).items() if "conv3d" not in name}
    rest = {"cls_token", "classification_head.weight", "classification_head.bias"}
    assert {name: value.shape for name, value in own.items() if name not in rest} == encoder


def test_an_autoencoders_encoder_is_loaded_and_its_decoder_ignored(tmp_path):
    stock, network = shuffled(ViTAutoEnc(2, SIZE, **AS_SMALL)), small()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    torch.save({"state_dict": stock.state_dict()}, tmp_path / "model.pt")
    result = load_monai_vit(network, tmp_path / "model.pt")
    assert set(result.left) == {"cls_token", "classification_head.weight", "classification_head.bias"}
    assert {name.split(".")[0] for name in result.ignored} == {"blocks", "conv3d_transpose", "conv3d_transpose_1"}
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name] if name in result.left else stock.state_dict()[name]), name


def test_a_masked_autoencoders_encoder_is_loaded_with_its_token_and_its_last_norm():
    learnable = {"pos_embed_type": "learnable", "decoder_pos_embed_type": "learnable"}
    decoder = {"decoder_hidden_size": 12, "decoder_num_layers": 1}
    stock = shuffled(MaskedAutoEncoderViT(2, SIZE, **learnable, **decoder, **AS_SMALL))
    network = small()
    result = load_monai_vit(network, stock.state_dict())
    assert set(result.left) == {"classification_head.weight", "classification_head.bias"}
    state = network.state_dict()
    assert torch.equal(state["cls_token"], stock.cls_token)
    assert torch.equal(state["norm.weight"], stock.blocks[2].weight)
    assert torch.equal(state["blocks.1.mlp.linear2.weight"], stock.blocks[1].mlp.linear2.weight)


def test_a_head_behind_which_monai_puts_a_tanh_is_loaded():
    stock, network = ViT(2, SIZE, classification=True, num_classes=3, **AS_SMALL), small()
    assert load_monai_vit(network, stock.state_dict()).left == ()
    assert torch.equal(network.classification_head.weight, stock.classification_head[0].weight)


def test_positions_of_another_cube_are_resized_and_of_no_cube_refused():
    stock, network = shuffled(ViTAutoEnc(2, 16, **AS_SMALL)), small(size=(8, 12, 16))
    load_monai_vit(network, stock.state_dict())
    old = stock.patch_embedding.position_embeddings.transpose(1, 2).reshape(1, 24, 4, 4, 4)
    expected = functional.interpolate(old, size=(2, 3, 4), mode="trilinear").flatten(2).transpose(1, 2)
    assert torch.equal(network.patch_embedding.position_embeddings, expected)
    with pytest.raises(MedvolError, match="OTHER_NETWORK: positions of 24 patches; expected 8, or .* cube"):
        load_monai_vit(small(), network.state_dict())


def test_a_ramp_of_positions_stays_a_ramp():
    ramp = torch.arange(3.0).view(3, 1, 1).expand(3, 3, 3).reshape(1, 27, 1)
    new = fit_positions(ramp, [6, 3, 3]).view(6, 9)
    torch.testing.assert_close(new[1:-1], torch.tensor([0.25, 0.75, 1.25, 1.75])[:, None].expand(4, 9))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: {**state, "patch_embedding.x": torch.zeros(3)}, "patch_embedding.x is unknown"),
        (lambda state: {name: state[name] for name in state if name != "norm.bias"}, "norm.bias is missing"),
        (lambda state: ViTAutoEnc(1, SIZE, **AS_SMALL).state_dict(), "is 24x1x4x4x4, not 24x2x4x4x4"),
        (lambda state: ViTAutoEnc(2, SIZE, qkv_bias=True, **AS_SMALL).state_dict(), "blocks.0.attn.qkv.bias is unkn"),
    ],
)
def test_foreign_weights_are_refused_with_the_layers_that_differ_and_change_nothing(change, message):
    network = small()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(MedvolError, match=f"OTHER_NETWORK.*{message}"):
        load_monai_vit(network, change(ViTAutoEnc(2, SIZE, **AS_SMALL).state_dict()))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize(
    ("build", "size"),
    [
        (lambda size: vit3d(2, 3, spatial_size=size), (8, 12, 16)),
        (lambda size: vit3d(2, 3, spatial_size=size, patch_size=8), (16, 24, 8)),
        (lambda size: VisionTransformer("small", 2, 3, size, SMALL), (8, 12, 16)),
        (lambda size: swin_classifier(2, 3, spatial_size=size, feature_size=12), (32, 32, 32)),
        (lambda size: swin_classifier(2, 3, spatial_size=size, feature_size=12, use_v2=True), (32, 32, 32)),
    ],
)
def test_every_parameter_receives_a_gradient_and_the_output_has_a_logit_per_class(build, size):
    torch.manual_seed(0)
    network = build(size)
    output = network(torch.randn(2, 2, *size))
    assert output.shape == (2, 3)
    output.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in network.parameters())


def test_the_small_preset_has_the_stated_parameters_at_28_cubed():
    network = vit3d(1, 1, spatial_size=(28, 28, 28))
    stem = (27 * 48 + 2 * 48) + (27 * 48 * 96 + 2 * 96) + (96 * 96 + 96)
    layer = 2 * 2 * 96 + (96 * 288 + 288) + (96 * 96 + 96) + (96 * 192 + 192) + (192 * 96 + 96)
    expected = stem + 7**3 * 96 + 96 + 4 * layer + 2 * 96 + (96 + 1)
    assert sum(parameter.numel() for parameter in network.parameters()) == expected
    assert 400_000 < expected < 500_000


def test_sizes_that_patches_do_not_fill_are_refused_with_the_multiple_and_the_next_size():
    with pytest.raises(
        MedvolError, match=r"INPUT_SIZE: vit3d \(compact\).*28 x 30 x 28 voxels.*multiples of 4.*32, 28"
    ):
        vit3d(1, 2, spatial_size=(28, 30, 28))
    with pytest.raises(MedvolError, match=r"INPUT_SIZE: small was given 8 x 8 x 4 voxels; expected 8 x 8 x 8"):
        small()(torch.zeros(1, 2, 8, 8, 4))
    with pytest.raises(MedvolError, match=r"INPUT_SIZE: swin_classifier.*28 x 32 x 0.*multiples of 32.*32, 32, 32"):
        swin_classifier(1, 2, spatial_size=(28, 32, 0))
    with pytest.raises(MedvolError, match="INPUT_SIZE: swin_classifier was given 32 x 32 x 33"):
        swin_classifier(1, 2, spatial_size=(32, 32, 32), feature_size=12)(torch.zeros(1, 1, 32, 32, 33))


def test_options_that_do_not_exist_are_refused():
    with pytest.raises(MedvolError, match="UNKNOWN_OPTION: preset 'compat'.*'compact'"):
        vit3d(1, 2, spatial_size=(28, 28, 28), preset="compat")
    with pytest.raises(MedvolError, match="UNKNOWN_OPTION: feature_size 20; expected a multiple of 12"):
        swin_classifier(1, 2, spatial_size=(32, 32, 32), feature_size=20)


@pytest.mark.parametrize("use_v2", [False, True])
def test_the_swin_classifier_is_monais_encoder_with_its_mean_behind_a_linear_head(use_v2):
    torch.manual_seed(0)
    layout = {"window_size": (7, 7, 7), "patch_size": (2, 2, 2), "depths": (2, 2, 2, 2), "num_heads": (3, 6, 12, 24)}
    stock = shuffled(monai_swin.SwinTransformer(1, 12, use_v2=use_v2, **layout)).eval()
    network = swin_classifier(1, 3, spatial_size=(32, 32, 64), feature_size=12, use_v2=use_v2, dropout=0.5).eval()
    state = {f"swinViT.{name}": value for name, value in stock.state_dict().items()}
    differing = network.load_state_dict(state, strict=False)
    assert (differing.missing_keys, differing.unexpected_keys) == (["head.weight", "head.bias"], [])
    volumes = torch.randn(1, 1, 32, 32, 64)
    with torch.no_grad():
        expected = stock(volumes)[4].mean((2, 3, 4)) @ network.head.weight.T + network.head.bias
        torch.testing.assert_close(network(volumes), expected, atol=1e-5, rtol=0)


def test_the_encoder_of_a_swin_unetr_is_loaded_and_its_decoder_ignored():
    torch.manual_seed(1)
    whole = swin_unetr(1, 2, feature_size=12).state_dict()
    network = swin_classifier(1, 3, spatial_size=(32, 32, 32), feature_size=12)
    result = load_swin_unetr_weights(network, whole)
    assert result.left == ("head.weight", "head.bias")
    assert set(result.loaded) == {name for name in whole if name.startswith("swinViT.")}
    assert all(torch.equal(value, whole[name]) for name, value in network.state_dict().items() if "swinViT" in name)


def test_it_survives_torchscript():
    network = vit3d(1, 2, spatial_size=(8, 8, 12)).eval()
    volumes = torch.randn(2, 1, 8, 8, 12)
    torch.testing.assert_close(torch.jit.script(network)(volumes), network(volumes))


def test_plain_products_in_bfloat16_answer_as_the_fused_kernel_does():
    torch.manual_seed(0)
    attention = Attention(SMALL).bfloat16()
    tokens = torch.randn(2, 9, SMALL.width).bfloat16()
    plain = attention(tokens)
    attention.plain_up_to = 0
    torch.testing.assert_close(plain, attention(tokens), atol=0.01, rtol=0.02)
