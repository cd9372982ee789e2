"""What a graphics card computes equals what the processor does; skipped where there is none."""

import json

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medvol.inference import sliding_window, windows
from medvol.inference.runtime import Runtime, choose_runtime, runtimes_for
from medvol.inference.segmented import predict_labels
from medvol.inference.sliding_window import SlidingWindow
from medvol.networks.swin_unetr import swin_unetr
from medvol.networks.unet import unet
from medvol.training.handlers import averaged_weights
from medvol.transforms.augment import AugmentRanges, apply_augmentation, apply_to_labels, draw_augmentation

has_card = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a graphics card")
CARD = torch.device("cuda")
SHAPE, PATCH = (22, 41, 19), (16, 24, 16)


@pytest.fixture(autouse=True)
def exact_convolutions():
    """Have the card compute float32 as float32, not with the ten bits of TF32, and twice the same."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = False, True
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = before
    torch.backends.cudnn.benchmark = False


def network(build=unet, **settings):
    torch.manual_seed(0)
    settings = {"spatial_size": PATCH, "width": 8} if build is unet else settings
    return build(1, 3, **settings).eval()


def volume(shape=SHAPE):
    """Return a volume on a grid of its own, half of a source's in z, as StretchToSpacingd leaves it."""
    voxels = torch.randn(1, *shape, generator=torch.Generator().manual_seed(1))
    source = (shape[1], shape[0], shape[2] * 2)
    image = MetaTensor(voxels, affine=torch.eye(4))
    image.meta |= {"spatial_shape": np.asarray(source), "original_affine": np.eye(4), "has_geometry": False}
    return image


@has_card
def test_a_batch_is_changed_on_the_card_as_on_the_processor():
    ranges = AugmentRanges(flip_axes=(0, 1, 2), gamma=0.4, blur=1.0, noise=0.0, affine_probability=0.5)
    generator = torch.Generator().manual_seed(3)
    batch = torch.randn(6, 2, *SHAPE, generator=generator)
    labels = torch.randint(0, 4, (6, 1, *SHAPE), generator=generator)
    draw = draw_augmentation(batch.shape, ranges, (22.0, 61.5, 57.0), generator)
    image, mask = apply_augmentation(batch.to(CARD), draw), apply_to_labels(labels.to(CARD), draw, [(1, 2)])
    assert image.device.type == mask.device.type == "cuda"
    torch.testing.assert_close(image.cpu(), apply_augmentation(batch, draw), atol=1e-4, rtol=0)
    assert (mask.cpu() == apply_to_labels(labels, draw, [(1, 2)])).float().mean() > 0.999  # ties at half a voxel


@has_card
def test_noise_is_drawn_on_the_card_from_the_seed():
    draw = draw_augmentation(
        (4, 1, *SHAPE),
        AugmentRanges(noise=0.3, intensity_probability=1.0, shift=0.0, contrast=0.0, brightness=0.0),
        SHAPE,
        torch.Generator().manual_seed(0),
    )
    first, second = (apply_augmentation(torch.zeros(4, 1, *SHAPE, device=CARD), draw) for _ in range(2))
    assert torch.equal(first, second)
    torch.testing.assert_close(first.std(dim=(1, 2, 3, 4)).cpu(), draw.noise_sd, rtol=0.05, atol=0)


@has_card
@pytest.mark.parametrize("room", [True, False])
def test_labels_of_the_card_are_those_of_the_processor(tmp_path, monkeypatch, room):
    for module in (windows, sliding_window):
        monkeypatch.setattr(module, "has_room", lambda device, size: room)
    window, one, image = SlidingWindow(PATCH, mirror_axes=(1,)), network(), volume()
    exact = predict_labels(image, one, window, folder_for_memmap=tmp_path, structures=[1])
    found = predict_labels(image, one.to(CARD), window, folder_for_memmap=tmp_path, structures=[1])
    assert (found.labels == exact.labels).mean() > 0.9999
    np.testing.assert_allclose(found.probabilities, exact.probabilities, atol=2e-3)
    assert sum(found.voxels_per_label) == found.labels.size


@has_card
def test_slabs_of_the_card_are_the_whole_and_stay_where_the_volume_came_from():
    window, one, image = SlidingWindow(PATCH), network().to(CARD), volume().as_tensor()
    whole = window(image[None], one)
    assert whole.device.type == "cpu"
    for axis, start, logits in window.slabs(image, one):
        assert logits.device.type == "cuda"
        part = whole[0].narrow(1 + axis, start, logits.shape[1 + axis])
        torch.testing.assert_close(logits.cpu(), part, atol=1e-4, rtol=0)


@has_card
def test_swin_unetr_answers_and_learns_on_the_card_as_on_the_processor():
    image = torch.randn(2, 1, 64, 32, 32, generator=torch.Generator().manual_seed(0))
    answers = []
    for device in ("cpu", "cuda"):
        one = network(swin_unetr, feature_size=12).to(device).train()
        logits = one(image.to(device))
        logits.square().mean().backward()
        table = one.swinViT.layers1[0].blocks[1].attn.relative_position_bias_table.grad
        answers.append((logits.detach().cpu(), table.cpu()))
    torch.testing.assert_close(*[logits for logits, _ in answers], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(*[gradient for _, gradient in answers], atol=1e-5, rtol=1e-2)


@has_card
@pytest.mark.parametrize("purpose", ["train", "infer"])
def test_the_card_s_runtime_is_measured_and_remembered(tmp_path, purpose):
    one, memory = network().to(CARD), tmp_path / "runtime.json"
    random = torch.cuda.get_rng_state()
    runtime = choose_runtime(one, (1, *PATCH), device=CARD, purpose=purpose, memory_file=memory)
    assert runtime in runtimes_for(CARD, purpose)
    assert [Runtime(**known) for known in json.loads(memory.read_text()).values()] == [runtime]
    assert torch.equal(random, torch.cuda.get_rng_state())


@has_card
def test_weights_are_averaged_on_the_card():
    one = network().to(CARD)
    averaged = averaged_weights(one, decay=0.5)
    averaged.update_parameters(one)
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.add_(1)
    averaged.update_parameters(one)
    keep = min(0.5, 2 / 11)
    for mean, value in zip(averaged.module.parameters(), one.parameters(), strict=True):
        torch.testing.assert_close(mean, value - keep)


def precisions(purpose):
    return [runtime.dtype for runtime in runtimes_for(CARD, purpose, [True])]


def test_an_old_card_trains_in_float32_and_infers_in_float16(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert precisions("train") == ["float32"]
    assert precisions("infer") == ["float32", "float16"]
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert precisions("train") == precisions("infer") == ["bfloat16"]


def test_half_of_a_card_s_free_memory_may_be_taken(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 900))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 30)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 10)
    assert windows.has_room(CARD, 60)
    assert not windows.has_room(CARD, 61)
    assert windows.has_room(torch.device("cpu"), 10**15)
