"""`train.report`: the report that training and evaluation end with, from Python too."""

from pathlib import Path

import pytest
from evaluated_runs import read_report
from omegaconf import DictConfig

from vitadapter.engine.overrides import apply_overrides
from vitadapter.engine.run_checks import SetupError
from vitadapter.engine.run_report import final_report
from vitadapter.engine.trainer import do_eval_only, do_train

pytestmark = pytest.mark.usefixtures("restored_logging")


def last_line(folder: Path) -> str:
    return (folder / "log.txt").read_text().splitlines()[-1]


def test_training_and_evaluation_end_with_it(cfg: DictConfig, tmp_path: Path) -> None:
    trained, evaluated = Path(cfg.train.output_dir), tmp_path / "evaluated"
    cfg.train.update(max_iter=1, report=True)
    do_train(cfg)
    assert f"report {trained}/report/index.html" in last_line(trained)
    cfg.train.update(init_checkpoint=f"{trained}/model_final.pth", output_dir=str(evaluated))
    # Where the evaluator's results are is its own choice.
    cfg.dataloader.evaluator.output_dir = str(tmp_path / "results")
    do_eval_only(cfg)
    assert f"report {evaluated}/report/index.html" in last_line(evaluated)
    first, second = (read_report(run / "report/index.html") for run in (trained, evaluated))
    assert first["parts"] == second["parts"]
    assert first["curves"]
    assert second["curves"] is None


def test_a_report_that_cannot_be_written_costs_nothing_else(
    cfg: DictConfig, monkeypatch, caplog
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("vitadapter.report.write_report", fails)
    cfg.train.report = True
    assert final_report(cfg) is None
    assert "No report is written: no space left on device" in caplog.text


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("dataloader.evaluator=null", "must be one of coco_evaluator.* for a report, got none"),
        (
            "dataloader.evaluator._target_=vitadapter.evaluation.lvis.lvis_evaluator",
            "for a report, got lvis_evaluator",
        ),
        ("dataloader.evaluator._target_=no.such.thing", "for a report, got no.such.thing"),
        ("dataloader.evaluator.output_dir=null", "output_dir must be a folder for a report"),
    ],
)
@pytest.mark.parametrize("run", [do_train, do_eval_only])
def test_what_no_report_can_show_is_refused_at_the_start(
    cfg: DictConfig, override: str, message: str, run
) -> None:
    cfg = apply_overrides(cfg, ["train.report=True", override])
    with pytest.raises(SetupError, match=message):
        run(cfg)
    assert not Path(cfg.train.output_dir).exists()


def test_a_folder_with_other_files_is_refused_at_the_start(cfg: DictConfig) -> None:
    mine = Path(cfg.train.output_dir, "report", "thesis.tex")
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    cfg.train.report = True
    with pytest.raises(SetupError, match=r"has other files \(thesis\.tex\)"):
        do_train(cfg)
    assert mine.read_text() == "mine"
