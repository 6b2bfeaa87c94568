"""The TRL engine beside a run of verl's: the same prompts, and the samples that verl drew."""

from pathlib import Path
from typing import Any

import torch
import verl_runs as cluster
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefix_rft import PrefixRFTConfig, PrefixRFTTrainer
from prefix_rft.data import load_rows
from prefix_rft.rewards import load_rewards


class Beside(PrefixRFTTrainer):
    """One optimizer step on the rows of each of verl's steps.

    Attributes:
        weights: after each step.
    """

    def __init__(
        self,
        task: Path,
        method: str,
        steps: list[dict[str, Any]],
        folder: Path,
        options: dict[str, Any] | None = None,
        budget: int = cluster.BUDGET,
    ) -> None:
        model = AutoModelForCausalLM.from_pretrained(task / "base", dtype=torch.float32)
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=1e-3, weight_decay=0.01, eps=cluster.EPS
        )
        self.steps = steps
        self.order: list[int] = []
        for batch in steps:
            examples = dict.fromkeys(int(x) for x in batch["index"])
            self.order += [x for x in examples for _ in range(4)]
        self.weights: list[dict[str, torch.Tensor]] = []
        args = PrefixRFTConfig(
            output_dir=str(folder),
            method=method,
            method_options=options,
            num_generations=4,
            per_device_train_batch_size=16,
            max_completion_length=budget,
            max_steps=len(steps),
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            bf16=False,
            disable_tqdm=True,
            lr_scheduler_type="constant",
            max_grad_norm=1.0,
            seed=42,  # the default of both engines
        )
        super().__init__(
            model,
            load_rewards("countdown", folder)[0],
            args,
            train_dataset=load_rows(str(task / "train.jsonl")),
            processing_class=AutoTokenizer.from_pretrained(task / "base"),
            optimizers=(optimizer, None),
        )

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        return self.order

    def _sample(self, prompts: Any, plans: Any) -> list[list[int]]:
        batch = self.steps[self.state.global_step]
        theirs = {
            (int(example), int(key.rsplit("_", 2)[1])): i
            for i, (example, key) in enumerate(zip(batch["index"], batch["keys"], strict=True))
        }
        found = []
        for prompt, plan in zip(prompts, plans, strict=True):
            if plan.filler:  # it waits for its turn
                found.append([])
                continue
            i = theirs[plan.example, plan.row]
            ids, prefix = batch["responses"][i].tolist(), int(batch["prefix_rft_prefix_length"][i])
            assert prompt == batch["prompts"][i].tolist()
            assert list(plan.prefix) == ids[:prefix]
            assert plan.whole == bool(batch["prefix_rft_whole"][i])
            found.append([] if plan.whole else ids[prefix:])
        return found

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step:
            self._keep()
        return super().training_step(*args, **kwargs)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        done = super().train(*args, **kwargs)
        self._keep()
        return done

    def _keep(self) -> None:
        model = self.accelerator.unwrap_model(self.model)
        self.weights.append({k: v.detach().clone() for k, v in model.state_dict().items()})
