"""What is said of runs that are under way."""

import json
from pathlib import Path

from compare_records import make_board

from prefix_rft.compare.runner import progress
from prefix_rft.runs.folder import append_metrics


def test_progress(tmp_path: Path) -> None:
    board = make_board(tmp_path, {"arms": {"rl": {"method": "dr_grpo"}}})
    job = board.job(board.comparison.arms[0], 0)
    assert progress(job) == "starting"
    job.folder.mkdir(parents=True)
    for step in (1, 2, 3):
        append_metrics(job.folder, step, {f"metric/{i}": 1 / 3 for i in range(400)})
    with (job.folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 4})[:-4])  # half a line
    assert progress(job) == "step 3"
    (job.folder / "eval").mkdir()
    assert progress(job) == "evaluating"
