import json
import logging
import math
import runpy
from pathlib import Path

import numpy as np
import pytest
from run_samples import write_run

from vitadapter.visualization.metrics_file import format_table, read_metrics, summarize

RESULTS = {"bbox/AP": 31.25, "bbox/AP50": 55.0, "segm/AP": 16.5}


def append(folder: Path, text: str) -> None:
    with (folder / "metrics.json").open("a") as file:
        file.write(text)


def test_curves_are_what_was_logged(tmp_path: Path) -> None:
    metrics = read_metrics(write_run(tmp_path, results=RESULTS))
    iterations, losses = metrics.curve("total_loss")
    assert iterations.tolist() == [9, 19, 29, 39]
    np.testing.assert_allclose(losses, [2, 1.5, 1 + 1 / 3, 1.25])
    np.testing.assert_allclose(metrics.curve("lr")[1], 1e-3 * (1 - iterations / 100))
    assert metrics.iterations() == 40
    assert metrics.last("segm/AP") == 16.5
    assert "loss_mask" in metrics.names()
    assert [len(part) for part in metrics.curve("unknown")] == [0, 0]


def test_folder_and_file_read_the_same(tmp_path: Path) -> None:
    write_run(tmp_path)
    assert read_metrics(tmp_path) == read_metrics(str(tmp_path / "metrics.json"))


def test_minutes_add_up_all_iterations(tmp_path: Path) -> None:
    write_run(tmp_path, stop=20, seconds=6)
    write_run(tmp_path, start=20, stop=45, seconds=3)
    minutes = read_metrics(tmp_path).minutes()
    np.testing.assert_allclose(minutes, [1, 2, 2.5, 3, 3.25])


def test_rows_before_the_first_time_take_the_next_one(tmp_path: Path) -> None:
    write_run(tmp_path, stop=8, period=2, seconds=30)
    assert "time" not in json.loads((tmp_path / "metrics.json").read_text().split("\n")[0])
    np.testing.assert_allclose(read_metrics(tmp_path).minutes(), [1, 2, 3, 4])


def test_run_without_time_is_refused(tmp_path: Path) -> None:
    metrics = read_metrics(write_run(tmp_path, seconds=None))
    with pytest.raises(ValueError, match=r"metrics\.json must have 'time'"):
        metrics.minutes()


def test_resumed_run_replaces_what_it_repeats(tmp_path: Path) -> None:
    write_run(tmp_path, stop=40, results={"bbox/AP": 1.0})
    write_run(tmp_path, start=20, stop=50, scale=2, results={"bbox/AP": 2.0})
    metrics = read_metrics(tmp_path)
    iterations, losses = metrics.curve("total_loss")
    assert iterations.tolist() == [9, 19, 29, 39, 49]
    np.testing.assert_allclose(losses[:2], [2, 1.5])
    np.testing.assert_allclose(losses[2:], 2 * (1 + 10 / (iterations[2:] + 1)))
    assert metrics.curve("bbox/AP")[1].tolist() == [2.0]


def test_run_started_anew_replaces_the_longer_one_before(tmp_path: Path) -> None:
    write_run(tmp_path, stop=40, results=RESULTS)
    write_run(tmp_path, stop=20, scale=3)
    metrics = read_metrics(tmp_path)
    assert metrics.iterations() == 20
    assert metrics.curve("total_loss")[1].tolist() == [6, 4.5]
    assert metrics.last("bbox/AP") is None


def test_evaluation_written_late_is_no_resumption(tmp_path: Path) -> None:
    write_run(tmp_path)
    append(tmp_path, '{"bbox/AP": 12.0, "iteration": 24}\n')
    metrics = read_metrics(tmp_path)
    assert metrics.iterations() == 40
    assert list(metrics.rows) == [9, 19, 24, 29, 39]


def test_values_that_are_no_numbers(tmp_path: Path) -> None:
    write_run(tmp_path)
    append(tmp_path, '{"bbox/AP": NaN, "segm/AP": "high", "iteration": 40}\n')
    metrics = read_metrics(tmp_path)
    assert metrics.last("bbox/AP") is None
    assert math.isnan(metrics.curve("bbox/AP")[1][0])
    assert "segm/AP" not in metrics.names()


