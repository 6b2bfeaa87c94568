"""Time and size of the report of a run of 1,000 steps, and the time a browser takes to open it.

python benchmarks/report.py --output benchmarks/report.json    # needs chromium
"""

import argparse
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/report"))

from report_runs import EVALUATION, metrics_of, row, words, write_run

from prefix_rft.report import write_report
from prefix_rft.runs.folder import describe_machine, git_state, write_json

STEPS, GROUPS, ROWS, WORDS = 1000, 16, 8, 150
METRICS = 60


def make(folder: Path) -> Path:
    """A run with every rollout logged: 128,000 rows of 150 words."""
    rng = random.Random(0)
    some = [[rng.randrange(3) for _ in range(WORDS)] for _ in range(50)]

    def one(step: int, group: int, number: int) -> dict:
        ids = rng.choice(some)
        hybrid = {"prefix_length": 40, "kept": list(range(0, 40, 5))} if number == 0 else {}
        text = " ".join("abc"[i] for i in ids)
        reward = float(rng.random() < step / STEPS)
        return row(group, number, completion_ids=ids, text=text, reward=reward, **hybrid)

    steps = [[one(s, g, i) for g in range(GROUPS) for i in range(ROWS)] for s in range(STEPS)]
    more = {f"extra/{k}" for k in range(METRICS)}
    metrics = [{**m, **{name: rng.random() for name in sorted(more)}} for m in metrics_of(STEPS)]
    return write_run(folder, metrics, steps, words(), EVALUATION)


def opening_seconds(page: Path, browser: str) -> float:
    """From setting a frame's source to its load event, in a browser that has just started."""
    frame = page.parent / "frame.html"
    frame.write_text(
        "<!doctype html><title>-</title><iframe style='width:1280px;height:900px'></iframe><script>"
        "const f = document.querySelector('iframe'), t = performance.now();"
        "f.onload = () => { document.title = 'ms ' + (performance.now() - t) };"
        f"f.src = '{page.name}';</script>"
    )
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    profile = f"--user-data-dir={page.parent / 'profile'}"
    command = [browser, *flags, profile, frame.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    found = re.search(r"<title>ms ([\d.]+)</title>", dom)
    if found is None:
        raise SystemExit("the browser did not load the report")
    return float(found[1]) / 1000


def main() -> None:
    """Measure, write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        raise SystemExit("no chromium")
    with tempfile.TemporaryDirectory() as name:
        run = make(Path(name) / "run")
        started = time.monotonic()
        page = write_report([str(run)])
        seconds = time.monotonic() - started
        result = {
            "command": "python benchmarks/report.py",
            **describe_machine(),
            "git": git_state(),
            "steps": STEPS,
            "rollouts": STEPS * GROUPS * ROWS,
            "write_seconds": round(seconds, 2),
            "megabytes": round(page.stat().st_size / 1e6, 3),
            "open_seconds": round(min(opening_seconds(page, browser) for _ in range(3)), 3),
        }
    print(result)
    if args.output:
        write_json(args.output, result)


if __name__ == "__main__":
    main()
