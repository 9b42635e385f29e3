import itertools
import runpy
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image
from run_samples import write_run

from vitadapter.visualization import curves
from vitadapter.visualization.metrics_file import RunMetrics, read_metrics

RESULTS = {"bbox/AP": 30.0, "bbox/AP50": 55.0, "segm/AP": 15.0}
BLUE, ORANGE = "#0072B2", "#D55E00"


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved, to look into them."""
    saved = []
    original = Figure.savefig

    def savefig(figure: Figure, *args: object, **kwargs: object) -> None:
        saved.append(figure)
        original(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return saved


def make_runs(folder: Path, **results: dict[str, float]) -> dict[str, RunMetrics]:
    return {
        name: read_metrics(write_run(folder / name, scale=i + 1, results=values))
        for i, (name, values) in enumerate(results.items())
    }


def count_pixels(path: Path, color: str) -> int:
    """Pixels of exactly this colour."""
    pixels = np.asarray(Image.open(path).convert("RGB"))
    return int((pixels == np.round(np.array(to_rgb(color)) * 255)).all(axis=-1).sum())


def texts(figure: Figure) -> list[str]:
    return [
        t.get_text() for axes in figure.axes for t in (*axes.texts, axes.title, axes._left_title)
    ]


def test_training_figure_shows_losses_and_rate(tmp_path: Path, figures: list[Figure]) -> None:
    metrics = read_metrics(write_run(tmp_path))
    curves.plot_training(metrics, tmp_path / "new" / "training.png")
    assert Image.open(tmp_path / "new" / "training.png").size == (1200, 800)
    assert {"total loss", "cls", "box reg", "mask", "Learning rate"} <= set(texts(figures[0]))
    losses, rate = figures[0].axes
    for name in ("total_loss", "loss_cls", "loss_mask"):
        assert any(np.array_equal(c.get_ydata(), metrics.curve(name)[1]) for c in losses.lines)
    np.testing.assert_array_equal(rate.lines[0].get_xydata(), np.transpose(metrics.curve("lr")))
    ticks = [tick.get_text() for axes in figures[0].axes for tick in axes.get_yticklabels()]
    assert ticks
    assert [tick for tick in ticks if "$" in tick] == []


EVALUATIONS = {9: (5.0, 2.0), 19: (12.0, 8.0), 39: (30.0, 15.0)}


def evaluated_run() -> RunMetrics:
    """A run of 40 iterations of 3 seconds, which was evaluated three times."""
    rows = {}
    for i in range(40):
        rows[i] = {"total_loss": 3.0, "loss_cls": 1.0, "loss_box_reg": 2.0, "time": 3.0, "lr": 1.0}
        if i in EVALUATIONS:
            rows[i] |= dict(zip(("bbox/AP", "segm/AP"), EVALUATIONS[i], strict=True))
    return RunMetrics(Path("metrics.json"), rows)


def test_training_figure_shows_all_evaluations(tmp_path: Path, figures: list[Figure]) -> None:
    curves.plot_training(evaluated_run(), tmp_path / "x.png")
    losses, results, _ = figures[0].axes
    box, mask = results.lines
    assert box.get_xydata().tolist() == [[i, ap] for i, (ap, _) in EVALUATIONS.items()]
    assert mask.get_xydata().tolist() == [[i, ap] for i, (_, ap) in EVALUATIONS.items()]
    assert {"box AP 30.0", "mask AP 15.0"} <= set(texts(figures[0]))
    # Blue means boxes, in losses and results; no other curve has a colour of the results.
    named = {text.get_text(): text.get_color() for text in losses.texts}
    assert named["box reg"] == box.get_color()
    assert named["cls"] not in (box.get_color(), mask.get_color())


def test_no_two_losses_share_a_colour(tmp_path: Path, figures: list[Figure]) -> None:
    names = ["loss_box_reg", "loss_mask", *(f"loss_{letter}" for letter in "abcdefghij")]
    rows = {i: {"total_loss": 9.0, **dict.fromkeys(names, 1.0)} for i in range(3)}
    curves.plot_training(RunMetrics(tmp_path, rows), tmp_path / "x.png")
    named = [to_rgb(text.get_color()) for text in figures[0].axes[0].texts]
    assert len(set(named)) == len(named) == len(names) + 1


def test_result_of_one_run_is_ap_over_time(tmp_path: Path, figures: list[Figure]) -> None:
    curves.plot_comparison({"adapter": evaluated_run()}, tmp_path / "x.png")
    results, loss = figures[0].axes
    assert len(results.patches) == 0  # no bars
    box, mask = results.lines
    # 3 seconds for each iteration up to the evaluation
    np.testing.assert_allclose(box.get_xdata(), [0.5, 1.0, 2.0])
    assert mask.get_ydata().tolist() == [2.0, 8.0, 15.0]
    assert loss.lines[0].get_color() not in (box.get_color(), mask.get_color())


def test_stages_of_one_loss_are_added_up(tmp_path: Path, figures: list[Figure]) -> None:
    rows = {
        i: {"total_loss": 6.0, "loss_cls_stage0": 1.0, "loss_cls_stage1": 2.0, "loss_ce_3": 3.0}
        for i in range(4)
    }
    curves.plot_training(RunMetrics(tmp_path, rows), tmp_path / "x.png")
    assert {"total loss", "cls", "ce"} <= set(texts(figures[0]))
    heights = {line.get_ydata()[0] for line in figures[0].axes[0].lines}
    assert heights == {6.0, 3.0}
    assert len(figures[0].axes[0].lines) == 2 * 3


@pytest.mark.parametrize("values", [[2.0], [np.nan, 1.0, 2.0], [np.nan, np.nan], [0.0, 1.0]])
def test_short_and_broken_curves_are_drawn(tmp_path: Path, values: list[float]) -> None:
    rows = {i: {"total_loss": v, "time": 1.0} for i, v in enumerate(values)}
    metrics = RunMetrics(tmp_path, rows)
    curves.plot_training(metrics, tmp_path / "a.png")
    curves.plot_comparison({"x": metrics}, tmp_path / "b.png")
    assert Image.open(tmp_path / "b.png").size == (1400, 600)


def test_labels_of_equal_curves_do_not_overlap(tmp_path: Path, figures: list[Figure]) -> None:
    same = read_metrics(write_run(tmp_path))
    curves.plot_loss_against_time(dict.fromkeys("abcdefg", same), tmp_path / "x.png")
    assert Image.open(tmp_path / "x.png").size == (1200, 700)
    axes = figures[0].axes[0]
    boxes = sorted((t.get_window_extent() for t in axes.texts), key=lambda box: box.y0)
    assert len(boxes) == 7
    assert all(low.y1 <= high.y0 for low, high in itertools.pairwise(boxes))
    assert all(box.x1 <= 1200 and box.y0 >= 0 and box.y1 <= 700 for box in boxes)


def test_comparison_shows_ap_and_time(tmp_path: Path, figures: list[Figure]) -> None:
    runs = make_runs(tmp_path, low={"bbox/AP": 7.5, "segm/AP": 2.5}, high=RESULTS)
    output = tmp_path / "comparison.png"
    curves.plot_comparison(runs, output, "The title")
    assert Image.open(output).size == (1400, 600)
    assert output.stat().st_size < 200_000
    left, right = figures[0].axes
    assert [bar.get_height() for bar in left.patches] == [7.5, 30.0, 2.5, 15.0]
    assert {"7.5", "30.0", "2.5", "15.0", "low", "high"} <= {t.get_text() for t in left.texts}
    assert "AP after 1.0 minutes of training" in texts(figures[0])
    assert figures[0].get_suptitle() == "The title"
    drawn = [line.get_xydata() for line in right.lines]
    for metrics in runs.values():
        curve = np.stack([metrics.minutes(), metrics.curve("total_loss")[1]], axis=1)
        assert any(np.array_equal(curve, line) for line in drawn)
    # The box bar of the second run, orange, is four times as high as that of the first.
    assert count_pixels(output, ORANGE) > 3 * count_pixels(output, BLUE) > 0


def test_comparison_without_masks_or_results(tmp_path: Path, figures: list[Figure]) -> None:
    runs = make_runs(tmp_path, boxes={"bbox/AP": 7.5}, stopped={})
    write_run(tmp_path / "stopped", start=40, stop=90)
    runs["stopped"] = read_metrics(tmp_path / "stopped")
    curves.plot_comparison(runs, tmp_path / "x.png")
    found = texts(figures[0])
    assert found.count("n/a") == 1
    assert "AP at the end of training" in found
    assert [tick.get_text() for tick in figures[0].axes[0].get_xticklabels()] == ["box", "box"]


def test_bad_arguments_are_refused(tmp_path: Path) -> None:
    metrics = read_metrics(write_run(tmp_path))
    with pytest.raises(ValueError, match=r"must be written to a \.png file, got .*x\.jpg"):
        curves.plot_training(metrics, tmp_path / "x.jpg")
    with pytest.raises(ValueError, match="at least one run"):
        curves.plot_loss_against_time({}, tmp_path / "x.png")
    with pytest.raises(ValueError, match="at least one run"):
        curves.plot_comparison({}, tmp_path / "x.png")


def test_global_style_is_left_alone(tmp_path: Path) -> None:
    before = dict(mpl.rcParams)
    curves.plot_training(read_metrics(write_run(tmp_path)), tmp_path / "x.png")
    assert dict(mpl.rcParams) == before


def test_plot_metrics_script(
    tmp_path: Path, repository: Path, figures: list[Figure], capsys: pytest.CaptureFixture
) -> None:
    main = runpy.run_path(str(repository / "scripts" / "plot_metrics.py"))["main"]
    folders = [str(write_run(tmp_path / name)) for name in ("one/run", "two/run", "other")]
    output = str(tmp_path / "x.png")
    main([folders[0], "--output", output])
    assert "Learning rate" in texts(figures[0])
    main([folders[0], folders[2], "--output", output])
    assert {"run", "other"} <= set(texts(figures[1]))
    main([*folders[:2], "--output", output])
    assert set(folders[:2]) <= set(texts(figures[2]))
    assert capsys.readouterr().out == f"written to {output}\n" * 3
    with pytest.raises(SystemExit, match=r"error: .*nowhere.*does not exist"):
        main(["nowhere", "--output", output])


def test_compare_runs_script(
    tmp_path: Path, repository: Path, capsys: pytest.CaptureFixture
) -> None:
    main = runpy.run_path(str(repository / "scripts" / "compare_runs.py"))["main"]
    folder = write_run(tmp_path / "lr=1", results=RESULTS)
    main([f"ViT-Adapter={folder}"])
    printed = capsys.readouterr().out
    assert printed.count("\n") == 3
    assert "| ViT-Adapter |         40 |     1.0 |   30.0 |     55.0 |    15.0 |" in printed
    main([f"a={folder}", f"b={folder}", "--output", str(tmp_path / "x.png"), "--title", "T"])
    assert f"figure written to {tmp_path / 'x.png'}" in capsys.readouterr().out
    assert count_pixels(tmp_path / "x.png", ORANGE) > 0
    for argument, message in (
        (str(tmp_path), "must be given as NAME=RUN_DIR"),
        ("=x", "must be given as NAME=RUN_DIR, got '=x'"),
        (f"a={tmp_path}", "does not exist"),
    ):
        with pytest.raises(SystemExit, match=message):
            main([argument])
    with pytest.raises(SystemExit, match="must differ, got 'a' twice"):
        main([f"a={folder}", f"a={folder}"])


def test_convergence_shows_loss_and_ap_of_each_run(tmp_path: Path, figures: list[Figure]) -> None:
    runs = make_runs(tmp_path, random={"bbox/AP": 2.0}, pretrained={"bbox/AP": 30.0})
    curves.plot_convergence(runs, tmp_path / "c.png", "On few images")
    assert Image.open(tmp_path / "c.png").size == (1600, 600)
    losses, ap = figures[0].axes
    assert [line.get_ydata().tolist() for line in ap.lines] == [[2.0], [30.0]]
    assert len(losses.lines) == 4  # as measured and smoothed
    assert {"random", "pretrained", "Training loss", "Box AP"} <= set(texts(figures[0]))


def test_convergence_of_a_run_without_evaluation_is_refused(tmp_path: Path) -> None:
    runs = {"never": read_metrics(write_run(tmp_path))}
    with pytest.raises(ValueError, match=r"run never has no bbox/AP"):
        curves.plot_convergence(runs, tmp_path / "c.png")
