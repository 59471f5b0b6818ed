"""Folders of images: every pixel as a viewer shows it, nothing lost unsaid, and damage named."""

import itertools
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from sdediff.data import DataWarning, Reading, load_dataset
from sdediff.data import images as images_module
from sdediff.data.files import load_items
from sdediff.data.folders import IMAGE_SUFFIXES
from sdediff.data.huggingface import _images

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


def test_of_several_kinds_the_one_that_goes_with_no_other_is_named(tmp_path):
    """Grey goes with colour: neither is the fault where a third, of 16 bits, is there. Saved sets hold the same."""
    odd = Image.fromarray(GREY.astype(np.uint16))
    images = {"a": Image.fromarray(COLOUR), "b": Image.fromarray(GREY), "c": odd}
    for name, image in images.items():
        image.save(tmp_path / f"{name}.png")
    with pytest.raises(ValueError, match=r"one kind: .*a\.png is colour, .*c\.png is grey of 16 bits; .* 8 bits"):
        load_items(tmp_path)
    rows = [{"img": image} for image in images.values()]
    with pytest.raises(ValueError, match=r"one kind: image 0 is colour, image 2 is grey of 16 bits"):
        _images(rows, "img", None, "set")  # made one array of bytes, the 16 bits would wrap around
    with pytest.warns(DataWarning, match=r"set: 1 of 2 images are turned into colour"):
        assert _images(rows[:2], "img", None, "set").shape == (2, 3, *GREY.shape)
    bilevel = [{"img": Image.fromarray(GREY > 100)}] * 2
    with pytest.warns(DataWarning, match="set: 2 of 2 images are turned into grey"):
        assert _images(bilevel, "img", 4, "set").dtype == np.uint8  # resized, it has more than two levels


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


# ---- sizes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(40, 40), (40, 100), (130, 40), (41, 57), (9, 12)])
@pytest.mark.parametrize("mode", ["grey", "colour", "16 bits", "floats"])
def test_sizes_that_differ_are_cropped_and_resized(tmp_path, shape, mode):
    """A ramp stays a ramp: at the centre of each new pixel the value it had there, but near the border.

    Samples of the cubic kernel have their centre of mass within 2 % of a new pixel of its own; bytes are rounded twice.
    """
    size, side = 16, min(shape)
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    ramp = rows + 2 * columns
    kinds = {"grey": np.uint8, "colour": np.uint8, "16 bits": np.uint16, "floats": np.float32}
    scale = 250 if mode == "16 bits" else 1
    pixels = (scale * ramp).astype(kinds[mode])
    Image.fromarray(np.stack([pixels] * 3, axis=2) if mode == "colour" else pixels).save(tmp_path / "a.tif")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if side < size else "error")
        found = load_items(tmp_path, reading=Reading(size=size)).x[0, 0].numpy().astype(float)
    centre = [0.5 * (length - side) + (np.arange(size) + 0.5) * side / size - 0.5 for length in shape]
    expected = scale * (centre[0][:, None] + 2 * centre[1])
    inner = slice(4, -4)
    bound = 0.02 * scale * 3 * side / size + {"16 bits": 0.5, "floats": 0.0}.get(mode, 1.0)
    assert found.shape == (size, size)
    assert np.abs(found - expected)[inner, inner].max() <= bound
    shifted = expected + scale * 3 * 0.5 * side / size  # by half a new pixel
    assert np.abs(found - shifted)[inner, inner].max() > bound
    assert np.abs(found - expected.T)[inner, inner].max() > bound


def test_what_is_finer_than_the_new_pixels_does_not_alias(tmp_path):
    """Stripes of one pixel become grey; picking the nearest pixels would leave them black and white."""
    stripes = np.broadcast_to(np.arange(63) % 2 * 255, (63, 63)).astype(np.uint8)
    Image.fromarray(stripes).save(tmp_path / "a.png")
    found = load_items(tmp_path, reading=Reading(size=9)).x.float()
    nearest = np.asarray(Image.fromarray(stripes).resize((9, 9), Image.Resampling.NEAREST), dtype=float)
    assert float((found - 127.5).abs().max()) < 20
    assert abs(nearest - 127.5).max() > 100


