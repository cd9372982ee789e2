"""Loading as a MONAI transform, with our reader and no other."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, final

from monai.config import KeysCollection
from monai.data import ImageReader, MetaTensor
from monai.transforms import LoadImaged

from medvol.errors import MedvolError
from medvol.io.monai_readers import VolumeReader
from medvol.io.read import read_channels


@final
class LoadVolumed(LoadImaged):
    """Load references into MetaTensors whose types are as narrow as their files'.

    MONAI's LoadImage swallows what a given reader raises and tries its built-in ones next, which read damaged files
    wrongly. A reader that is passed with the call is the only one used, so that is what happens here.

    Args:
        keys: Item keys of the references; a list of references becomes channels.
        reader: Reads the references; `VolumeReader()` when None.
        allow_missing_keys: Whether an item may lack a key.
    """

    def __init__(
        self, keys: KeysCollection, reader: ImageReader | None = None, allow_missing_keys: bool = False
    ) -> None:
        with _quiet_codec_check():
            super().__init__(keys, dtype=None, image_only=True, allow_missing_keys=allow_missing_keys)
        self._loader.readers.clear()
        self.reader = VolumeReader() if reader is None else reader

    def __call__(self, data: Mapping[Any, Any], reader: ImageReader | None = None) -> dict[Any, Any]:
        """Return the item with its references replaced by images; one that holds images already is left as it is.

        MONAI Deploy hands over volumes that it loaded itself.

        Raises:
            MedvolError: Whatever reading finds, with the item's `case` named.
        """
        if all(isinstance(data.get(key), MetaTensor) for key in self.keys):
            return dict(data)
        try:
            return dict(super().__call__(data, reader or self.reader))
        except MedvolError as error:
            raise error.for_case(str(data.get("case", ""))) from error


def reader_for(channels: Sequence[str]) -> VolumeReader:
    """Return the reader of an image's references: of several channels, a file alone may hold all as its fourth axis."""
    return VolumeReader(read_alone=read_channels if len(channels) > 1 else None)


@contextmanager
def _quiet_codec_check() -> Iterator[None]:
    """Keep MONAI's constructor from warning, on every machine without a GPU codec, about readers that are not used."""
    logger = logging.getLogger("monai.data.nvimgcodec_pydicom_plugin")
    was_disabled, logger.disabled = logger.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="NvImgCodecPydicomReader")
            yield
    finally:
        logger.disabled = was_disabled