def test_truncated_last_line_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = read_metrics(write_run(tmp_path)).rows
    append(tmp_path, '{"iteration": 49, "lr": 0.00')
    assert read_metrics(tmp_path).rows == expected
    assert [r.levelno for r in caplog.records] == [logging.WARNING]
    assert f"line 5 of {tmp_path / 'metrics.json'} was cut off" in caplog.text


def test_run_resumed_after_a_truncated_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_run(tmp_path, stop=20)
    append(tmp_path, '{"iteration": 29, "lr": 0.00')
    write_run(tmp_path, start=20, stop=50, scale=2)
    metrics = read_metrics(tmp_path)
    assert metrics.curve("total_loss")[0].tolist() == [9, 19, 29, 39, 49]
    assert metrics.rows[29]["total_loss"] == pytest.approx(2 * (1 + 1 / 3))
    assert "line 3" in caplog.text


@pytest.mark.parametrize(
    "line", ["oops", "[1]", '{"lr": 1}', '{"iteration": "1"}', '{"iteration": -1}']
)
def test_broken_line_is_refused(tmp_path: Path, line: str) -> None:
    write_run(tmp_path, stop=10)
    append(tmp_path, f"{line}\n")
    write_run(tmp_path, start=10, stop=20)
    with pytest.raises(
        ValueError, match=r"line 2 of .*metrics\.json must be a json object"
    ) as error:
        read_metrics(tmp_path)
    assert repr(line) in str(error.value)


@pytest.mark.parametrize("text", ["", "\n", "{", '{"iteration": 60, "bbox/AP": 1.0}\n'])
def test_file_without_training_is_refused(tmp_path: Path, text: str) -> None:
    append(tmp_path, text)
    with pytest.raises(ValueError, match=r"metrics\.json must have rows with 'total_loss'"):
        read_metrics(tmp_path)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=str(tmp_path / "metrics.json")):
        read_metrics(tmp_path)
    with pytest.raises(ValueError, match="does not exist"):
        read_metrics(tmp_path / "no_run")


def test_summary_and_table(tmp_path: Path) -> None:
    full = summarize("a|b", read_metrics(write_run(tmp_path / "a", seconds=60, results=RESULTS)))
    assert (full.iterations, full.minutes) == (40, pytest.approx(40))
    assert (full.box_ap, full.box_ap50, full.mask_ap) == (31.25, 55.0, 16.5)
    box_only = summarize("box", read_metrics(write_run(tmp_path / "b", results={"bbox/AP": 2.0})))
    assert box_only.mask_ap is None
    assert format_table([full, box_only]).split("\n") == [
        "| method | iterations | minutes | box AP | box AP50 | mask AP |",
        "| ------ | ---------: | ------: | -----: | -------: | ------: |",
        "| a\\|b   |         40 |    40.0 |   31.2 |     55.0 |    16.5 |",
        "| box    |         40 |     1.0 |    2.0 |        - |       - |",
    ]


def test_outdated_evaluation_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_run(tmp_path, stop=20, results=RESULTS)
    summarize("done", read_metrics(tmp_path))
    assert not caplog.records
    write_run(tmp_path, start=20, stop=40)
    assert summarize("stopped", read_metrics(tmp_path)).box_ap == 31.25
    assert "AP of 'stopped' is from iteration 20, but its training went on to 39" in caplog.text


def test_iterations_in_time_script(repository: Path, tmp_path: Path, capsys) -> None:
    main = runpy.run_path(str(repository / "scripts" / "iterations_in_time.py"))["main"]
    run = str(write_run(tmp_path / "run", seconds=1.5))  # 40 iterations: 60 seconds
    main([run, str(write_run(tmp_path / "probe", stop=10, seconds=0.5))])
    assert capsys.readouterr().out == "120\n"
    untimed = str(write_run(tmp_path / "untimed", seconds=None))
    for arguments in ([run, untimed], [untimed, run]):
        with pytest.raises(SystemExit, match=r"^error: .*untimed.* must have 'time'"):
            main(arguments)
    with pytest.raises(SystemExit, match=r"^error: .*nowhere.*does not exist"):
        main([run, "nowhere"])
