"""Frozen encoders, on a network small enough to follow by hand."""

import pytest
import torch
from monai.engines import SupervisedTrainer
from torch import nn

from medvol.data.loading import training_loader
from medvol.errors import MedvolError
from medvol.inference.runtime import RuntimeInferer
from medvol.networks.resnet2d import resnet50_2d
from medvol.networks.vit2d import timm_state, vit2d
from medvol.training.transfer import FrozenInferer, freeze_all_but, start_resnet50, start_vit, training_inferer


def small():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(*body, nn.Linear(4, 2))


def trained(network, inferer):
    data = [{"image": torch.rand(1, 6, 7) + index % 2, "label": index % 2, "case": f"c{index}"} for index in range(8)]
    SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=2,
        train_data_loader=training_loader(data, batch_size=4, seed=0),
        network=network,
        optimizer=torch.optim.SGD([one for one in network.parameters() if one.requires_grad], lr=0.1),
        loss_function=nn.CrossEntropyLoss(),
        inferer=inferer,
    ).run()


def test_only_the_head_changes_and_the_batch_norms_keep_their_statistics():
    network = freeze_all_but(small(), "5")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    trained(network, training_inferer(frozen=True))
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"5.weight", "5.bias"}


def test_without_freezing_everything_changes():
    network = small()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    trained(network, training_inferer())
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert {"0.weight", "1.running_mean", "5.weight"} <= changed


def test_dropout_of_a_frozen_encoder_is_off_and_its_learning_layer_trains():
    network, images = freeze_all_but(small(), "5"), torch.rand(3, 1, 6, 7)
    inferer = FrozenInferer(RuntimeInferer())
    torch.testing.assert_close(inferer(images, network.train()), inferer(images, network.train()), atol=0, rtol=0)
    assert [module.training for module in network] == [False] * 5 + [True]


def test_published_weights_are_loaded_from_a_file_and_the_head_stays_random(tmp_path):
    published, network = resnet50_2d(3, 7).state_dict(), resnet50_2d(3, 2)
    head = network.fc.weight.clone()
    torch.save(published, tmp_path / "resnet50.pth")
    started = start_resnet50(network, str(tmp_path / "resnet50.pth"), freeze_encoder=True)
    assert torch.equal(started.layer4[2].conv3.weight, published["layer4.2.conv3.weight"])
    assert torch.equal(started.fc.weight, head)
    assert [name for name, one in started.named_parameters() if one.requires_grad] == ["fc.weight", "fc.bias"]


def test_the_hub_cache_is_looked_at_and_nothing_downloaded(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(MedvolError, match=r"NO_WEIGHTS.*no resnet50-\*\.pth"):
        start_resnet50(resnet50_2d(3, 2), "hub")


def test_published_weights_without_their_normalisation_are_warned_of(tmp_path, caplog):
    torch.save(resnet50_2d(1, 7).state_dict(), tmp_path / "resnet50.pth")
    for normalisation, count in (("imagenet", 0), ("half", 0), ("zero_one", 1)):
        caplog.clear()
        start_resnet50(resnet50_2d(1, 7), str(tmp_path / "resnet50.pth"), normalisation=normalisation)
        assert len([one for one in caplog.records if one.levelname == "WARNING"]) == count
    start_resnet50(resnet50_2d(1, 7), normalisation="zero_one")
    assert len(caplog.records) == 1


def test_a_transformer_starts_from_timms_file(tmp_path):
    published = timm_state(vit2d(1, 3, preset="tiny", spatial_size=(32, 32)))
    torch.save(published, tmp_path / "vit.pth")
    started = start_vit(vit2d(1, 2, preset="tiny", spatial_size=(32, 32)), str(tmp_path / "vit.pth"))
    assert torch.equal(started.blocks[1].mlp.linear1.weight, published["blocks.1.mlp.fc1.weight"])
    assert all(one.requires_grad for one in started.parameters())


@pytest.mark.parametrize("start", [start_resnet50, start_vit])
def test_freezing_an_encoder_of_random_weights_is_refused(start):
    network = resnet50_2d(3, 2) if start is start_resnet50 else vit2d(1, 2, preset="tiny", spatial_size=(32, 32))
    with pytest.raises(MedvolError, match="NO_WEIGHTS.*--pretrained FILE"):
        start(network, "", freeze_encoder=True)
