"""The fusion network: what is missing is not looked at, and both stand-ins are learnt."""

import pytest
import torch

from medvol.errors import MedvolError
from medvol.networks.fusion import fusion_network
from medvol.networks.resnet3d import resnet3d

SIZE = (7, 8, 9)


@pytest.fixture
def network():
    torch.manual_seed(0)
    made = fusion_network(1, 3, 2, widths=(4, 6, 8), hidden=5, drop_modality=0.0)
    torch.nn.init.normal_(made.no_image)
    torch.nn.init.normal_(made.no_covariates)
    return made.eval()


def inputs(batch=4):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 1, *SIZE, generator=generator), torch.randn(batch, 3, generator=generator)


def test_the_image_alone_gives_logits(network):
    image, _ = inputs()
    assert network(image).shape == (4, 2)
    unknown = torch.full((4, 3), torch.nan)
    torch.testing.assert_close(network(image), network(image, unknown, torch.ones(4)))


def test_by_hand_the_logits_are_the_head_of_both_parts(network):
    image, row = inputs()
    joined = torch.cat([network.encoder(image), network.covariates(row)], dim=1)
    torch.testing.assert_close(network(image, row), network.head(joined))


def test_what_stands_in_place_of_a_missing_image_is_not_looked_at(network):
    image, row = inputs()
    has_image = torch.tensor([1.0, 0.0, 1.0, 0.0])
    logits = network(image, row, has_image)
    other = torch.where(has_image.bool()[:, None, None, None, None], image, torch.full_like(image, torch.nan))
    torch.testing.assert_close(network(other, row, has_image), logits)
    torch.testing.assert_close(logits[::2], network(image, row)[::2])
    alone = torch.cat([network.no_image.expand(4, -1), network.covariates(row)], dim=1)
    torch.testing.assert_close(logits[1::2], network.head(alone)[1::2])
    torch.testing.assert_close(network(image, row, torch.zeros(4)), network.head(alone))


def test_a_row_that_is_not_known_is_the_learnt_vector_and_leaves_the_others_alone(network):
    image, row = inputs()
    row[2, 1] = torch.nan
    logits = network(image, row)
    torch.testing.assert_close(logits[2], network(image)[2])
    torch.testing.assert_close(logits[:2], network(image[:2], row[:2]))


def test_placeholders_stay_out_of_the_statistics_of_the_normalisation(network):
    image, row = inputs()
    network.train()
    network(torch.cat([image, 1e4 * torch.ones(4, 1, *SIZE)]), torch.cat([row, row]), torch.tensor([1.0] * 4 + [0] * 4))
    after = {name: value.clone() for name, value in network.named_buffers()}
    torch.manual_seed(0)
    alone = fusion_network(1, 3, 2, widths=(4, 6, 8), hidden=5, drop_modality=0.0)
    alone(image, row)
    for name, value in alone.named_buffers():
        torch.testing.assert_close(after[name], value)


def test_in_training_each_modality_is_withheld_in_its_share_of_cases_and_never_both():
    torch.manual_seed(0)
    network = fusion_network(1, 3, 2, widths=(2, 2, 2), hidden=2, dropout=0.0, drop_modality=0.25)
    network.no_image.data += 100
    network.no_covariates.data += 100
    seen = []
    network.head.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0].detach()))
    image, row = inputs(8)
    for _ in range(100):
        network(image, row)
    joined = torch.cat(seen)
    no_image, no_row = (joined[:, :2] == 100).all(dim=1), (joined[:, 2:] == 100).all(dim=1)
    assert 0.2 < no_image.float().mean() < 0.3
    assert 0.2 < no_row.float().mean() < 0.3
    assert not (no_image & no_row).any()


def test_every_parameter_receives_a_gradient():
    torch.manual_seed(0)
    network = fusion_network(1, 3, 2, widths=(4, 6, 8), drop_modality=0.4)
    image, row = inputs(16)
    network(image, row, torch.tensor([1.0] * 12 + [0.0] * 4)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in network.parameters())


def test_the_body_takes_the_weights_of_the_volume_network():
    body = {name: value for name, value in resnet3d(1, 2).state_dict().items() if not name.startswith("head.")}
    assert set(fusion_network(1, 3, 2).encoder.state_dict()) == set(body)


def test_a_study_without_covariates_is_refused():
    with pytest.raises(MedvolError, match="INPUT_TOO_SMALL.*at least 1"):
        fusion_network(1, 0, 2)
