"""Memory and time of the divergence from hidden states, in chunks, beside that of whole logits.

python benchmarks/divergence.py [--tokens 16384] [--output benchmarks/divergence.json]

A vocabulary of 151,936 (Qwen's), heads without bias for 256 hidden units, float32, forward and
backward to the student's hidden states and weight. ``extra`` is the largest resident memory of a
fresh process (``ru_maxrss``), less what was resident before the forward with all inputs, less the
divergences and the two gradients: what a chunk costs. Neither the number of tokens nor the hidden
size is in it: only the first divergence is measured at all tokens, the others at three chunks.
Whole logits are measured at few tokens only, beside chunks of the same tokens, in turns; they grow
with the tokens. Times are CPU times of the process.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from prefix_rft.core.chunked_divergence import CHUNK_BYTES, ChunkedDivergence
from prefix_rft.core.divergence import Divergence, divergence
from prefix_rft.runs.machine import describe_machine, git_state
from prefix_rft.support.writing import write_json

VOCABULARY, HIDDEN = 151_936, 256
SPECS = {
    "forward": Divergence(),
    "jensen-shannon": Divergence(0.5),
    "jensen-shannon, entries capped": Divergence(0.5, cap=0.05, cap_level="entry"),
    "jensen-shannon, the student's top 100 and tail": Divergence(0.5, "student"),
}


def resident() -> int:
    """Bytes of this process in memory (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def measure(form: str, name: str, tokens: int) -> dict[str, float]:
    """Extra bytes and CPU seconds of a forward and backward pass in this process."""
    torch.manual_seed(0)
    hidden, other = (torch.randn(tokens, HIDDEN) for _ in range(2))
    weight, teacher = (torch.randn(VOCABULARY, HIDDEN) / HIDDEN**0.5 for _ in range(2))
    for learnt in (hidden, weight):
        learnt.requires_grad_()
    upstream = torch.ones(tokens)
    (hidden[:8] @ weight.detach()[:8].T).sum().backward()  # work space of BLAS
    hidden.grad = None
    before, start = resident(), time.process_time()
    if form == "chunked":
        found = ChunkedDivergence.apply(hidden, weight, None, other, teacher, None, SPECS[name])
    else:
        found = divergence(hidden @ weight.T, other @ teacher.T, SPECS[name])
    assert isinstance(found, torch.Tensor)
    found.backward(upstream)
    seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    results = 4 * (found.numel() + hidden.numel() + weight.numel())
    return {"extra_bytes": peak - before - results, "seconds": seconds}


def fresh(form: str, name: str, tokens: int) -> dict[str, float]:
    """The same in a process of its own, whose peak is of nothing else."""
    command = [sys.executable, __file__, "--one", form, "--name", name, "--tokens", str(tokens)]
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    found = json.loads(done.stdout)
    print(f"{form}, {name}, {tokens} tokens: {found}", flush=True)
    return found


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokens", type=int, default=16_384)
    parser.add_argument("--others", type=int, default=660, help="tokens of the other divergences")
    parser.add_argument("--beside", type=int, default=440, help="tokens of both forms")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("divergence.json"))
    parser.add_argument("--one", choices=["chunked", "dense"], help=argparse.SUPPRESS)
    parser.add_argument("--name", choices=list(SPECS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one, args.name, args.tokens)))
        return
    chunks = {}
    for i, name in enumerate(SPECS):
        tokens = args.tokens if i == 0 else args.others
        chunks[name] = {"tokens": tokens, **fresh("chunked", name, tokens)}
    both = {}
    for name in SPECS:
        turns = [{f: fresh(f, name, args.beside) for f in ("chunked", "dense")}
                 for _ in range(args.rounds)]  # fmt: skip
        ratios = [t["chunked"]["seconds"] / t["dense"]["seconds"] for t in turns]
        both[name] = {
            "extra_bytes": {f: max(t[f]["extra_bytes"] for t in turns) for f in turns[0]},
            "seconds_chunked_over_dense": {
                "median": round(statistics.median(ratios), 3),
                "min": round(min(ratios), 3),
                "max": round(max(ratios), 3),
            },
        }
    write_json(
        args.output,
        {
            "command": "python benchmarks/divergence.py",
            "machine": {**describe_machine(), "threads": 1},
            "git": git_state(),
            "vocabulary": VOCABULARY,
            "hidden": HIDDEN,
            "tokens_of_a_chunk": CHUNK_BYTES // (8 * VOCABULARY),
            "chunked": chunks,
            "beside": {"tokens": args.beside, "rounds": args.rounds, "divergences": both},
        },
    )


if __name__ == "__main__":
    main()
