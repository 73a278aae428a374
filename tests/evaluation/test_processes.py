"""Shares of several processes: everything once, nothing twice."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lumitok.errors import LumitokError
from lumitok.evaluation import processes

SCRIPT = """
from pathlib import Path
from lumitok.errors import LumitokError
from lumitok.evaluation.processes import gather, here, is_main, share, together

mine = list(share(5))
everyone = gather(mine)
def work():
    if not is_main():
        raise LumitokError("the second one failed")
try:
    together(work)
    caught = "nothing"
except LumitokError as error:
    caught = str(error)
rank = here().process_index
Path(f"{OUT}/{rank}.txt").write_text(f"{mine} {everyone} {is_main()} {caught}")
"""


class At:
    def __init__(self, index: int, count: int) -> None:
        self.process_index, self.num_processes = index, count


@pytest.mark.parametrize(("items", "count"), [(0, 3), (2, 3), (7, 3), (9, 3), (5, 1)])
def test_shares_cover_everything_once_in_order(
    items: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares = []
    for index in range(count):
        monkeypatch.setattr(processes, "here", lambda index=index: At(index, count))
        shares.append(processes.share(items))
    assert [item for share in shares for item in share] == list(range(items))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_one_process_is_the_simplest_case() -> None:
    assert processes.gather(["a"]) == ["a"]
    assert processes.is_main()
    assert processes.together(lambda: 3) == [3]
    with pytest.raises(LumitokError, match="no"):
        processes.together(_fail)


def _fail() -> None:
    raise LumitokError("no")


def test_two_processes_started_by_torchrun_find_each_other(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.replace("{OUT}", str(tmp_path)))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*launch, str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    said = [(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)]
    assert said[0] == "[0, 1, 2] [0, 1, 2, 3, 4] True the second one failed"
    assert said[1] == "[3, 4] [0, 1, 2, 3, 4] False the second one failed"
