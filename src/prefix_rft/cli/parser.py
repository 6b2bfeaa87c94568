"""The command line of ``prefix-rft``: every command and option, as one list."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from prefix_rft import __version__
from prefix_rft.cli import continual, demonstrate, influence, rollouts, task
from prefix_rft.cli.numbers import sampling_options
from prefix_rft.rewards.registry import BUILT_IN

EXAMPLES = """examples:
  prefix-rft task countdown data/countdown      write a task: rows, base model, recipe
  prefix-rft task arithmetic data/arithmetic    one with a real model, SmolLM2-135M
  prefix-rft check data/countdown/recipe.yaml   every row against its template, grader and lengths
  prefix-rft train data/countdown/recipe.yaml   train, evaluate, leave runs/countdown behind
  prefix-rft train RECIPE.yaml method=dr_grpo learning_rate=2e-4 method.epsilon_high=0.28
  prefix-rft eval runs/countdown/model --recipe data/countdown/recipe.yaml --samples 8
  prefix-rft compare data/countdown/compare/quick.yaml   several methods, seeds, intervals
  prefix-rft report runs/countdown              one HTML file: curves, groups, prefixes, settings
  prefix-rft methods prefix_rft                 one method's streams, rows and defaults
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="prefix-rft",
        description="Post-train language models on demonstrations and verifiable rewards.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--version", action="version", version=f"prefix-rft {__version__}")
    commands = p.add_subparsers(dest="command", required=True, metavar="COMMAND")

    train = commands.add_parser(
        "train",
        help="train as a recipe says",
        description="Train as a recipe says, then evaluate base and trained model on eval_data.",
        epilog="examples: prefix-rft train recipe.yaml max_steps=100 method.entropy_keep=0.5; "
        "prefix-rft train recipe.yaml --resume",
    )
    train.add_argument("recipe", metavar="RECIPE.yaml")
    train.add_argument("overrides", nargs="*", metavar="key=value", help="override recipe keys")
    train.add_argument(
        "--resume",
        action="store_true",
        help="go on with the newest run of the recipe's name from its newest whole checkpoint; "
        "where there is none, begin",
    )

    diffusion = commands.add_parser(
        "diffusion",
        help="train a diffusion model on winners alone (SSPO), on pairs (DPO) or by SFT",
        description="SSPO for models of diffusers: each winner is set against a sample of an older "
        "checkpoint, which is pushed away or pulled up by who denoises the winner better. Also "
        "Diffusion-DPO and SFT. Needs the extra 'diffusion'.",
        epilog="examples:\n"
        "  prefix-rft diffusion recipe.yaml                 the report has a grid of pictures\n"
        "  prefix-rft diffusion recipe.yaml method=sft learning_rate=1e-5\n"
        "  prefix-rft diffusion recipe.yaml --resume        ends with the same bits\n"
        "the least recipe: model (a folder of diffusers), train_data (rows with image:), "
        "learning_rate",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    diffusion.add_argument("recipe", metavar="RECIPE.yaml")
    diffusion.add_argument("overrides", nargs="*", metavar="key=value", help="override recipe keys")
    diffusion.add_argument(
        "--resume",
        action="store_true",
        help="go on with the newest run of the recipe's name from its newest whole checkpoint; "
        "where there is none, begin",
    )

    check = commands.add_parser(
        "check",
        help="say what is wrong with a recipe and its data before any training",
        description="Every row, gold answer and demonstration against its own grader, template "
        "and lengths; batch arithmetic, prefix schedule, estimated memory. Exit code 1 if "
        "training would waste time.",
        epilog="example: prefix-rft check recipe.yaml max_completion_length=2048 --limit 1000",
    )
    check.add_argument("recipe", metavar="RECIPE.yaml")
    check.add_argument("overrides", nargs="*", metavar="key=value", help="override recipe keys")
    check.add_argument("--limit", type=int, metavar="ROWS", help="look at the first rows only")

    inspect = commands.add_parser(
        "inspect",
        help="show one example token by token, coloured by role",
        description="One row of a group: prompt, prefix, continuation, EOS, and what of it is "
        "trained. With --model, the prefix tokens of highest entropy and a sampled continuation. "
        "With --teacher, what a teacher is shown beside the policy's prompt, which rows it does "
        "not teach, and the solve rate of the start model behind the teacher's prompt less "
        "without it: where that gap is near 0, do not train.",
        epilog="examples:\n"
        "  prefix-rft inspect recipe.yaml --row 3 --step 100 --model runs/x/model\n"
        "  prefix-rft inspect recipe.yaml --teacher                 64 examples, a group of each\n"
        "  prefix-rft inspect recipe.yaml --teacher --examples 0    the prompts alone\n"
        "  prefix-rft inspect recipe.yaml --teacher method.control=unrelated",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    inspect.add_argument("recipe", metavar="RECIPE.yaml")
    inspect.add_argument("overrides", nargs="*", metavar="key=value", help="override recipe keys")
    inspect.add_argument("--row", type=int, default=1, help="of train_data, from 1 (default: 1)")
    inspect.add_argument("--step", type=int, default=0, help="decides the prefix (default: 0)")
    inspect.add_argument("--model", metavar="MODEL", help="a model folder or a Hub name")
    inspect.add_argument("--ids", action="store_true", help="print token ids too")
    inspect.add_argument("--teacher", action="store_true", help="show rows of the teachers")
    inspect.add_argument(
        "--examples", type=int, metavar="N", help="to sample for a teacher's gap (default: 64)"
    )
    inspect.add_argument(
        "--samples", type=int, metavar="K", help="of each of them (default: as a group has rows)"
    )

    convert = commands.add_parser(
        "convert",
        help="write a public dataset as rows of this library",
        description="Write a public dataset as jsonl with prompt, demonstration and answer.",
        epilog="example: prefix-rft convert gsm8k openai/gsm8k gsm8k.jsonl --subset main",
    )
    convert.add_argument("name", help="gsm8k, math, openr1-math-46k or openr1-math-220k")
    convert.add_argument("source", metavar="SOURCE", help="file, folder or dataset name")
    convert.add_argument("output", metavar="OUTPUT.jsonl")
    convert.add_argument("--subset", help="of a dataset on the Hub")
    convert.add_argument("--split", help="of a dataset on the Hub (default: train)")

    collect = commands.add_parser(
        "collect",
        help="write a model's own right answers to train_data as demonstrations",
        description="Sample the recipe's model on its train_data, never from a prefix, and write "
        "the rows that it solves with its own answers as demonstrations (PrefixRL, rejection-"
        "sampled SFT). The same command goes on where it was interrupted.",
        epilog="examples:\n"
        "  prefix-rft collect recipe.yaml --output own.jsonl --samples 64\n"
        "  prefix-rft train recipe.yaml train_data=own.jsonl method=prefixrl",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    collect.add_argument("recipe", metavar="RECIPE.yaml")
    collect.add_argument("overrides", nargs="*", metavar="key=value", help="override recipe keys")
    collect.add_argument("--output", required=True, metavar="FILE.jsonl", help="the rows to write")
    sampling_options(collect, 64)
    collect.add_argument("--temperature", type=float, default=1.0, metavar="T", help="above 0")

    evaluate = commands.add_parser(
        "eval",
        help="avg@k, pass@k and maj@k of a model on held-out problems",
        description="Sample k answers to each problem, never from a prefix, grade and store them. "
        "The same command goes on where it was interrupted.",
        epilog="examples:\n"
        "  prefix-rft eval runs/countdown/model --recipe data/countdown/recipe.yaml\n"
        "  prefix-rft eval Qwen/Qwen3-0.6B-Base --data test.jsonl --data aime=aime24.jsonl \\\n"
        "      --reward math --samples 32 --by level\n"
        "  prefix-rft eval runs/countdown/model --base data/countdown/base \\\n"
        "      --forgetting data/countdown/forgetting.yaml",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    evaluate.add_argument("model", metavar="MODEL", help="a model folder or a Hub name")
    evaluate.add_argument(
        "--recipe", metavar="RECIPE.yaml", help="take eval_data, reward, columns, ... from there"
    )
    evaluate.add_argument(
        "--data", action="append", metavar="[NAME=]FILE", help="problems; may be given repeatedly"
    )
    evaluate.add_argument("--reward", help=f"{', '.join(BUILT_IN)}, or module:function")
    evaluate.add_argument(
        "--columns", action="append", metavar="NAME=COLUMN", help="as in a recipe"
    )
    evaluate.add_argument("--system-prompt", metavar="TEXT", help="as in a recipe")
    evaluate.add_argument("--limit", type=int, metavar="N", help="the first N problems only")
    evaluate.add_argument("--base", metavar="MODEL", help="a model to compare with, paired")
    evaluate.add_argument(
        "--forgetting", metavar="SUITE.yaml", help="tasks it was not trained on, against --base"
    )
    evaluate.add_argument("--samples", type=int, default=4, help="k (default: 4)")
    evaluate.add_argument(
        "--temperature",
        type=float,
        nargs="+",
        metavar="T",
        help="one or several; 0 is greedy, with one sample (default: 1.0 0.6 0)",
    )
    evaluate.add_argument(
        "--by", action="append", metavar="COLUMN", help="split the numbers by a column"
    )
    evaluate.add_argument("--max-completion-length", type=int, metavar="TOKENS")
    evaluate.add_argument("--batch-size", type=int, default=64, metavar="ROWS")
    evaluate.add_argument("--seed", type=int, default=0)
    evaluate.add_argument("--output", metavar="FOLDER", help="default: evals/NAME")

    advise = commands.add_parser(
        "advise",
        help="say before training whether RL can start, and what that speaks for",
        description="Sample the start model on rows of train_data, never from a prefix: the solved "
        "rows that a step can expect (lambda), groups without an advantage, the demonstrations' "
        "likelihood; then what the measured table supports, and where it ends.",
        epilog="examples:\n"
        "  prefix-rft advise recipe.yaml\n"
        "  prefix-rft advise recipe.yaml --sft-steps 200   also behind SFT, on a copy\n"
        "  prefix-rft advise recipe.yaml model=runs/sft/model --rows 100 --samples 64",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    advise.add_argument("recipe", metavar="RECIPE.yaml")
    advise.add_argument("overrides", nargs="*", metavar="key=value", help="override recipe keys")
    advise.add_argument(
        "--rows", type=int, default=100, help="of train_data, the first ones (default: 100)"
    )
    advise.add_argument(
        "--samples", type=int, metavar="K", help="of each row (default: 16, at least a group's)"
    )
    advise.add_argument(
        "--sft-steps", type=int, metavar="N", help="measure again behind so many steps of SFT"
    )
    advise.add_argument("--seed", type=int, default=0)
    advise.add_argument("--batch-size", type=int, default=64, help="rows sampled at once")
    advise.add_argument("--output", metavar="FOLDER", help="default: advice/NAME")

    compare = commands.add_parser(
        "compare",
        help="train several methods alike and say whether they differ",
        description="The same base, rows, budget and evaluator for every arm; several seeds; "
        "intervals over seeds and problems, and paired differences. The same command goes on "
        "where it was interrupted.",
        epilog="examples:\n"
        "  prefix-rft compare data/countdown/recipe.yaml --jobs 2\n"
        "  prefix-rft compare recipe.yaml --methods sft,sft+dr_grpo,dr_grpo,prefix_rft --seeds 5\n"
        "  prefix-rft compare recipe.yaml compare.controls=true --methods grpo,rlsd\n"
        "A+B is B from the model that A has left, at the compute of B alone. A recipe can have\n"
        "arms of its own under the key 'compare': recipe keys, start, match, sweep, and collect:\n"
        "own right answers that an arm samples first and trains on, at its own cost. With\n"
        "'controls: true' each arm with teachers is run with another example's context and with\n"
        "none, too, and the table says what remains of its gain without the demonstration.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    compare.add_argument("recipe", metavar="RECIPE.yaml")
    compare.add_argument("overrides", nargs="*", metavar="key=value", help="override recipe keys")
    compare.add_argument("--methods", metavar="A,B,...", help="arms or methods, in this order")
    compare.add_argument("--seeds", type=int, metavar="N", help="runs of each arm (default: 3)")
    compare.add_argument(
        "--sft-learning-rates", metavar="X,Y,...", help="of imitation methods, to choose from"
    )
    compare.add_argument("--jobs", type=int, default=1, help="runs at once (default: 1)")
    compare.add_argument("--output", metavar="FOLDER", help="default: comparisons/NAME")
    compare.add_argument("--only-table", action="store_true", help="run nothing more")

    report = commands.add_parser(
        "report",
        help="write one HTML file about one or several runs",
        description="Curves, schedule, samples, settings and environment of runs, in one HTML "
        "file that needs no network.",
        epilog="example: prefix-rft report runs/countdown runs/countdown-2 --output both.html",
    )
    report.add_argument("runs", nargs="+", metavar="RUN", help="run folders; several are overlaid")
    report.add_argument(
        "--output", metavar="FILE.html", help="default: report.html in the first run folder"
    )

    show = commands.add_parser(
        "show",
        help="page through the groups of a run in the terminal, worst first",
        description="Groups of rollouts with their verdicts, prefixes marked, worst first.",
        epilog="example: prefix-rft show runs/countdown --step 100-200 --verdict wrong --prefix 1-",
    )
    show.add_argument("run", metavar="RUN", help="a run folder")
    show.add_argument("--step", metavar="N or A-B", help="generations of these steps only")
    show.add_argument(
        "--verdict",
        help="groups with a row of this verdict, and those rows first: correct, wrong, "
        "'no answer', 'gold unparseable', timeout, error or skipped",
    )
    show.add_argument(
        "--prefix",
        metavar="N or A-B",
        help="groups with a prefix of so many tokens (1-: any, 0: none)",
    )
    show.add_argument("--best", action="store_true", help="best groups first")
    show.add_argument(
        "--limit",
        type=int,
        metavar="GROUPS",
        help="show the first groups only (default: all in a terminal, 20 elsewhere)",
    )
    show.add_argument("--full", action="store_true", help="do not cut long texts")

    merge = commands.add_parser(
        "merge",
        help="write an adapter and its base as one model",
        description="The model that an adapter (PEFT) makes of its base, with its tokenizer, as a "
        "folder that needs neither.",
        epilog="example: prefix-rft merge runs/countdown models/countdown",
    )
    merge.add_argument("adapter", metavar="ADAPTER", help="its folder or name, or a run folder")
    merge.add_argument("output", metavar="FOLDER", help="the new model's folder")
    merge.add_argument(
        "--dtype", help="float32, bfloat16 or float16 (default: as the base is stored)"
    )

    methods = commands.add_parser("methods", help="list the methods, or show one")
    methods.add_argument("name", nargs="?", metavar="NAME")

    task.add(commands)
    continual.add(commands)
    influence.add(commands)
    demonstrate.add(commands)
    rollouts.add(commands)
    return p


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments; ``key=value`` may stand before or behind options, which argparse forbids."""
    p = parser()
    args, rest = p.parse_known_args(argv)
    unknown = [
        r
        for r in rest
        if r.startswith("-")
        or not ("=" in r or r.startswith("~"))
        or not hasattr(args, "overrides")
    ]
    if unknown:
        p.error(f"unrecognized arguments: {' '.join(unknown)}")
    if rest:
        args.overrides = [*args.overrides, *rest]
    return args
