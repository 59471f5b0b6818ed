"""Pictures say what their numbers say: read back pixel by pixel where they can be."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sdediff import DataInfo, plots
from sdediff.plots.canvas import new_figure
from sdediff.plots.likelihoods import Likelihoods, _draw_histogram, with_points


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image)


def tiles(pixels: np.ndarray, rows: int, columns: int, height: int, width: int) -> np.ndarray:
    """Undo the grid: bytes ``(rows * columns, H, W, ...)``, each the one colour of its square."""
    zoom = 64 // max(height, width)
    gap = max(2, zoom // 2)
    assert pixels.shape[:2] == (rows * (height * zoom + gap) + gap, columns * (width * zoom + gap) + gap)
    found = []
    for row in range(rows):
        for column in range(columns):
            top, left = gap + row * (height * zoom + gap), gap + column * (width * zoom + gap)
            tile = pixels[top : top + height * zoom, left : left + width * zoom]
            squares = tile.reshape(height, zoom, width, zoom, *tile.shape[2:])
            assert (squares == squares[:, :1, :, :1]).all()  # crisp: every square has one colour
            found.append(squares[:, 0, :, 0])
    return np.stack(found)


def test_image_grid_shows_every_pixel_crisply(tmp_path: Path) -> None:
    levels = torch.arange(5 * 64).reshape(5, 1, 8, 8) % 17
    plots.image_grid(levels, tmp_path / "x.png", low=0.0, high=16.0)
    shown = tiles(read(tmp_path / "x.png"), 2, 3, 8, 8)
    assert np.array_equal(shown[:5], np.round(levels[:, 0].numpy() * (255.0 / 16.0)))
    assert len(np.unique(shown[5])) == 1  # the empty place
    plots.image_grid(levels[:, 0], tmp_path / "y.png", low=0.0, high=16.0)
    assert np.array_equal(read(tmp_path / "y.png"), read(tmp_path / "x.png"))


def test_values_beyond_the_range_are_cut(tmp_path: Path) -> None:
    plots.image_grid(torch.tensor([[[-3.0, -1.0], [1.0, 3.0]]]), tmp_path / "x.png", low=-1.0, high=1.0)
    assert tiles(read(tmp_path / "x.png"), 1, 1, 2, 2)[0].tolist() == [[0, 0], [255, 255]]


def test_colours_keep_their_channels(tmp_path: Path) -> None:
    image = torch.zeros(1, 3, 4, 4)
    image[0, 0], image[0, 2, 1, 3] = 1.0, 1.0
    plots.image_grid(image, tmp_path / "x.png")
    shown = tiles(read(tmp_path / "x.png"), 1, 1, 4, 4)[0]
    assert shown[0, 0].tolist() == [255, 0, 0]
    assert shown[1, 3].tolist() == [255, 0, 255]


def test_filmstrip_has_a_row_for_every_sequence(tmp_path: Path) -> None:
    frames = torch.arange(3 * 2 * 16.0).reshape(3, 2, 1, 4, 4) / 95.0
    plots.filmstrip(frames, tmp_path / "x.png")
    shown = tiles(read(tmp_path / "x.png"), 2, 3, 4, 4).reshape(2, 3, 4, 4)
    assert np.array_equal(shown, np.round(frames[:, :, 0].transpose(0, 1).double().numpy() * 255.0))


@pytest.mark.parametrize("shape", [(2, 2, 8, 8), (0, 1, 8, 8), (2, 64), (2, 1, 1, 8, 8)])
def test_what_is_no_image_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="images must be"):
        plots.image_grid(torch.zeros(shape), tmp_path / "x.png")
    assert not list(tmp_path.iterdir())


def ink(path: Path) -> np.ndarray:
    """Where the picture has the colour of samples: their blue is well above their red."""
    pixels = read(path).astype(int)
    return pixels[..., 2] - pixels[..., 0] > 40


def test_scatter_draws_points_where_they_are(tmp_path: Path) -> None:
    corners = torch.tensor([[-1.0, -1.0], [1.0, 1.0], [-1.0, 1.0], [1.0, -1.0]])
    plots.scatter(corners[:2], tmp_path / "rising.png", reference=corners)
    plots.scatter(corners[2:], tmp_path / "falling.png", reference=corners)
    for name, sign in (("rising", 1.0), ("falling", -1.0)):
        mask = ink(tmp_path / f"{name}.png")
        mask[:60] = False  # the legend
        y, x = np.nonzero(mask)
        assert np.corrcoef(x, -y)[0, 1] * sign > 0.95


def test_the_kind_of_picture_follows_the_shape(tmp_path: Path) -> None:
    x = torch.linspace(-1.0, 1.0, 128).reshape(2, 1, 8, 8)
    info = DataInfo((1, 8, 8), levels=17)
    plots.picture(x, info, tmp_path / "a.png")
    plots.image_grid(x, tmp_path / "b.png", low=-1.0, high=1.0)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    plots.sequences(x[None], info, tmp_path / "c.png")
    plots.filmstrip(x[None], tmp_path / "d.png", low=-1.0, high=1.0)
    assert (tmp_path / "c.png").read_bytes() == (tmp_path / "d.png").read_bytes()
    points = torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 4.0]])
    plots.picture(points, DataInfo((2,)), tmp_path / "e.png")
    plots.scatter(points, tmp_path / "f.png")
    assert (tmp_path / "e.png").read_bytes() == (tmp_path / "f.png").read_bytes()


def test_points_on_a_line(tmp_path: Path) -> None:
    x = torch.linspace(0.0, 1.0, 50)[:, None]
    plots.scatter(x, tmp_path / "a.png")
    plots.histogram(x[:, 0], tmp_path / "b.png", label="x")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    plots.sequences(x.reshape(5, 10, 1), DataInfo((1,)), tmp_path / "c.png")
    assert read(tmp_path / "c.png").ndim == 3


def test_curves_go_where_the_values_go(tmp_path: Path) -> None:
    steps = list(range(20))
    plots.curves({"rising": (steps, steps)}, tmp_path / "up.png")
    plots.curves({"falling": (steps, steps[::-1])}, tmp_path / "down.png")
    for name, sign in (("up", 1.0), ("down", -1.0)):
        mask = ink(tmp_path / f"{name}.png")
        y, x = np.nonzero(mask[:, 2 * mask.shape[1] // 5 : 3 * mask.shape[1] // 5])  # between the corners of the legend
        assert np.corrcoef(x, -y)[0, 1] * sign > 0.95


def test_trade_offs_are_logarithmic_and_named_at_their_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each name has its line's colour, stands no nearer to another than a line of text, and inside the axes' height;
    values that may be nothing are hollow."""
    figures = []
    monkeypatch.setattr("sdediff.plots.costs.save_figure", lambda figure, path: figures.append(figure))
    names = [f"solver {k}" for k in range(9)]
    series = {name: ([5.0, 50.0], [0.1, 1e-4 * (1.0 + 0.01 * k)], [True, False]) for k, name in enumerate(names)}
    plots.trade_off(
        [plots.Panel("a", series, 2e-4), plots.Panel("b", {"solver 3": series["solver 3"]})], "x", xlabel="n"
    )
    first, second = figures[0].axes
    assert {first.get_xscale(), first.get_yscale(), second.get_yscale()} == {"log"}
    assert (first.get_title("left"), first.get_xlabel(), second.get_title("left")) == ("a", "n", "b")
    lines = {tuple(line.get_ydata()): line for line in first.lines if line.get_linestyle() in ("-", "--")}
    labels = {text.get_text(): text for text in first.texts}
    for name in names:
        line = lines[tuple(series[name][1])]
        assert line.get_color() == labels[name].get_color()
        assert line.get_markerfacecolor() == "none"
    assert second.lines[0].get_color() == lines[tuple(series["solver 3"][1])].get_color()
    filled = [line for line in first.lines if line.get_linestyle() == "None"]
    assert [list(line.get_xdata()) for line in filled] == [[5.0]] * 9
    heights = sorted(labels[name].get_position()[1] for name in names)
    assert min(b - a for a, b in pairwise(heights)) > 0.04
    assert heights[-1] <= 1.0
    assert "grey: the reference's own error" in labels
    assert len({line.get_marker() for line in filled}) == 9