def test_large_photos_come_out_as_if_they_were_decoded_whole(tmp_path, monkeypatch):
    """JPEG at an eighth of its size is a mean of blocks, so that only what is finer than a new pixel differs."""
    coarse = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((800, 600), Image.Resampling.BICUBIC).save(tmp_path / "a.jpg", quality=95)
    Image.fromarray(coarse[:, ::-1]).resize((800, 600), Image.Resampling.BICUBIC).save(tmp_path / "b.jpg", quality=95)
    fast = load_items(tmp_path, reading=Reading(size=24)).x.float()
    monkeypatch.setattr(images_module, "_SPARE", 1000)
    whole = load_items(tmp_path, reading=Reading(size=24)).x.float()
    assert 0.0 < float((fast - whole).abs().max()) <= 8.0
    assert float((fast - whole).abs().mean()) < 1.0
    assert float((whole - whole.roll(1, dims=-1)).abs().mean()) > 10.0  # a pixel to the side would be seen


def test_orientation_comes_before_the_crop(tmp_path):
    """A photo on its side is the upright one's square."""
    upright = np.zeros((60, 30), dtype=np.uint8)
    upright[15:30] = 200
    Image.fromarray(upright).save(tmp_path / "a.png")
    turned = Image.fromarray(np.ascontiguousarray(upright.swapaxes(0, 1)[::-1]))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "b.png", exif=exif)
    one, other = load_items(tmp_path, reading=Reading(size=10)).x
    assert int((one.int() - other.int()).abs().max()) <= 1
    assert float(one[0, 0].float().mean()) > 150 > 50 > float(one[0, -1].float().mean())


def test_small_images_are_enlarged_with_a_word(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "a.png")
    with pytest.warns(DataWarning, match="1 of 1 images are smaller than the size, and enlarged"):
        assert load_items(tmp_path, reading=Reading(size=8)).x.shape == (1, 1, 8, 8)


def test_bilevel_images_that_are_resized_are_grey(tmp_path):
    Image.fromarray(np.add.outer(np.arange(32), np.arange(32)) % 11 > 4).save(tmp_path / "a.png")
    with pytest.warns(DataWarning, match="turned into grey"):
        found = load_items(tmp_path, reading=Reading(size=8)).x
    assert found.dtype == torch.uint8
    assert len(found.unique()) > 2


# ---- names and damage ----------------------------------------------------------------------------------------------


def test_images_keep_the_names_of_their_files(tmp_path):
    for i, name in enumerate(["b/x.png", "a/y.png", "a/x.png", "c/z.png", "c/w.png"]):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((4, 4), i, dtype=np.uint8)).save(tmp_path / name)
    data = load_dataset(tmp_path)
    ids, images = [*data.train_ids, *data.held_out_ids], torch.cat([data.train, data.held_out])
    named = dict(zip(ids, images[:, 0, 0, 0].tolist(), strict=True))
    assert named == {"b/x.png": 0, "a/y.png": 1, "a/x.png": 2, "c/z.png": 3, "c/w.png": 4}


@pytest.mark.parametrize("cut", [10, 200])
def test_damaged_images_are_left_out_by_choice(tmp_path, cut):
    """One without a header and one without its pixels: by name, and the labels and names of the others stay."""
    big = RNG.integers(0, 256, (30, 30), dtype=np.uint8)
    for name in ("a/0", "a/1", "b/0", "b/1"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(big).save(tmp_path / f"{name}.png")
    content = (tmp_path / "a/1.png").read_bytes()
    (tmp_path / "a/1.png").write_bytes(content[:cut])
    with pytest.raises(ValueError, match=r"1\.png cannot be read: "):
        load_items(tmp_path)
    with pytest.warns(DataWarning, match=r"1 of 4 images are damaged and left out: a/1\.png"):
        items = load_items(tmp_path, reading=Reading(damaged="skip"))
    assert (items.ids.tolist(), items.labels.tolist()) == (["a/0.png", "b/0.png", "b/1.png"], [0, 1, 1])
    assert all(np.array_equal(image[0].numpy(), big) for image in items.x)


def test_a_folder_of_nothing_but_damage_is_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="all 1 images are damaged"):
        load_items(tmp_path, reading=Reading(damaged="skip"))
