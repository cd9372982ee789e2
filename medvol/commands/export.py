"""`medvol export`: a trained network as ONNX, torch.export and TorchScript, each compared with its source."""

from __future__ import annotations

import argparse
import os

from medvol.commands.shared import Commands, print_columns

EPILOG = """examples:
  medvol export my_classification
  medvol export unet_segmentation -o exported --formats onnx
  medvol export resnet3d_classification --model_dir out/models -o exported

The files hold the network from a preprocessed batch to logits, with the facts around it (classes, spacing, grey values,
temperature) as JSON inside. Each is run beside the network on random inputs; one that differs is not kept. Exit code: 1
when a format was refused. ONNX needs pip install 'medvol-monai[export]'."""


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    export = commands.add_parser(
        "export",
        help="write a trained network as ONNX, torch.export and TorchScript, compared with its source",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    export.add_argument("bundle", help="folder of a bundle, or the name of a shipped one (`medvol list`)")
    export.add_argument("-o", "--output", default="", help="folder to write to; default: beside the weights")
    export.add_argument("--formats", default="onnx,torch-export,torchscript", help="some of them, by commas")
    export.add_argument("--model_dir", "--model-dir", default="", help="folder of the weights; default: the bundle's")
    export.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Export and print a row per format: size, difference, or why it was refused."""
    from medvol.bundle.export import export_bundle

    formats = [name.strip() for name in options.formats.split(",") if name.strip()]
    exported = export_bundle(options.bundle, options.output, formats=formats, model_dir=options.model_dir)
    rows = [("format", "file", "MiB", "largest difference", "same labels", "kind")]
    for one in exported:
        file = "refused" if one.file is None else os.path.relpath(one.file)
        agreement = "" if one.agreement is None else f"{one.agreement:.4%}"
        size = "" if one.file is None else f"{one.size / 2**20:.1f}"
        difference = f"{one.difference:.1e}" if one.difference == one.difference else ""
        rows.append((one.format, file, size, difference, agreement, one.reason or one.how))
    print_columns(rows)
    return 1 if any(one.file is None for one in exported) else 0
