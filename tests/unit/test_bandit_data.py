"""Logged rounds in the layout of the Open Bandit Dataset."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from steepest.errors import UsageError
from steepest.evaluation.bandit_data import read_rounds

HEADER = ",timestamp,item_id,position,click,propensity_score,user_feature_0,user-item_affinity_0"
ROWS = [
    "0,2019-11-24 00:03:13.442536+00:00,2,3,0,0.25,cef33,0.0",
    "1,2019-11-24 00:01:36.705207+00:00,0,1,1,0.5,cef33,1.0",
    "2,2019-11-24 00:02:39.519963+00:00,1,2,0,1.0,81ce1,0.0",
]


def write(folder: Path, rows: list[str], header: str = HEADER, items: int = 4) -> Path:
    place = folder / "random" / "men"
    place.mkdir(parents=True, exist_ok=True)
    (place / "men.csv").write_text("\n".join([header, *rows]) + "\n")
    (place / "item_context.csv").write_text(
        "\n".join([",item_id,item_feature_0", *(f"{i},{i},0" for i in range(items))])
    )
    return folder


def test_rounds_are_read_in_the_order_of_time(tmp_path: Path) -> None:
    rounds = read_rounds(write(tmp_path, ROWS), "random", "men")
    assert rounds.item.tolist() == [0, 1, 2]
    assert rounds.position.tolist() == [0, 1, 2]
    assert rounds.click.tolist() == [1.0, 0.0, 0.0]
    assert rounds.click.dtype == rounds.log_prob.dtype == torch.float64
    torch.testing.assert_close(rounds.log_prob.exp(), torch.tensor([0.5, 1.0, 0.25], dtype=torch.float64))
    assert (rounds.num_items, rounds.num_positions) == (4, 3)
    mixed = "click,position,propensity_score,item_id,timestamp"
    again = read_rounds(write(tmp_path, ["1,2,0.125,3,2019"], mixed), "random", "men")
    assert (again.item.item(), again.position.item(), again.click.item()) == (3, 1, 1.0)
    assert again.log_prob.exp().item() == pytest.approx(0.125)


BROKEN = {
    "lacks click, propensity_score": ("x,timestamp,item_id,position", ["0,2019,1,1"]),
    "a row that is no round": (HEADER, [*ROWS, "3,2019-11-24,one,1,0,0.5,a,0"]),
    "holds no rounds": (HEADER, []),
    "item_id that is wrong; expected 0 to 3": (HEADER, ["0,2019,4,1,0,0.5,a,0"]),
    "position that is wrong; expected 1, 2": (HEADER, ["0,2019,1,0,0,0.5,a,0"]),
    "click that is wrong; expected 0 or 1": (HEADER, ["0,2019,1,1,2,0.5,a,0"]),
    "propensity_score that is wrong": (HEADER, ["0,2019,1,1,0,0.0,a,0"]),
    "expected a probability above 0": (HEADER, ["0,2019,1,1,0,1.5,a,0"]),
}


@pytest.mark.parametrize("message", [*BROKEN, "has a row that is no round"])
def test_files_that_hold_no_rounds_are_refused(tmp_path: Path, message: str) -> None:
    header, rows = BROKEN.get(message, (HEADER, ["0,2019,1"]))
    with pytest.raises(UsageError, match=message):
        read_rounds(write(tmp_path, rows, header), "random", "men")
    for path in ("item_context.csv", "men.csv"):
        (tmp_path / "random" / "men" / path).unlink()
        with pytest.raises(UsageError, match=r"cannot be read.*Give the folder that holds random/ and bts/"):
            read_rounds(tmp_path, "random", "men")
