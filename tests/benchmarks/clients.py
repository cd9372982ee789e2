"""What MONAI's own clients make of every bundle, on small instances: a table.

    python tests/benchmarks/clients.py [--only NAME ...] [--schema meta_schema_20240725.json]

Each shipped bundle is copied by `medvol new` for a tiny synthetic study, given random weights, and handed to
`monai.bundle`'s verify_metadata, verify_net_in_out, ckpt_export, onnx_export and load, and to `medvol export`. Three of
them are trained and evaluated by `MonaiAlgo`, the federated client in MONAI's wheel.
"""

import argparse
import copy
import json
import logging
import shutil
import tempfile
import time
import warnings
from pathlib import Path

import torch
from monai.bundle import ConfigParser, ckpt_export, load, onnx_export, verify_metadata, verify_net_in_out

from medvol.bundle.export import export_bundle
from medvol.bundle.new import NewOptions, make_bundle
from medvol.bundle.new_choice import bundle_takes
from medvol.bundle.short import shipped_bundles
from medvol.inference.record import load_record, save_model
from medvol.phantoms.cohort import classification_cohort, segmentation_cohort

LAYOUTS = {"images": "png", "features": "csv"}
SMALL = {
    "vit2d_classification": {"preset": "compact", "spatial_size": [64, 64]},
    "resnet50_2d_classification": {"spatial_size": [64, 48]},
    "unet_segmentation": {"width": 8},
    "swin_unetr_segmentation": {"feature_size": 12},
}
"""Options of train.json that make an instance small."""

