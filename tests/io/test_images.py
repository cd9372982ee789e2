"""PNG and JPEG: x is the column, nothing is cut to 8 bits, damage is found."""

import numpy as np
import pytest
from PIL import Image

from medvol.io import ReadOptions, read_volume


@pytest.fixture
def picture() -> np.ndarray:
    """Rows y = 0..7, columns x = 0..6."""
    return np.arange(56, dtype=np.uint8).reshape(8, 7)


def test_axis_0_is_the_column_and_axis_1_the_row(tmp_path, picture):
    Image.fromarray(picture).save(tmp_path / "a.png")
    volume = read_volume(tmp_path / "a.png")
    assert volume.array.shape == (7, 8)
    assert volume.array[6, 2] == picture[2, 6]
    assert (volume.has_geometry, volume.channel_axis) == (False, None)


def test_colours_are_the_last_axis(tmp_path, picture):
    Image.fromarray(np.stack([picture, picture + 1, picture + 2], axis=-1)).save(tmp_path / "a.png")
    volume = read_volume(tmp_path / "a.png")
    assert (volume.array.shape, volume.channel_axis) == ((7, 8, 3), 2)
    assert volume.array[6, 2].tolist() == [20, 21, 22]


def test_jpeg_is_read_as_pillow_decodes_it(tmp_path):
    ramp = np.tile(np.linspace(0, 255, 32, dtype=np.uint8), (24, 1))
    Image.fromarray(ramp).save(tmp_path / "a.jpg", quality=95)
    volume = read_volume(tmp_path / "a.jpg")
    assert volume.array.shape == (32, 24)
    np.testing.assert_array_equal(volume.array.T, np.asarray(Image.open(tmp_path / "a.jpg")))


def test_grey_of_16_bits_keeps_them(tmp_path, picture):
    Image.fromarray(picture.astype(np.uint16) * 1000).save(tmp_path / "a.png")
    volume = read_volume(tmp_path / "a.png")
    assert volume.array.dtype == np.uint16
    np.testing.assert_array_equal(volume.array.T, picture.astype(np.uint16) * 1000)


def test_an_exif_orientation_is_applied_and_noted(tmp_path):
    ramp = np.tile(np.linspace(0, 255, 32, dtype=np.uint8), (24, 1))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    Image.fromarray(ramp).save(tmp_path / "a.jpg", quality=95, exif=exif)
    volume = read_volume(tmp_path / "a.jpg")
    assert volume.array.shape == (24, 32)
    assert volume.array[0, 0] < 20
    assert volume.array[0, 31] > 235
    assert "EXIF" in volume.notes[-1]


def test_a_palette_is_replaced_by_its_colours(tmp_path, picture):
    grey = Image.fromarray(picture).convert("P")
    grey.putpalette([level for value in range(256) for level in [255 - value] * 3])
    grey.save(tmp_path / "grey.png")
    volume = read_volume(tmp_path / "grey.png")
    np.testing.assert_array_equal(volume.array.T, 255 - np.asarray(grey))
    assert "palette" in volume.notes[-1]
    grey.putpalette([level for value in range(256) for level in (value, 0, 0)])
    grey.save(tmp_path / "red.png")
    assert read_volume(tmp_path / "red.png").array.shape == (7, 8, 3)


def test_alpha_is_dropped_with_a_note(tmp_path, picture):
    Image.fromarray(np.stack([picture] * 4, axis=-1)).save(tmp_path / "a.png")
    volume = read_volume(tmp_path / "a.png")
    assert volume.array.shape == (7, 8, 3)
    assert "alpha" in volume.notes[-1]


def test_one_bit_is_black_and_white(tmp_path, picture):
    Image.fromarray(picture % 2 == 0).save(tmp_path / "a.png")
    assert set(np.unique(read_volume(tmp_path / "a.png").array)) == {0, 255}


def test_print_colours_are_refused(tmp_path, refused):
    Image.new("CMYK", (7, 8)).save(tmp_path / "a.jpg")
    with refused("BAD_DTYPE", "CMYK"):
        read_volume(tmp_path / "a.jpg")


def test_colour_of_16_bits_is_refused_instead_of_cut(tmp_path, picture, refused):
    import struct
    import zlib

    rows = b"".join(b"\0" + np.stack([row] * 3, -1).astype(">u2").tobytes() for row in picture)

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", 7, 8, 16, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(data)
    with refused("BAD_DTYPE", "16-bit"):
        read_volume(tmp_path / "a.png")


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
@pytest.mark.parametrize("kept", [0.95, 0.5, 0.1])
def test_a_truncated_image_is_refused(tmp_path, refused, name, kept):
    noise = np.random.default_rng(0).integers(0, 255, (64, 65), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / name)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: int(len(data) * kept)])
    with refused("TRUNCATED", name):
        read_volume(tmp_path / name)


def test_a_flip_in_a_png_is_found_by_its_checksum(tmp_path, refused):
    noise = np.random.default_rng(0).integers(0, 255, (64, 65), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    data = bytearray((tmp_path / "a.png").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "a.png").write_bytes(data)
    with refused("CORRUPT", "a.png"):
        read_volume(tmp_path / "a.png")


def test_an_empty_file_is_no_image(tmp_path, refused):
    (tmp_path / "a.png").touch()
    with refused("NOT_IMAGE"):
        read_volume(tmp_path / "a.png")


def test_a_decompression_bomb_is_refused_before_decoding(tmp_path, picture, refused):
    import struct
    import zlib

    for width, word in ((10000, "10000 x 10000"), (20000, "178,956,970")):
        head = b"IHDR" + struct.pack(">IIBBBBB", width, 10000, 8, 0, 0, 0, 0)
        data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
        (tmp_path / "a.png").write_bytes(data + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT")))
        with refused("TOO_LARGE", word):
            read_volume(tmp_path / "a.png")
    Image.fromarray(picture).save(tmp_path / "b.png")
    with refused("TOO_LARGE", "max_bytes"):
        read_volume(tmp_path / "b.png", options=ReadOptions(max_bytes=55))


def test_a_png_without_its_last_chunk_is_refused(tmp_path, picture, refused):
    Image.fromarray(picture).save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:-14])
    with refused("TRUNCATED"):
        read_volume(tmp_path / "a.png")
