"""Folders of images: every pixel as a viewer shows it, nothing lost unsaid, and damage named."""

import itertools
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from sdediff.data import DataWarning, load_dataset
from sdediff.data.files import load_items
from sdediff.data.folders import IMAGE_SUFFIXES

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)

ORIENTATIONS = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: x[::-1].swapaxes(0, 1),
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: x[:, ::-1].swapaxes(0, 1),
}
"""What the EXIF standard says is to be done to the stored rows and columns: 6 is a quarter turn clockwise."""


def first(folder):
    """The first image of a folder, channels last."""
    return load_items(folder).x[0].permute(1, 2, 0).numpy()


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("pixels", [GREY, COLOUR, GREY.astype(np.uint16) * 200], ids=["grey", "colour", "16 bits"])
def test_exif_orientation_is_applied(tmp_path, pixels, orientation):
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(first(tmp_path).squeeze(), ORIENTATIONS[orientation](pixels))


def test_hidden_files_and_others_are_no_images(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "a.png")
    (tmp_path / "._a.png").write_bytes(b"\x00\x05\x16\x07" + bytes(100))
    (tmp_path / "notes.txt").write_text("none")
    (tmp_path / "folder.png").mkdir()
    assert load_items(tmp_path).x.shape == (1, 1, 5, 7)


def test_16_bit_and_float_images_keep_their_values(tmp_path):
    deep = RNG.integers(0, 1 << 16, (5, 7)).astype(np.uint16)
    floats = RNG.normal(size=(5, 7)).astype(np.float32)
    for name, pixels, suffixes in (("deep", deep, (".png", ".tif")), ("floats", floats, (".tif",))):
        for suffix in suffixes:
            (tmp_path / f"{name}{suffix}").mkdir()
            Image.fromarray(pixels).save(tmp_path / f"{name}{suffix}" / f"a{suffix}")
            assert np.array_equal(first(tmp_path / f"{name}{suffix}").squeeze(), pixels)
    Image.fromarray(deep).save(tmp_path / "deep.png" / "b.png")
    assert load_dataset(tmp_path / "deep.png").info.levels == int(deep.max()) + 1