FEDERATED = ("resnet3d_classification", "unet_segmentation", "mlp_tabular_classification")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=())
    parser.add_argument("--schema", type=Path, help="the published schema; left out: metadata are not verified")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    rows = []
    for bundle in shipped_bundles():
        if options.only and bundle.name not in options.only:
            continue
        with tempfile.TemporaryDirectory() as place:
            row = tried(bundle, Path(place), options.schema)
        rows.append({"bundle": bundle.name, **row})
        print(json.dumps(rows[-1]), flush=True)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    print("\n| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for row in rows:
        print("| " + " | ".join(str(row.get(name, "")) for name in columns) + " |")


def tried(bundle, place, schema):
    """Return what each client says of a small copy of a bundle."""
    own = small_copy(bundle, place)
    root, meta, config = (str(own / part) for part in ("", "configs/metadata.json", "configs/inference.json"))
    weights = str(own / "models" / "model.pt")
    common = {"bundle_root": root, "model_dir": str(own / "models")}
    files = {"meta_file": meta, "config_file": config, "ckpt_file": weights, "net_id": "network_def", **common}
    size = [1, *json.loads(Path(meta).read_text())["network_data_format"]["inputs"]["image"]["spatial_shape"]]
    channels = json.loads(Path(meta).read_text())["network_data_format"]["inputs"]["image"]["num_channels"]
    shape = [1, channels, *size[1:]]
    row = {}
    if schema is not None:
        local = place / "schema.json"
        shutil.copy(schema, local)  # where the file is, MONAI does not download it
        row["verify_metadata"] = outcome(lambda: verify_metadata(meta_file=meta, filepath=str(local)))
    row["verify_net_in_out"] = outcome(
        lambda: verify_net_in_out(net_id="network_def", meta_file=meta, config_file=config, device="cpu", **common)
    )
    row["ckpt_export"] = outcome(lambda: ckpt_export(filepath=str(place / "s.ts"), **files))
    row["ckpt_export, traced"] = outcome(
        lambda: ckpt_export(filepath=str(place / "t.ts"), use_trace=True, input_shape=shape, **files)
    )
    row["onnx_export"] = outcome(lambda: onnx_export(filepath=str(place / "m.onnx"), input_shape=shape, **files))
    row["load"] = outcome(lambda: loaded(own))
    for one in export_bundle(str(own), str(place / "out")):
        row[f"medvol {one.format}"] = f"{one.how}, {one.difference:.0e}" if one.file else one.reason
    row["MonaiAlgo"] = outcome(lambda: federated(own)) if bundle.name in FEDERATED else ""
    return row


def outcome(call):
    """Return `ok` with the processor's seconds, or the first line of what went wrong."""
    start = time.process_time()
    try:
        told = call()
    except BaseException as error:
        last = error
        while last.__cause__ is not None:
            last = last.__cause__
        lines = [line.strip() for line in str(last).splitlines() if line.strip()]
        return f"{type(last).__name__}: {(lines or ['?'])[0][:100]}"
    return f"ok ({time.process_time() - start:.1f} s{f', {told}' if isinstance(told, str) else ''})"


def small_copy(bundle, place):
    """Return a copy of a bundle for a tiny study, with random weights."""
    task, kind = bundle_takes(bundle)
    swin = bundle.name.startswith("swin")
    if task == "segmentation":
        table = segmentation_cohort(place / "cohort", patients=9, size=(32, 34, 36) if swin else (16, 18, 20))
    else:
        table = classification_cohort(
            place / "cohort", patients=15, size=(16, 18, 20), layout=LAYOUTS.get(kind, "nifti")
        )
    source = table.parent if kind == "images" else table
    made = made_small(bundle, place)
    own = make_bundle(str(place / f"own_{task}"), str(source), NewOptions(bundle=str(made), measure=False)).folder
    config = json.loads((own / "configs" / "inference.json").read_text())
    # Random weights of the size that training will have, which a trained model's record would tell.
    shipped = config["record"].get("shipped_network", {})
    shipped.update({name: value for name, value in SMALL.get(bundle.name, {}).items() if name in shipped})
    (own / "configs" / "inference.json").write_text(json.dumps(config, indent=4))
    config.update(bundle_root=str(own), model_dir=str(own / "models"))
    parser = ConfigParser(config)
    record = load_record(place / "nowhere", config["record"]["shipped"], config["record"].get("shipped_network"))
    torch.manual_seed(0)
    save_model(own / "models", parser.get_parsed_content("network_def"), record)
    return own


def made_small(bundle, place):
    """Return a copy of the bundle's folder whose network is small."""
    copy = place / "shipped" / bundle.name
    shutil.copytree(bundle, copy, ignore=shutil.ignore_patterns("models", "eval"))
    small = SMALL.get(bundle.name, {})
    for mode in ("train", "inference", "evaluate"):
        file = copy / "configs" / f"{mode}.json"
        config = json.loads(file.read_text())
        if mode == "train":
            config.update(small)
        network = config.get("record", {}).get("shipped_network", {})
        network.update({name: value for name, value in small.items() if name in network})
        file.write_text(json.dumps(config, indent=4))
    return copy


def loaded(own):
    """Load the bundle by name, as the model zoo's users do."""
    network = load(name=own.name, bundle_dir=str(own.parent), workflow_type="inference")
    if not isinstance(network, torch.nn.Module):
        raise TypeError(f"load gave a {type(network).__name__}")


def federated(own):
    """Initialise, train and evaluate the bundle by MONAI's federated client."""
    from monai.fl.client import MonaiAlgo
    from monai.fl.utils.constants import ExtraItems

    algo = MonaiAlgo(bundle_root=str(own), local_epochs=1, send_weight_diff=False)
    algo.initialize(extra={ExtraItems.CLIENT_NAME: "here", ExtraItems.APP_ROOT: str(own)})
    # Copied, as weights are that went to a server and back; the client hands out the network's own memory.
    algo.train(data=copy.deepcopy(algo.get_weights()), extra={})
    report = algo.evaluate(data=copy.deepcopy(algo.get_weights()), extra={})
    algo.finalize()
    return f"{len(report.metrics)} metrics"


if __name__ == "__main__":
    main()