def test_a_picture_that_fails_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.png"
    plots.image_grid(torch.zeros(1, 4, 4), path)
    before = path.read_bytes()

    def save(self: Image.Image, file: Path, kind: str) -> None:
        Path(file).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", save)
    with pytest.raises(OSError, match="space"):
        plots.image_grid(torch.ones(1, 4, 4), path)
    assert [file.name for file in tmp_path.iterdir()] == ["x.png"]
    assert path.read_bytes() == before


def test_no_global_state_of_matplotlib(tmp_path: Path) -> None:
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    plots.histogram(torch.arange(9.0), tmp_path / "x.png", label="x")
    assert dict(mpl.rcParams) == before
    import matplotlib.pyplot as plt

    assert plt.get_fignums() == []


@pytest.mark.parametrize(("scale", "aspect"), [((1.0, 3.0), 1.0), ((5e3, 1e-3), "auto"), ((1.0, 0.0), 1.0)])
def test_coordinates_of_unlike_units_get_scales_of_their_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, scale: tuple[float, float], aspect: float | str
) -> None:
    """An aspect of 1 would draw them as a line; a coordinate that does not move has no say."""
    seen = []
    points = torch.randn(50, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor(scale)
    monkeypatch.setattr("sdediff.plots.save_figure", lambda figure, _: seen.append(figure.axes[0]))
    monkeypatch.setattr("sdediff.plots.likelihoods.save_figure", lambda figure, _: seen.append(figure.axes[1]))
    plots.picture(points, DataInfo((2,)), tmp_path / "x.png")
    with_points(Likelihoods(points.sum(1), "nats", 0.0, 0.1, False), points, tmp_path / "y.png")
    assert [axes.get_aspect() for axes in seen] == [aspect, aspect]


# ---- items that are no images ------------------------------------------------------------------------------------


def test_series_are_lines_in_panels(tmp_path: Path) -> None:
    """Sixteen at most, a colour a channel: a series of zeros is a level line, a rising one is not."""
    x = torch.zeros(20, 2, 50)
    plots.picture(x, DataInfo((2, 50)), tmp_path / "level.png")
    x[:, 0] = torch.linspace(-1.0, 1.0, 50)
    plots.picture(x, DataInfo((2, 50)), tmp_path / "rising.png", reference=torch.ones(30, 2, 50))

    def blue(name: str) -> np.ndarray:  # the rows with much of the first colour, 0072b2
        pixels = read(tmp_path / name).astype(int)[..., :3]
        return np.flatnonzero((np.abs(pixels - [0, 114, 178]).max(axis=-1) < 30).sum(axis=1) > 4)

    assert len(blue("rising.png")) > 5 * max(1, len(blue("level.png")))


def test_volumes_are_slices_along_their_depth(tmp_path: Path) -> None:
    depth = torch.arange(12.0).reshape(1, 1, 12, 1, 1).expand(3, 1, 12, 8, 8) + torch.arange(3.0).reshape(3, 1, 1, 1, 1)
    found = plots.slices(depth)
    assert found.shape == (3, 6, 1, 8, 8)
    assert found[0, :, 0, 0, 0].tolist() == [1.0, 3.0, 5.0, 7.0, 9.0, 11.0]
    assert plots.slices(depth[:, :, :4])[1, :, 0, 0, 0].tolist() == [1.0, 2.0, 3.0, 4.0]  # all of few
    info = DataInfo((1, 12, 8, 8), levels=14, low=0.0, high=13.0)
    plots.picture(depth, info, tmp_path / "x.png")
    shown = tiles(read(tmp_path / "x.png"), 3, 6, 8, 8).reshape(3, 6, 8, 8)
    assert np.array_equal(shown, np.round(found[:, :, 0].numpy() * 255.0 / 13.0))
    two = torch.cat([depth, -depth], dim=1)  # of two channels the first
    assert torch.equal(plots.slices(two), found)


def test_rows_are_a_corner_plot(tmp_path: Path) -> None:
    """Below the diagonal there are pairs, on it histograms, above it nothing."""
    points = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    plots.picture(points, DataInfo((4,)), tmp_path / "x.png", reference=points + 0.1)
    pixels = ink(tmp_path / "x.png")
    height, width = pixels.shape
    assert pixels[: height // 4, width // 2 :].sum() == 0
    assert pixels[3 * height // 4 :, : width // 2].sum() > 100
    plots.picture(points[:, :2], DataInfo((2,)), tmp_path / "y.png")
    assert read(tmp_path / "y.png").shape != read(tmp_path / "x.png").shape


@pytest.mark.parametrize(
    ("shape", "image"),
    [((28, 28), True), ((1, 100), False), ((4, 64), False), ((5, 64), True), ((3, 8, 8), True), ((2, 8, 8), False)],
)
def test_which_items_are_images(shape: tuple[int, ...], image: bool) -> None:
    assert plots.is_image(shape) == image


def test_the_band_of_a_histogram_is_the_interval_of_the_mean() -> None:
    """1.96 standard errors on either side."""
    figure = new_figure(4.0, 3.0)
    axes = figure.subplots()
    _draw_histogram(axes, Likelihoods(torch.linspace(-1.0, 1.0, 50), "nats", 0.1, 0.2, False))
    band = max((each.get_window_extent() for each in axes.patches), key=lambda box: box.height)
    ends = axes.transData.inverted().transform(band.corners())[:, 0]
    assert (ends.min(), ends.max()) == pytest.approx((0.1 - 0.392, 0.1 + 0.392), abs=1e-3)
