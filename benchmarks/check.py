"""Time and memory of `prefix-rft check` on a large parquet file, in the shape that LUFFY reads.

python benchmarks/check.py [--rows 50000] [--tokens 500] [--output benchmarks/check.json]

The file is made here: math problems with worked solutions of about `--tokens` tokens, a byte-level
BPE tokenizer of 8,000 tokens with a chat template, and a tiny model. Peak memory is that of the
whole process tree, sampled ten times a second, as resident pages (shared ones counted once).
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from prefix_rft.runs.folder import describe_machine, git_state

WORDS = (
    "so we have that the sum of both sides is equal to and then it follows from the first line "
    "let us compute again wait this number must be even because each term divides the product "
    "therefore if we set x to be the smaller root then by the rule above consider now the case "
    "where triangle angle square circle radius area probability count ways choose between next"
).split()
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SYSTEM = "Think first between <think> and </think>, then give the answer in \\boxed{}. " * 8


def solution(rng: random.Random, tokens: int, answer: int) -> str:
    """A worked solution of about so many tokens."""
    words = []
    for _ in range(max(4, int(tokens / 1.35))):
        if rng.random() < 0.12:
            a, b = rng.randint(2, 99), rng.randint(2, 99)
            words.append(f"${a} \\cdot {b} = {a * b}$")
        else:
            words.append(rng.choice(WORDS))
    return f"<think>\n{' '.join(words)}\n</think>\n\nThe answer is $\\boxed{{{answer}}}$."


def write(folder: Path, rows: int, tokens: int) -> None:
    """train.parquet, base/ and recipe.yaml."""
    rng = random.Random(0)
    schema = None
    writer: Any = None
    texts = [solution(rng, 300, 1) for _ in range(500)]
    for start in range(0, rows, 1000):
        table: dict[str, list[Any]] = {"data_source": [], "prompt": [], "target": [], "ability": []}
        table |= {"reward_model": [], "extra_info": []}
        for index in range(start, min(rows, start + 1000)):
            a, b = rng.randint(2, 9999), rng.randint(2, 9999)
            length = int(rng.lognormvariate(0, 0.5) * tokens * 0.88)
            user = {"role": "user", "content": f"What is {a} + {b}? Problem {index}."}
            table["prompt"].append([{"role": "system", "content": SYSTEM}, user])
            text = solution(rng, length, a + b)
            table["target"].append([{"role": "assistant", "content": text}])
            table["data_source"].append("made")
            table["ability"].append("math")
            table["reward_model"].append({"style": "rule", "ground_truth": str(a + b)})
            table["extra_info"].append({"split": "train", "index": index})
        batch = pa.table(table, schema=schema)
        if writer is None:
            schema = batch.schema
            writer = pq.ParquetWriter(folder / "train.parquet", schema)
        writer.write_table(batch)
    writer.close()

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=8000, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    tokenizer.chat_template = TEMPLATE
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=32768,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    recipe = "model: base\ntrain_data: train.parquet\nreward: math\nmax_completion_length: 8192\n"
    (folder / "recipe.yaml").write_text(recipe)


def watch(process: psutil.Process, peak: dict[str, float], done: threading.Event) -> None:
    """Keep the largest sum of proportional memory over the process and its children."""
    while not done.wait(0.1):
        total = 0
        for one in [process, *process.children(recursive=True)]:
            try:
                total += one.memory_full_info().pss
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                continue
        peak["bytes"] = max(peak["bytes"], total)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--tokens", type=int, nargs="+", default=[500, 2000])
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    results = []
    for tokens in args.tokens:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write(folder, args.rows, tokens)
            size = (folder / "train.parquet").stat().st_size
            command = [sys.executable, "-m", "prefix_rft.cli", "check", str(folder / "recipe.yaml")]
            start, peak, done = time.monotonic(), {"bytes": 0.0}, threading.Event()
            run = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            thread = threading.Thread(target=watch, args=(psutil.Process(run.pid), peak, done))
            thread.start()
            out, _ = run.communicate()
            seconds = time.monotonic() - start
            done.set()
            thread.join()
            print(out)
            result = {
                "rows": args.rows,
                "mean_tokens": tokens,
                "parquet_MB": round(size / 1e6),
                "exit_code": run.returncode,
                "seconds": round(seconds, 1),
                "peak_MB": round(peak["bytes"] / 1e6),
            }
            print(result, flush=True)
            results.append(result)
    if args.output:
        found = {"machine": describe_machine(), "git": git_state(), "results": results}
        args.output.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
