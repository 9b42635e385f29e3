import io
import logging
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from detectron2.engine import default_setup
from omegaconf import DictConfig
from training_samples import metrics_of

from vitadapter.engine.run_checks import SetupError
from vitadapter.engine.run_log import RunLog
from vitadapter.engine.trainer import do_eval_only, do_train

pytestmark = pytest.mark.usefixtures("restored_logging")

PACKAGES = ("vitadapter", "detectron2", "fvcore")


@pytest.fixture
def as_program(monkeypatch) -> Callable[[], io.StringIO]:
    """Makes the test a program that has not set up logging; gives what is written to its terminal.

    A function, since pytest adds handlers after all fixtures.
    """

    def start() -> io.StringIO:
        for name in (None, *PACKAGES):
            monkeypatch.setattr(logging.getLogger(name), "handlers", [])
        terminal = io.StringIO()
        monkeypatch.setattr(sys, "stdout", terminal)
        return terminal

    return start


def text_of(cfg: DictConfig) -> str:
    return Path(cfg.train.output_dir, "log.txt").read_text()


def test_runs_of_one_process_have_their_own_logs(
    cfg: DictConfig, as_program: Callable[[], io.StringIO], tmp_path: Path
) -> None:
    terminal = as_program()
    cfg.train.max_iter = 2
    do_train(cfg)
    first = text_of(cfg)
    other = cfg.copy()
    other.train.init_checkpoint = f"{cfg.train.output_dir}/model_final.pth"
    other.train.output_dir = str(tmp_path / "evaluated")
    do_eval_only(other)
    assert text_of(cfg) == first
    for run, said in ((cfg, "eta: 0:00:0"), (other, "62 tensors loaded")):
        text = text_of(run)
        assert said in text
        assert text.count("Results go to") == text.count("Done: ") == 1
        assert f"metrics {run.train.output_dir}/metrics.json" in text.splitlines()[-1]
        assert "\033" not in text
        assert Path(run.train.output_dir, "config.yaml").is_file()
    shown = terminal.getvalue()
    assert shown.count("Results go to") == 2
    assert shown.count("Starting training from iteration 0") == 1
    assert "\033" not in shown
    assert "images/s: " in first
    assert "memory_mb: " in first
    # The run has put everything back.
    assert not any(logging.getLogger(name).handlers for name in PACKAGES)


def test_a_warning_is_written_once(
    cfg: DictConfig, as_program: Callable[[], io.StringIO], capsys
) -> None:
    terminal = as_program()
    with RunLog(cfg.train.output_dir):
        logging.getLogger("vitadapter.engine").warning("once")
    assert terminal.getvalue().count("once") == 1
    assert "once" not in capsys.readouterr().err


def test_the_logging_of_a_program_stays_as_it_is(
    cfg: DictConfig, as_program: Callable[[], io.StringIO]
) -> None:
    terminal, own = as_program(), io.StringIO()
    logging.getLogger().addHandler(logging.StreamHandler(own))
    with RunLog(cfg.train.output_dir) as log:
        log.describe(cfg)
        log.start()
        logging.getLogger("vitadapter.engine").info("for the file only")
        logging.getLogger("detectron2.data").warning("for both")
    assert own.getvalue() == "for both\n"
    assert terminal.getvalue() == ""
    assert "for the file only" in text_of(cfg)


def test_after_detectron2s_default_setup_nothing_is_logged_twice(
    cfg: DictConfig, as_program: Callable[[], io.StringIO]
) -> None:
    terminal = as_program()
    default_setup(cfg, None)
    with RunLog(cfg.train.output_dir) as log:
        log.start()
        logging.getLogger("detectron2.data").info("from Detectron2")
        logging.getLogger("vitadapter.engine").info("from us")
    for text in (terminal.getvalue(), text_of(cfg)):
        assert text.count("from Detectron2") == text.count("from us") == 1


def test_a_refused_run_leaves_no_log(cfg: DictConfig, tmp_path: Path) -> None:
    """The weights are read when everything else has been built."""
    cfg.train.init_checkpoint = str(tmp_path / "broken.pth")
    Path(cfg.train.init_checkpoint).write_text("no weights")
    for run in (do_train, do_eval_only):
        with pytest.raises(SetupError, match=r"broken\.pth"):
            run(cfg)
        files = {path.name for path in Path(cfg.train.output_dir).iterdir()}
        assert files <= {"inference"}


def test_an_evaluation_keeps_the_config_of_the_run_in_its_folder(cfg: DictConfig) -> None:
    cfg.train.max_iter = 1
    do_train(cfg)
    config = Path(cfg.train.output_dir, "config.yaml")
    before = config.read_text()
    cfg.train.init_checkpoint = f"{cfg.train.output_dir}/model_final.pth"
    do_eval_only(cfg)
    assert config.read_text() == before
    evaluated = [row for row in metrics_of(cfg) if "bbox/AP" in row]
    assert [row["iteration"] for row in evaluated] == [1, 1]


def test_known_warnings_are_silent_and_others_are_not(cfg: DictConfig) -> None:
    message = "torch.meshgrid: in an upcoming release, it will be required to pass the argument"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with RunLog(cfg.train.output_dir):
            for module in ("torch.functional", "mine"):
                warnings.warn_explicit(message, UserWarning, "a.py", 1, module=module)
        warnings.warn_explicit(message, UserWarning, "b.py", 1, module="torch.functional")
    assert [Path(one.filename).stem for one in caught] == ["a", "b"]
