import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from detectron2.utils.events import EventStorage, JSONWriter

from vitadapter.engine.scalars import MetricsWriter, ScalarKeeper, kept_rows
from vitadapter.engine.writers import WriterHook

NOTE = {"note": "written when training was stopped"}


def trained(iteration: int, **more: object) -> dict[str, object]:
    return {"iteration": iteration, "total_loss": 1.5, **more}


def result(iteration: int) -> dict[str, object]:
    return {"iteration": iteration, "bbox/AP": 2.5}


def write(folder: Path, rows: Sequence[dict | str]) -> Path:
    path = folder / "metrics.json"
    lines = [row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows]
    path.write_text("".join(lines))
    return path


@pytest.mark.parametrize(
    ("rows", "start", "kept", "last", "is_complete", "replaced_from"),
    [
        ([trained(3), trained(7), trained(11)], 10, [0, 1], 7, False, 8),
        ([trained(3), trained(7), trained(11)], 8, [0, 1], 7, True, 8),
        # Written because of a stop, before the evaluation.
        ([trained(3), trained(7, **NOTE)], 8, [0], 3, False, 4),
        # An evaluation that was written late, and one of the command line.
        ([trained(3), result(4), trained(7), result(7)], 6, [0, 1], 4, False, 5),
        ([trained(3), result(5)], 6, [0, 1], 5, False, 6),
        ([trained(3), '{"iteration": 7, "total'], 8, [0], 3, False, 4),
        ([trained(3), "a note of mine\n"], 8, [0, 1], 3, False, 4),
        ([], 8, [], -1, False, 8),
        # A run that left no checkpoint.
        ([trained(3), trained(7)], 0, [], -1, True, 0),
        ([result(0), result(90000), result(2), trained(3)], 0, [0, 1], -1, True, 0),
        ([result(0)], 0, [0], -1, True, None),
        ([], 0, [], -1, True, None),
    ],
)
def test_rows_that_are_not_written_again(
    tmp_path: Path,
    rows: list,
    start: int,
    kept: list[int],
    last: int,
    is_complete: bool,
    replaced_from: int | None,
) -> None:
    path = write(tmp_path, rows)
    found = kept_rows(path, start)
    lines = path.read_text().splitlines()
    assert found == ([lines[i] for i in kept], last, is_complete, replaced_from)


def test_the_result_of_a_finished_run_that_goes_on(tmp_path: Path) -> None:
    path = write(tmp_path, [trained(7), result(8)])
    assert len(kept_rows(path, 8, keeps_result=False).lines) == 1
    found = kept_rows(path, 8, keeps_result=True)
    assert (len(found.lines), found.last, found.replaced_from) == (2, 7, 9)


def put(storage: EventStorage, iterations: range) -> None:
    for storage.iter in iterations:
        storage.put_scalar("total_loss", (storage.iter * 7919) % 101)
        storage.put_scalar("lr", 1 / (storage.iter + 1), smoothing_hint=False)
        if storage.iter % 10 == 9:
            storage.put_scalar("bbox/AP", storage.iter, smoothing_hint=False)


