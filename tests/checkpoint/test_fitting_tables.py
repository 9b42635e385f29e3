from types import ModuleType

import pytest
import torch

from vitadapter.checkpoint import convert_beit, resize_relative_position_bias_table

CASES = ["det_14_56", "det_shared_14_28", "seg_640", "seg_512_shared"]
TABLE = "relative_position_bias_table"


@pytest.mark.parametrize("name", CASES)
def test_tables_are_those_of_the_official_loader(golden: ModuleType, name: str) -> None:
    meta, _, arrays = golden.load(golden.path("load_beit_rel_pos"))
    case = next(case for case in meta["cases"] if case["name"] == name)
    start = f"{name}_in_"
    state = {
        key.removeprefix(start): torch.from_numpy(array)
        for key, array in arrays.items()
        if key.startswith(start)
    }
    assert len(state) == (1 if case["shared"] else case["args"]["depth"])
    state["patch_embed.proj.weight"] = torch.zeros(1)
    for block in range(case["args"]["depth"]):
        state[f"blocks.{block}.attn.qkv.weight"] = torch.zeros(1)
        state[f"blocks.{block}.attn.q_bias"] = torch.zeros(1)
    converted = convert_beit(state).tensors
    for key, (rows, heads) in case["outputs"].items():
        table = resize_relative_position_bias_table(converted[key], rows)
        assert table.shape == (rows, heads)
        stride = int(arrays[f"{name}_stride_{key}"])
        expected = torch.from_numpy(arrays[f"{name}_out_{key}"])
        torch.testing.assert_close(table.flatten()[::stride], expected, rtol=0, atol=1e-6)
        abs_sum = table.double().abs().sum().item()
        assert abs_sum == pytest.approx(arrays[f"{name}_stats_{key}"][2], rel=1e-6)
    assert sum(key.endswith(TABLE) for key in converted) == len(case["outputs"])


def test_same_grid_keeps_the_values() -> None:
    table = torch.randn(732, 3)
    torch.testing.assert_close(resize_relative_position_bias_table(table, 732), table)
    without_cls = resize_relative_position_bias_table(table, 729)
    torch.testing.assert_close(without_cls, table[:729], rtol=0, atol=0)
    # An own tensor: the converted file's would be changed by training.
    assert without_cls.data_ptr() != table.data_ptr()


@pytest.mark.parametrize("rows", [228, 3484, 12324])
def test_rows_of_the_class_token_stay(rows: int) -> None:
    table = torch.randn(732, 2)
    resized = resize_relative_position_bias_table(table, rows)
    assert resized.shape == (rows, 2)
    torch.testing.assert_close(resized[-3:], table[-3:], rtol=0, atol=0)


def test_type_is_kept() -> None:
    resized = resize_relative_position_bias_table(torch.randn(28, 2).half(), 49)
    assert resized.dtype == torch.float16


@pytest.mark.parametrize("rows", [0, -1, 2, 10, 288, 730, 784])
def test_rows_of_no_square_grid_are_refused(rows: int) -> None:
    table = torch.randn(732, 2)
    with pytest.raises(ValueError, match=rf"\(2g - 1\)\^2 rows.*got {rows}$"):
        resize_relative_position_bias_table(table, rows)


def test_a_rectangular_table_is_refused() -> None:
    with pytest.raises(ValueError, match=r"got 288$"):
        resize_relative_position_bias_table(torch.zeros(288, 2), 729)


def test_missing_rows_of_a_class_token_are_refused() -> None:
    with pytest.raises(ValueError, match=r"729 rows has none for the class token.*3972"):
        resize_relative_position_bias_table(torch.zeros(729, 2), 3972)
