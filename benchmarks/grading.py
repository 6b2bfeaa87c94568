"""Throughput of the grader pool against math-verify called directly, on 10,000 math answers.

python benchmarks/grading.py [--rounds 3] [--output benchmarks/grading.json]

The answers belong to 1,250 gold answers, eight to each, as rollouts of a step do: integers,
fractions, roots and intervals, half of them right, behind some hundred words. Direct calls and
pools take turns; each round is a fresh process, so that no cache of math-verify's is warm.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from pathlib import Path

from prefix_rft.runs.folder import describe_machine, git_state

WORDS = "so we have that the sum of both sides is equal to and then it follows from this".split()


def answer(rng: random.Random) -> str:
    a, b = rng.randint(2, 99), rng.randint(2, 99)
    forms = (f"{a * b}", f"\\frac{{{a}}}{{{b}}}", f"{a}\\sqrt{{{b}}}", f"[{a}, {a + b})")
    return rng.choice(forms)


def examples(number: int) -> list[tuple[str, str]]:
    """Completions and gold answers."""
    rng = random.Random(0)
    found = []
    for _ in range(number // 8):
        gold = answer(rng)
        for _ in range(8):
            text = " ".join(rng.choice(WORDS) for _ in range(100))
            said = gold if rng.random() < 0.5 else answer(rng)
            found.append((f"{text} The answer is $\\boxed{{{said}}}$.", gold))
    return found


def direct(items: list[tuple[str, str]]) -> int:
    from math_verify import parse, verify

    return sum(verify(parse(f"\\boxed{{{gold}}}"), parse(text)) for text, gold in items)


def pooled(items: list[tuple[str, str]], workers: int) -> int:
    from prefix_rft.rewards import GraderPool

    pool = GraderPool("prefix_rft.rewards.math:math", workers=workers)
    verdicts = pool.grade([{"completions": text, "answer": gold} for text, gold in items])
    pool.close()
    return sum(v.status == "correct" for v in verdicts)


def one(kind: str, number: int) -> None:
    """A measurement in this process, printed as JSON; imports and starts of processes count."""
    items = examples(number)
    start = time.perf_counter()
    correct = direct(items) if kind == "direct" else pooled(items, int(kind))
    seconds = time.perf_counter() - start
    print(json.dumps({"kind": kind, "per_second": number / seconds, "correct": correct}))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--number", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    if args.one:
        one(args.one, args.number)
        return
    rounds = []
    for _ in range(args.rounds):
        found = {}
        for kind in ("direct", "1", "2"):
            command = [sys.executable, __file__, "--one", kind, "--number", str(args.number)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            result = json.loads(done.stdout)
            found[kind] = result
            print(result, flush=True)
        assert len({r["correct"] for r in found.values()}) == 1
        ratios = {k: found[k]["per_second"] / found["direct"]["per_second"] for k in ("1", "2")}
        rounds.append({"rates": {k: round(r["per_second"]) for k, r in found.items()}, **ratios})
        print({k: round(v, 2) for k, v in ratios.items()}, flush=True)
    if args.output:
        found = {"machine": describe_machine(), "git": git_state(), "rounds": rounds}
        args.output.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
