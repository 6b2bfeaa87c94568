"""Prefix-RFT on one page, with torch and transformers alone (arXiv 2507.01679, ICML 2026).

    prefix-rft task countdown data/countdown     # puzzles with solutions, and a tiny base model
    python examples/from_scratch.py              # some two minutes of one core: 24 % -> 34 % solved

The task: reach a target from given numbers. The base model does arithmetic but knows no target.
One step, section by section below:

1. of the G rollouts of a prompt, one starts from a random prefix of its demonstration;
2. the policy continues it, and samples the other G - 1 rollouts from nothing;
3. a verifier rewards every rollout as a whole, the prefix included;
4. a rollout's advantage is its reward minus the mean of its group (Dr. GRPO, no division);
5. all tokens of a rollout share its advantage, but of the prefix tokens only the fifth with the
   highest entropy keep it: those at which the policy did not know how to go on;
6. PPO's clipped objective over prefix and continuation alike.

Without step 1 this is Dr. GRPO. The library does the same for any model, with micro-batches,
several updates and processes, checkpoints and 27 sibling methods; a test holds this page's gradient
equal to the library's. Where the paper leaves a choice: prompts and rows are drawn from one seeded
source, the learning rate is constant, and each generation gives one update, so the ratio is 1.

Shape letters: B rollouts, T completion tokens, V vocabulary.
"""

import argparse
import json
import math
import random
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPTS, GROUP = 16, 8  # prompts of a step, and rollouts of a prompt, of which one is hybrid
BUDGET = 12  # tokens of a completion, prefix included
LOW, HIGH = (0.95, 0.05), 0.95  # the prefix ratio is uniform in [low, 0.95]; low decays by a cosine
KEEP = 0.2  # share of prefix tokens that keep their advantage
CLIP = 0.2
LEARNING_RATE, MAX_GRADIENT = 3e-4, 1.0  # a large language model wants about 1e-6


@dataclass
class Rollout:
    """One row of a group: prompt, then ``prefix`` tokens of a demonstration, then sampled ones."""

    prompt: list[int]
    completion: list[int]
    prefix: int
    group: int
    reward: float = 0.0


# 1. -- the prefix ---------------------------------------------------------------------------------


def prefix_length(uniform: float, step: int, steps: int, length: int) -> int:
    """Tokens of the prefix (section 3, A.2): early nearly the whole demonstration, later any part.

    ``uniform`` is drawn from [0, 1) for this rollout; ``length`` tokens has the demonstration, with
    its end-of-sequence token.
    """
    low = LOW[1] + (LOW[0] - LOW[1]) * 0.5 * (1 + math.cos(math.pi * step / steps))
    ratio = low + (HIGH - low) * uniform
    return min(math.floor(ratio * length + 1e-9), length - 1)  # at least one token is sampled


# 2. -- the rollouts -------------------------------------------------------------------------------


@torch.no_grad()
def sample(model, contexts: list[list[int]], eos: int) -> list[list[int]]:
    """A continuation of each context at temperature 1, end-of-sequence token included."""
    width = max(map(len, contexts))
    ids = torch.tensor([[eos] * (width - len(c)) + c for c in contexts])  # padded on the left
    mask = torch.tensor([[0] * (width - len(c)) + [1] * len(c) for c in contexts])
    made = model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=BUDGET,
        do_sample=True,
        top_k=0,
        pad_token_id=eos,
        eos_token_id=eos,
    )[:, width:].tolist()
    return [row[: row.index(eos) + 1] if eos in row else row for row in made]


# 3. -- the verifier -------------------------------------------------------------------------------


def reward(text: str, numbers: list[int], target: int) -> float:
    """1 for a chain like ``7 * 3 = 21 ; 21 + 5 = 26`` that uses every number once, else 0."""
    at_hand, c = list(numbers), None
    for part in text.strip().split(" ; "):
        step = re.fullmatch(r"(\d{1,9}) ([-+*/]) (\d{1,9}) = (\d{1,9})", part, re.ASCII)
        if step is None:
            return 0.0
        a, b, c = int(step[1]), int(step[3]), int(step[4])
        right = {"+": a + b == c, "-": a - b == c, "*": a * b == c, "/": b > 0 and a == b * c}
        if not right[step[2]]:
            return 0.0
        for number in (a, b):
            if number not in at_hand:
                return 0.0
            at_hand.remove(number)
        at_hand.append(c)
    return float(at_hand == [target])


# 4. -- the advantage ------------------------------------------------------------------------------


def advantages(rollouts: list[Rollout]) -> Tensor:
    """Reward minus the mean reward of the group, hybrid rollout included; shape (B,)."""
    groups: dict[int, list[float]] = {}
    for r in rollouts:
        groups.setdefault(r.group, []).append(r.reward)
    mean = {group: sum(rewards) / len(rewards) for group, rewards in groups.items()}
    return torch.tensor([r.reward - mean[r.group] for r in rollouts])


# 5. -- which prefix tokens learn ------------------------------------------------------------------


def keep_highest(entropy_BT: Tensor, prefix_BT: Tensor, share: float) -> Tensor:
    """The ``share`` of all prefix tokens of the step at which the policy's entropy is highest.

    ``entropy_BT`` is in nats, before each completion token; ``prefix_BT`` and the result are masks.
    """
    count = math.ceil(share * int(prefix_BT.sum()) - 1e-6)
    ranked = entropy_BT.masked_fill(~prefix_BT, -torch.inf).flatten()
    keep = torch.zeros_like(ranked, dtype=torch.bool)
    keep[ranked.sort(descending=True, stable=True).indices[:count]] = True
    return keep.view_as(prefix_BT)