def png(pixels, colour_type, size=None):
    """A PNG of 16 bits a channel, which Pillow reads but does not write for colours."""
    height, width = pixels.shape[:2] if size is None else size

    def chunk(kind, content):
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    rows = b"".join(b"\x00" + row.astype(">u2").tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    chunks = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.mark.parametrize(("colour_type", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_16_bit_colours_are_refused_and_grey_is_kept(tmp_path, colour_type, channels):
    pixels = RNG.integers(0, 1 << 16, (5, 7, channels))
    (tmp_path / "a.png").write_bytes(png(pixels, colour_type))
    if channels == 1:
        assert np.array_equal(first(tmp_path), pixels)
        return
    with pytest.raises(ValueError, match=r"a\.png cannot be read: its colours have 16 bits, of which 8 would be lost"):
        load_items(tmp_path)


def test_bilevel_images_have_two_levels(tmp_path):
    pixels = GREY > 128
    for name in "ab":
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    data = load_dataset(tmp_path)
    assert data.info.levels == 2
    assert np.array_equal(data.train[0, 0].numpy(), pixels)
    Image.fromarray(GREY).save(tmp_path / "c.png")
    with pytest.warns(DataWarning, match="2 of 3 images are turned into grey"):
        images = load_items(tmp_path).x
    assert np.array_equal(images[:, 0].numpy(), [pixels * 255, pixels * 255, GREY])


@pytest.mark.parametrize("mode", ["LA", "RGBA", "P", "RGB with a transparent colour"])
def test_what_is_transparent_is_laid_on_white(tmp_path, mode):
    """``alpha c + (1 - alpha) 255`` to rounding, whatever colour lies beneath; opaque alpha changes nothing."""
    alpha = np.full((5, 7), 255, dtype=np.uint8)
    base = np.repeat(GREY[..., None], 3, axis=2) if mode == "LA" else COLOUR
    expected = base.astype(float)
    for transparent in (False, True):
        if transparent:
            alpha[1:3] = 0 if mode[0] == "P" or len(mode) > 4 else 100
            share = alpha[..., None] / 255.0
            expected = share * base + (1.0 - share) * 255.0
        options = {}
        if mode == "P":
            image = Image.fromarray(np.arange(35, dtype=np.uint8).reshape(5, 7)).convert("P")
            image.putpalette(base.reshape(35, 3).tobytes())
            options = {"transparency": alpha.tobytes()} if transparent else {}
        elif len(mode) > 4:
            image = Image.fromarray(np.where(alpha[..., None] > 0, base, [1, 2, 3]).astype(np.uint8))
            options = {"transparency": (1, 2, 3)} if transparent else {}
        else:
            image = Image.fromarray(np.concatenate([GREY[..., None] if mode == "LA" else base, alpha[..., None]], 2))
        image.save(tmp_path / "a.png", **options)
        if transparent:
            with pytest.warns(DataWarning, match="1 of 1 images have transparent parts, which are laid on white"):
                came = first(tmp_path)
        else:
            came = first(tmp_path)
        assert came.shape == (5, 7, 1 if mode == "LA" else 3)
        assert np.abs(came - expected).max() <= (1.0 if transparent else 0.0)


def test_palettes_are_the_colours_they_stand_for(tmp_path):
    image = Image.fromarray(COLOUR).quantize(16)
    image.save(tmp_path / "a.gif")
    assert np.array_equal(first(tmp_path), np.asarray(image.convert("RGB")))


def test_first_frames_and_grey_among_colours_are_said(tmp_path):
    frames = [Image.fromarray(GREY), Image.fromarray(GREY[::-1])]
    frames[0].save(tmp_path / "a.tif", save_all=True, append_images=frames[1:])
    Image.fromarray(COLOUR).save(tmp_path / "b.png")
    with pytest.warns(DataWarning) as said:
        images = load_items(tmp_path).x
    assert sorted(str(warning.message).partition(": ")[2] for warning in said) == [
        "1 of 2 images are turned into colour",
        "1 of 2 images have several frames, of which the first is taken",
    ]
    assert np.array_equal(images.numpy(), [np.stack([GREY] * 3), COLOUR.transpose(2, 0, 1)])


def test_folders_of_folders_are_classes(tmp_path):
    for i, name in enumerate(["tulip", "rose", ".cache", "empty"]):
        (tmp_path / name).mkdir()
        for k in range(4 if name != "empty" else 0):
            Image.fromarray(np.full((5, 7), 10 * i + k, dtype=np.uint8)).save(tmp_path / name / f"{k}.png")
    items = load_items(tmp_path)
    assert (items.classes, items.labels.tolist()) == (("rose", "tulip"), [0] * 4 + [1] * 4)
    assert items.x[:, 0, 0, 0].tolist() == [10, 11, 12, 13, 0, 1, 2, 3]
    data = load_dataset(tmp_path, seed=1)
    for images, labels in ((data.train, data.train_labels), (data.held_out, data.held_out_labels)):
        assert torch.equal((images[:, 0, 0, 0] < 10).long(), labels)
    assert str(data) == "6 images 1x5x7, grey, 256 levels; 2 held out; 2 classes (rose, tulip)"


def test_sizes_and_kinds_that_differ_are_refused_by_name(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "a.png")
    Image.fromarray(GREY[:4]).save(tmp_path / "b.png")
    with pytest.raises(ValueError, match=r"one size: .*b\.png has 7 x 4 pixels, .*a\.png has 7 x 5; data\.size"):
        load_items(tmp_path)
    Image.fromarray(GREY.astype(np.uint16)).save(tmp_path / "b.png")
    with pytest.raises(ValueError, match=r"one kind: .*a\.png is grey, .*b\.png is grey of 16 bits"):
        load_items(tmp_path)


def test_only_image_formats_are_opened(tmp_path):
    """By the name of an image, a PostScript file would be handed to an interpreter."""
    Image.fromarray(COLOUR).save(tmp_path / "a.ppm")
    (tmp_path / "a.ppm").rename(tmp_path / "a.png")
    Image.open(tmp_path / "a.png").load()  # what Pillow reads where nobody says which formats
    with pytest.raises(ValueError, match=r"a\.png cannot be read: "):
        load_items(tmp_path)


@pytest.mark.filterwarnings("ignore")  # of which Pillow's own only warns
def test_headers_that_promise_too_many_pixels_are_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(png(GREY[..., None], 0, size=(10_000, 10_000)))
    with pytest.raises(ValueError, match=r"a\.png cannot be read: .*100000000 pixels"):
        load_items(tmp_path)


@pytest.mark.filterwarnings("ignore")  # Pillow's own, of what it finds in such files
@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
def test_damaged_images_are_read_or_named_in_one_line(tmp_path, suffix):
    """40 files a format, cut short or with bytes changed: an image, or a ValueError that names the file."""
    path = tmp_path / f"a{suffix}"
    Image.fromarray(COLOUR).save(path)
    whole, rng, refused = path.read_bytes(), np.random.default_rng(0), []
    for i, _ in itertools.product(range(4), range(10)):
        content = bytearray(whole)
        if i == 0:
            del content[rng.integers(len(content)) :]
        for place in rng.integers(len(content), size=3) if i else ():
            content[place] = rng.integers(256)
        path.write_bytes(content)
        try:
            assert load_items(tmp_path).x.ndim == 4
        except ValueError as error:
            refused.append(str(error))
    assert len(refused) >= 5
    assert all(path.name in line and "\n" not in line for line in refused)