def test_rows_are_those_of_detectron2(tmp_path: Path) -> None:
    ours, theirs = MetricsWriter(tmp_path / "ours"), JSONWriter(str(tmp_path / "theirs"))
    with EventStorage() as storage:
        for start in (0, 30, 60):
            put(storage, range(start, start + 25))
            ours.write()
            theirs.write()
            ours.write()
    theirs.close()
    rows = [
        [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        for name in ("ours", "theirs")
    ]
    assert rows[0] == sorted(rows[1], key=lambda row: row["iteration"])
    assert [row["iteration"] for row in rows[0]] == [19, 24, 49, 54, 79, 84]


@pytest.mark.parametrize("stop", [3, 10, 19, 20, 33, 41])
def test_rows_after_a_stop_are_those_of_a_run_without(tmp_path: Path, stop: int) -> None:
    """Also smoothing goes on; the writer is called every 20 iterations."""

    def run(path: Path, keeper: ScalarKeeper, start: int, end: int) -> dict:
        writer = MetricsWriter(path, kept_rows(path, start))
        with EventStorage(start) as storage:
            keeper.trainer = SimpleNamespace(storage=storage, iter=start)
            keeper.before_train()
            for iteration in range(start, end):
                put(storage, range(iteration, iteration + 1))
                keeper.trainer.iter = iteration
                if iteration % 20 == 19:
                    writer.write()
            storage.put_scalar("of_the_next", 1.0, cur_iter=end)
            return json.loads(json.dumps(keeper.state_dict()))

    run(tmp_path / "whole", ScalarKeeper(), 0, 50)
    state = run(tmp_path / "stopped", ScalarKeeper(), 0, stop)
    assert "of_the_next" not in state
    # The run went on from there, until it was killed.
    went_on, goes_on = ScalarKeeper(), ScalarKeeper()
    for keeper in (went_on, goes_on):
        keeper.load_state_dict(state)
        assert keeper.state_dict() == state
    run(tmp_path / "stopped", went_on, stop, 45)
    run(tmp_path / "stopped", goes_on, stop, 50)
    assert (tmp_path / "stopped").read_text() == (tmp_path / "whole").read_text()
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("evaluated", [9, 11])
def test_checkpoints_after_a_kill_in_an_evaluation_are_equal(
    tmp_path: Path, evaluated: int
) -> None:
    """The evaluation of an iteration comes after its checkpoint, and is written, and then lost."""

    def run(path: Path, keeper: ScalarKeeper, start: int, stop: int) -> dict[int, dict]:
        """Checkpoints by iteration."""
        kept = kept_rows(path, start)
        hook = WriterHook([MetricsWriter(path, kept)], period=4)
        keeper.last_written = hook.last_written
        with EventStorage(start) as storage:
            trainer = SimpleNamespace(storage=storage, iter=start, max_iter=99)
            keeper.trainer = hook.trainer = trainer

            def evaluate() -> None:
                storage.put_scalar("bbox/AP", 9.5, smoothing_hint=False, cur_iter=evaluated)

            keeper.before_train()
            if start > evaluated and not kept.is_complete:
                evaluate()
            saved = {}
            for trainer.iter in range(start, stop):
                put(storage, range(trainer.iter, trainer.iter + 1))
                saved[trainer.iter] = json.loads(json.dumps(keeper.state_dict()))
                if trainer.iter == evaluated:
                    evaluate()
                hook.after_step()
            return saved

    whole = run(tmp_path / "whole", ScalarKeeper(), 0, 20)
    state = run(tmp_path / "killed", ScalarKeeper(), 0, 12)[evaluated]
    assert "bbox/AP" in (tmp_path / "killed").read_text()
    keeper = ScalarKeeper()
    keeper.load_state_dict(state)
    for iteration, found in run(tmp_path / "killed", keeper, evaluated + 1, 20).items():
        assert found == whole[iteration], iteration
    assert (tmp_path / "killed").read_text() == (tmp_path / "whole").read_text()


def test_nothing_is_lost_before_the_first_row(tmp_path: Path) -> None:
    path = write(tmp_path, [trained(3), trained(7)])
    before = path.read_text()
    writer = MetricsWriter(path, kept_rows(path, 5))
    with EventStorage(5) as storage:
        writer.write()
        assert path.read_text() == before
        put(storage, range(5, 6))
        writer.write()
    assert [json.loads(line)["iteration"] for line in path.read_text().splitlines()] == [3, 5]


@pytest.mark.parametrize("entry", [[], [True, 3.0], [1, [3.0, 1]], [True, ["a", 1]], None])
def test_a_damaged_scalar(entry: object) -> None:
    with pytest.raises(ValueError, match="the scalar lr of the checkpoint is damaged"):
        ScalarKeeper().load_state_dict({"lr": entry})