# 6. -- the objective ------------------------------------------------------------------------------


def logp_and_entropy(model, rollouts: list[Rollout]) -> tuple[Tensor, Tensor]:
    """Log-probability of each completion token and entropy before it; 0 on padding. (B, T) each."""
    rows = [torch.tensor(r.prompt + r.completion) for r in rollouts]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(r) for r in rows], batch_first=True)
    logp_BTV = model(input_ids=ids, attention_mask=mask).logits[:, :-1].log_softmax(-1)
    logp_BT = logp_BTV.gather(-1, ids[:, 1:, None])[..., 0]
    entropy_BT = -(logp_BTV.detach().exp() * logp_BTV.detach()).sum(-1)

    def completions(x_BT: Tensor) -> Tensor:
        parts = [
            x[len(r.prompt) - 1 : len(r.prompt) - 1 + len(r.completion)]
            for x, r in zip(x_BT, rollouts, strict=True)
        ]
        return torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)

    return completions(logp_BT), completions(entropy_BT)


def loss(model, rollouts: list[Rollout], old_logp_BT: Tensor | None = None) -> Tensor:
    """Prefix-RFT's loss of one step (Eq. 3), with gradient.

    Args:
        model: the policy.
        rollouts: of the step, all groups together.
        old_logp_BT: under the policy that made the rollouts; by default the present one.
    """
    logp_BT, entropy_BT = logp_and_entropy(model, rollouts)
    place_BT = torch.arange(logp_BT.size(1)).expand_as(logp_BT)
    prefix_BT = place_BT < torch.tensor([[r.prefix] for r in rollouts])
    token_BT = place_BT < torch.tensor([[len(r.completion)] for r in rollouts])
    trained_BT = token_BT & (~prefix_BT | keep_highest(entropy_BT, prefix_BT, KEEP))

    old_logp_BT = logp_BT.detach() if old_logp_BT is None else old_logp_BT
    ratio_BT = (logp_BT - old_logp_BT).exp()
    advantage_BT = advantages(rollouts)[:, None] * trained_BT
    gain_BT = torch.minimum(
        ratio_BT * advantage_BT, ratio_BT.clamp(1 - CLIP, 1 + CLIP) * advantage_BT
    )
    return -gain_BT.sum() / (len(rollouts) * BUDGET)  # Dr. GRPO: a constant, not the lengths


# ---- the loop ------------------------------------------------------------------------------------


def rollouts_of(model, tokenizer, rows: list[dict], step: int, steps: int, rng) -> list[Rollout]:
    """Sections 1 to 3: ``GROUP`` rewarded rollouts of each row, the first of them hybrid."""
    eos = tokenizer.eos_token_id
    drawn = []
    for group, row in enumerate(rows):
        prompt = tokenizer(row["prompt"])["input_ids"]
        demonstration = [*tokenizer(row["demonstration"])["input_ids"], eos]
        length = prefix_length(rng.random(), step, steps, len(demonstration))
        for index in range(GROUP):
            prefix = demonstration[:length] if index == 0 else []
            drawn.append(Rollout(prompt, prefix, len(prefix), group))
    continuations = sample(model, [r.prompt + r.completion for r in drawn], eos)
    for r, ids in zip(drawn, continuations, strict=True):
        r.completion = [*r.completion, *ids][:BUDGET]
        row, text = rows[r.group], tokenizer.decode(r.completion, skip_special_tokens=True)
        r.reward = reward(text, row["numbers"], row["target"])
    return drawn


def evaluate(model, tokenizer, rows: list[dict]) -> float:
    """Share of the rows that one sample solves, without any prefix."""
    prompts = [tokenizer(row["prompt"])["input_ids"] for row in rows]
    texts = tokenizer.batch_decode(
        sample(model, prompts, tokenizer.eos_token_id), skip_special_tokens=True
    )
    right = [reward(t, r["numbers"], r["target"]) for t, r in zip(texts, rows, strict=True)]
    return sum(right) / len(right)


def main(data: Path, steps: int, seed: int) -> float:
    """Train the task's base model; returns the share of held-out puzzles that it then solves."""
    tokenizer = AutoTokenizer.from_pretrained(data / "base")
    model = AutoModelForCausalLM.from_pretrained(data / "base", dtype=torch.float32).eval()
    train, test = (
        [json.loads(line) for line in (data / f"{name}.jsonl").read_text().splitlines()]
        for name in ("train", "test")
    )
    rng = random.Random(seed)
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    print(f"before: {evaluate(model, tokenizer, test):.1%} of {len(test)} held-out puzzles")
    for step in range(steps):
        rollouts = rollouts_of(model, tokenizer, rng.sample(train, PROMPTS), step, steps, rng)
        optimizer.zero_grad()
        loss(model, rollouts).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRADIENT)
        optimizer.step()
        if (step + 1) % 25 == 0:
            own = [r.reward for r in rollouts if not r.prefix]
            hybrid = [r.reward for r in rollouts if r.prefix]
            means = [sum(x) / max(1, len(x)) for x in (own, hybrid)]
            print(f"step {step + 1}: reward {means[0]:.2f}, with a prefix {means[1]:.2f}")
    after = evaluate(model, tokenizer, test)
    print(f"after: {after:.1%}")
    return after


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Prefix-RFT on Countdown, on one page.")
    parser.add_argument("--data", type=Path, default=Path("data/countdown"))
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    main(options.data, options.steps, options.seed)
