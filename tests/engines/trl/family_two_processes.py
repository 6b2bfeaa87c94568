"""Run by a test under torchrun with two gloo processes: one short run for each case.

Usage: family_two_processes.py FOLDER CASE...

With ``split`` a group of eight lies across both processes; otherwise each has a group of four, and
the dataset is such that the first process alone has the groups that fail, or the demonstrations.
"""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch

from prefix_rft import DemonstrationTrainer, PrefixRFTTrainer
from second.step import trl_run
from tiny import make_imitation_config, make_tokenizer

EVEN = ("wrong", "mixed")
ODD = (1, 3, 5, 7)
STEPS = 3
TEMPLATE = "a:{context};{prompt}"
EMA = {"weights": "ema", "context": "demonstration", "template": TEMPLATE, "rate": 0.25}
PEER = {"context": "peer", "column": None, "template": TEMPLATE, "every": 2}

# name -> method, options, rules, examples without demonstration, whether a group is split, settings
CASES: dict[str, tuple[str, dict[str, Any], tuple[str, ...], tuple[int, ...], bool, dict]] = {
    "luffy": ("luffy", {}, ("mixed",), ODD, False, {}),
    "luffy-split": ("luffy", {"all_wrong": "resample"}, EVEN, (3,), True, {}),
    "chord": ("chord", {}, ("mixed",), ODD, False, {}),
    "relift": ("relift", {"sft_prompts": 2}, EVEN, ODD, False, {}),
    "mifo": (
        "mifo",
        {"sft_prompts": 2},
        EVEN,
        ODD,
        False,
        {"parameter_mask": {"kind": "mifo", "fraction": 0.2}},
    ),
    "dapo": ("dapo", {"attempts": 2}, EVEN, (), False, {"log_rollouts": True}),
    "bread": ("bread", {}, ("hint:9", "mixed"), ODD, False, {"log_rollouts": True}),
    "lengthen": ("prefix_rft", {"all_wrong": "lengthen"}, EVEN, (), True, {}),
    "demonstration": ("grpo", {"all_wrong": "demonstration"}, EVEN, (), True, {}),
    "adaback": ("adaback", {"plain": 0.0, "ema": 0.5}, EVEN, (), False, {}),
    "pass_rate": ("pass_rate", {"hard_below": 0.9, "easy_above": 0.1}, ("mixed",), (), True, {}),
    "guarded": ("control", {"plain": 0.0}, EVEN, (), True, {"guard_prefix_leak": True}),
    "discriminative": ("discriminative", {}, ("mixed",), (2,), True, {}),
    "irft-split": ("irft", {"stages": 3}, ("mixed",), (), True, {}),
    "opd": ("opd", {"teacher": EMA}, ("mixed",), ODD, False, {}),
    "rlsd-split": ("rlsd", {"teacher": PEER}, ("mixed",), (), True, {}),
    "sdft": ("sdft", {"teacher": EMA}, ("mixed",), ODD, False, {}),
    "sdpo-split": (
        "sdpo",
        {"teacher": {"weights": "snapshot", **PEER}, "divergence": {"top": 5}},
        ("mixed",),
        (),
        True,
        {},
    ),
    "trapo": ("trapo", {}, ("right", "mixed", "wrong", "patchy"), (), True, {}),
    "trapo-apart": (
        "trapo",
        {"sizes": [2, 1, 1], "shares": [0, 0.5, 1], "below": [0, 1, 3]},
        ("mixed",),
        ODD,
        False,
        {},
    ),
    "self_sft": ("self_sft", {}, ("wrong", "right"), (), False, {}),
    "iw_sft": ("iw_sft", {}, ("mixed",), (), False, {}),
}


def trainer_of(name: str, folder: Path) -> tuple[Any, trl_run.Recorder]:
    method, options, rules, missing, split, settings = CASES[name]
    rows = trl_run.make_rewards(rules * (8 // len(rules)), missing=missing)
    common = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_steps": STEPS,
        "learning_rate": 1e-2,
        "ddp_find_unused_parameters": False,
    }
    if method != "iw_sft":
        return trl_run.start(
            PrefixRFTTrainer,
            folder,
            method,
            rows,
            options=options,
            model=trl_run.attentive_model() if method in ("sdft", "sdpo") else None,
            num_generations=8 if split else 4,
            **common,
            **settings,
        )
    recorder = trl_run.Recorder()
    trainer = DemonstrationTrainer(
        trl_run.sharp_model(),
        make_imitation_config(
            folder,
            method=method,
            save_strategy="no",
            max_grad_norm=0.0,
            lr_scheduler_type="constant",
            **common,
        ),
        train_dataset=rows,
        processing_class=make_tokenizer(),
        callbacks=[recorder],
    )
    recorder.watch(trainer, "compute_loss")
    return trainer, recorder


def plain(state: Any) -> dict[str, Any]:
    """What a method remembers, without types of ours."""
    traces = {k: [tuple(t) for t in some] for k, some in state.traces.items()}
    return {**vars(state), "traces": traces}


def main(folder: Path, names: list[str]) -> None:
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    rank = 0
    for name in names:
        trainer, recorder = trainer_of(name, folder / name)
        forwards: list[tuple[int, bool]] = []

        def count(module: Any, args: Any, t: Any = trainer, f: Any = forwards) -> None:
            if module.training:  # sampling is each process's own affair
                f.append((t.state.global_step, torch.is_grad_enabled()))

        attempts: list[dict[str, Any]] = []

        def sampled(
            inputs: Any, plans: Any, t: Any = trainer, f: Any = attempts, original: Any = None
        ) -> Any:
            made = original(inputs, plans)
            rows = made.rows
            kept = zip(rows["completion_ids"], rows["completion_mask"].bool(), strict=True)
            f.append(
                {
                    "step": t.state.global_step,
                    "groups": [p.group for p in plans],
                    "numbers": [p.attempt for p in plans],
                    "whole": [p.whole for p in plans],
                    "completions": [x[m].tolist() for x, m in kept],
                    "rewards": made.reward_N.tolist(),
                }
            )
            return made

        if hasattr(trainer, "_sampled"):
            trainer._sampled = partial(sampled, original=trainer._sampled)
        trainer.model.register_forward_pre_hook(count)
        trainer.train()
        mask = trainer.parameter_mask
        found[name] = {
            "records": [r.plain() for r in recorder.records],
            "forwards": forwards,
            "attempts": attempts,
            "state": plain(trainer.method_state),
            "reference": trainer.reference and trainer.reference.weights,
            "masks": mask and mask.masks,
            "weights": trainer.accelerator.unwrap_model(trainer.model).state_dict(),
        }
        rank = trainer.accelerator.process_index
    torch.save(found, folder / f"rank{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
