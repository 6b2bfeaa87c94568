"""Every metric that a run logs: what it is called, what it means, and where it is shown.

The report's headings and titles, the progress line and ``docs/metrics.md`` are made from here:
``python -m prefix_rft.runs.metric_names > docs/metrics.md``.

A word in capital letters in a name stands for several: ``ORIGIN`` for where tokens come from
(``policy``, ``prefix``, ``continuation``, ``demonstration``), ``STREAM`` for a stream of the
method, ``TEACHER`` for a teacher, ``SOURCE`` for a stream or an origin, ``GRADER`` for a reward
function and ``STATUS`` for a verdict.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

ORIGIN_WORDS = {
    "policy": "on-policy",
    "prefix": "hybrid",
    "continuation": "continuation",
    "guided": "guided",
    "demonstration": "demonstration",
}
"""First or last part of a metric's name, and the rows or tokens it is about, in words."""

HELD_OUT = "Held-out problems"
SPLIT = "Hybrid and on-policy rollouts"
SCHEDULE = "Prefix schedule"
TRAINING = "Training"
VERDICTS = "Verdicts and groups"
TOKENS = "Tokens and time"
DIFFUSION = "Diffusion"
OTHER = "Other metrics"
SECTIONS = (HELD_OUT, SPLIT, SCHEDULE, TRAINING, VERDICTS, TOKENS, DIFFUSION, OTHER)
"""Headings of the report, in their order; ``OTHER`` has what is not registered."""

EVALUATION = "eval_"
"""Before the name of a metric of rows that are not trained on; it means the same otherwise."""


@dataclass(frozen=True)
class Metric:
    """What a name in ``metrics.jsonl`` stands for.

    Attributes:
        name: the name as it is logged, or a pattern with words in capital letters.
        title: the title over its plot.
        unit: the unit of its values; empty for a plain number.
        section: the section of the report.
        meaning: a whole phrase.
        measured: whether it varies from step to step, so that a smoothed curve helps.
    """

    name: str
    title: str
    unit: str
    section: str
    meaning: str
    measured: bool = True

    def fits(self, name: str) -> bool:
        """Whether a logged name is one of those that this stands for."""
        parts = re.split("([A-Z]+)", self.name)
        words = [
            ORIGINS if p == "ORIGIN" else "[^/]+" if p.isupper() else re.escape(p) for p in parts
        ]
        return re.fullmatch("".join(words), name) is not None

    @property
    def split(self) -> bool:
        """Whether rows or tokens of different origins share its plot."""
        return self.name.startswith("ORIGIN/")


ORIGINS = f"(?:{'|'.join(ORIGIN_WORDS)})"
SHARE, NATS = "share", "nats per token"

METRICS = (
    Metric("eval_avg", "Mean reward (avg@k)", "", HELD_OUT,
           "Mean reward over held-out problems, along the way (eval_every).", measured=False),
    Metric("eval_pass", "Problems solved (pass@k)", SHARE, HELD_OUT,
           "The held-out problems that some sample solves, of eval_every_samples each.",
           measured=False),
    Metric("eval_no_answer", "Samples without an answer", SHARE, HELD_OUT,
           "The samples of held-out problems in which the grader found no answer; they count as 0.",
           measured=False),
    Metric("eval_truncated", "Truncated samples", SHARE, HELD_OUT,
           "The samples of held-out problems that ran into the length limit.", measured=False),
    Metric("eval_ungraded", "Samples without a reward", SHARE, HELD_OUT,
           "The samples of held-out problems that could not be graded; they do not count.",
           measured=False),
    Metric("eval_tokens", "Length of samples", "tokens", HELD_OUT,
           "Mean sampled tokens of held-out problems.", measured=False),

    Metric("ORIGIN/reward", "Reward", "", SPLIT,
           "Mean reward of the on-policy rows, hybrid rows or whole demonstrations that were "
           "graded."),
    Metric("ORIGIN/completion_length", "Completion length", "tokens", SPLIT,
           "Mean length of completions; the report works it out from the rollouts."),
    Metric("ORIGIN/entropy", "Entropy", NATS, SPLIT,
           "Mean entropy of the policy at the tokens of this origin; of what is not trained, as "
           "it was sampled, until an update moves the policy."),
    Metric("ORIGIN/logp", "Log-probability", NATS, SPLIT,
           "Mean log-probability that the policy gives to the tokens of this origin."),

    Metric("prefix/low", "Lower bound of the prefix ratio", SHARE, SCHEDULE,
           "The smallest share of a demonstration that a prefix could have when it was drawn.",
           measured=False),
    Metric("prefix/high", "Upper bound of the prefix ratio", SHARE, SCHEDULE,
           "The largest share of a demonstration that a prefix could have when it was drawn.",
           measured=False),
    Metric("prefix/length", "Prefix length", "tokens", SCHEDULE,
           "Mean length of the prefixes of hybrid rows."),
    Metric("prefix/kept", "Prefix tokens kept", SHARE, SCHEDULE,
           "The prefix tokens that keep their advantage or are imitated, among all prefix tokens."),
    Metric("prefix/row_share", "Rows with a prefix", SHARE, SCHEDULE,
           "The hybrid rows among all rows of a generation; those with a hint count."),
    Metric("prefix/token_share", "Prefix tokens among all", SHARE, SCHEDULE,
           "The prefix tokens among all tokens of the completions of an optimizer step."),
    Metric("prefix/leak", "Prefixes that are correct alone", SHARE, SCHEDULE,
           "The hybrid rows whose prefix alone is correct to the first grader (log_prefix_leak)."),
    Metric("prefix/guarded", "Prefixes shortened", SHARE, SCHEDULE,
           "The hybrid rows, and those sent to the prompt, whose prefix was to be longer and would "
           "have given the answer away (guard_prefix_leak)."),
    Metric("demonstration/row_share", "Rows that are demonstrations", SHARE, SCHEDULE,
           "The whole demonstrations among all rows of a generation."),
    Metric("demonstrations/missing", "Rows without a demonstration", SHARE, SCHEDULE,
           "The rows whose prompt has no demonstration that can be used."),
    Metric("memory/examples", "Examples remembered", "examples", SCHEDULE,
           "The number of examples of which a planner or a contrast remembers something."),
    Metric("control/u", "Controlled share, mean", SHARE, SCHEDULE,
           "Mean share of the demonstration at which a controller holds the examples it has seen."),
    Metric("control/rate", "Controlled success, mean", SHARE, SCHEDULE,
           "Mean share of solved rows at the last visits of these examples."),
    Metric("store/examples", "Examples with own rollouts", "examples", SCHEDULE,
           "The number of examples of which own rollouts are kept to start from."),
    Metric("store/tokens", "Tokens of own rollouts", "tokens", SCHEDULE,
           "Tokens of all own rollouts that are kept."),
    Metric("interleave/waiting", "Demonstrations set aside", "demonstrations", SCHEDULE,
           "The number of demonstrations that wait for a step of imitation."),
    Metric("interleave/step", "Steps of imitation", SHARE, SCHEDULE,
           "1 where a generation is made of the demonstrations set aside, else 0."),

    Metric("reward", "Reward, all rollouts", "", TRAINING,
           "Mean reward of all rows that were graded."),
    Metric("reward_std", "Spread of rewards", "", TRAINING,
           "Standard deviation of the rewards of all rows that were graded."),
    Metric("rewards/GRADER/mean", "Mean reward of a grader", "", TRAINING,
           "Mean of what one reward function gives, before rewards are weighted and added."),
    Metric("rewards/GRADER/std", "Spread of a grader's rewards", "", TRAINING,
           "Standard deviation of what one reward function gives."),
    Metric("loss", "Loss", "", TRAINING,
           "The loss of an optimizer step, the sum of all streams."),
    Metric("grad_norm", "Gradient norm", "before clipping", TRAINING,
           "Norm of the gradient of all trained weights, before it is clipped."),
    Metric("learning_rate", "Learning rate", "", TRAINING,
           "The optimizer's learning rate at this step.", measured=False),
    Metric("clip_ratio/region_mean", "Clipped tokens", SHARE, TRAINING,
           "The tokens outside the clip range among those of streams that clip."),
    Metric("frac_reward_zero_std", "Groups without signal", SHARE, TRAINING,
           "The rows of groups whose rewards are all the same."),
    Metric("completions/clipped_ratio", "Truncated completions", SHARE, TRAINING,
           "The completions that ran into the length limit."),
    Metric("entropy", "Entropy, all tokens", NATS, TRAINING,
           "Mean entropy of the policy at all tokens of the completions."),
    Metric("trained/token_share", "Trained tokens among all", SHARE, TRAINING,
           "The tokens that some stream trains among all tokens of the completions."),
    Metric("STREAM/weight", "Weight of a stream's tokens", "", TRAINING,
           "Mean weight of the tokens of a stream that has one."),
    Metric("STREAM/coefficient", "Coefficient of a teacher's stream", "", TRAINING,
           "The coefficient of a stream that reads a teacher; at 0 the teacher is not asked.",
           measured=False),
    Metric("STREAM/divergence", "Divergence from the teacher", NATS, TRAINING,
           "Mean divergence from the teacher at the tokens on which a stream acts."),
    Metric("STREAM/divergence_first", "Divergence, first tokens", NATS, TRAINING,
           "The same at the first 8 tokens of a response: another opening shows there."),
    Metric("TEACHER/taught", "Rows that are taught", SHARE, TRAINING,
           "The rollouts that a teacher teaches: those for which its prompt has a context."),
    Metric("TEACHER/too_long", "Teacher's prompts too long", SHARE, TRAINING,
           "The rows that are not taught because the teacher's prompt is too long."),
    Metric("TEACHER/leak", "Completions that quote the template", SHARE, TRAINING,
           "The on-policy rollouts in which a sentence of the teacher's template stands, one of "
           "three words or more: they speak of what the policy does not see."),
    Metric("TEACHER/gap", "Teacher less policy", NATS, TRAINING,
           "Mean of the teacher's log-probability less the policy's at sampled tokens of rows that "
           "are taught."),
    Metric("TEACHER/gap_abs", "Teacher and policy apart", NATS, TRAINING,
           "Mean distance of these log-probabilities."),
    Metric("TEACHER/gap_p99", "Teacher and policy apart, 99 %", NATS, TRAINING,
           "The distance that 99 % of these tokens do not exceed."),
    Metric("TEACHER/gap_right", "Teacher less policy, solved rows", NATS, TRAINING,
           "The same difference in solved rows: larger than in the others if the teacher knows."),
    Metric("TEACHER/gap_wrong", "Teacher less policy, unsolved rows", NATS, TRAINING,
           "The same difference in graded rows that are not solved."),
    Metric("gradient/SOURCE_norm", "Gradient norm of a source", "", TRAINING,
           "Norm of the gradient of one source alone (gradient_shares_every); hybrid is prefix and "
           "continuation together, without_prefix is all but the prefix."),
    Metric("gradient/prefix_share", "Prefix among gradient norms", SHARE, TRAINING,
           "Norm of the prefix's gradient over the sum of the norms of all sources."),
    Metric("mean_token_accuracy", "Token accuracy", SHARE, TRAINING,
           "The demonstrations' tokens to which the model gives the highest probability."),
    Metric("aux_loss", "Load-balancing loss", "", TRAINING,
           "The balancing loss of a mixture of experts, which is added to the loss."),
    Metric("nonfinite/skipped", "Steps left out", SHARE, TRAINING,
           "1 for an update that was left out for a number that is not finite (on_nonfinite)."),
    Metric("sampling/sampling_logp_difference/mean", "Sampler and trainer apart", NATS, TRAINING,
           "Mean distance between the log-probabilities of the sampler and of the trainer."),
    Metric("sampling/sampling_logp_difference/max", "Sampler and trainer apart, most", NATS,
           TRAINING, "Largest distance between these log-probabilities."),
    Metric("sampling/importance_sampling_ratio/min", "Smallest sampling ratio", "", TRAINING,
           "Smallest correction of what the sampler draws to the trainer's policy."),
    Metric("sampling/importance_sampling_ratio/mean", "Mean sampling ratio", "", TRAINING,
           "Mean correction of what the sampler draws to the trainer's policy."),
    Metric("sampling/importance_sampling_ratio/max", "Largest sampling ratio", "", TRAINING,
           "Largest correction of what the sampler draws to the trainer's policy."),

    Metric("rewards/ungraded", "Rows without a reward", SHARE, VERDICTS,
           "The rows that could not be graded, which are not trained on."),
    Metric("verdicts/GRADER/STATUS", "Rows by verdict", SHARE, VERDICTS,
           "The rows of which a grader says this status."),
    Metric("groups/all_wrong", "Groups all wrong", SHARE, VERDICTS,
           "The rows of groups in which no row is solved, after any sampling again."),
    Metric("groups/all_right", "Groups all right", SHARE, VERDICTS,
           "The rows of groups in which every row is solved, after any sampling again."),
    Metric("groups/resampled", "Groups sampled again", SHARE, VERDICTS,
           "The rows of groups that were changed after their first attempt."),
    Metric("groups/dropped", "Rows dropped", SHARE, VERDICTS,
           "The rows that take no part in the update."),

    Metric("completions/mean_length", "Mean completion length", "tokens", TOKENS,
           "Mean length of completions, prefixes included."),
    Metric("completions/min_length", "Shortest completion", "tokens", TOKENS,
           "Length of the shortest completion, its prefix included."),
    Metric("completions/max_length", "Longest completion", "tokens", TOKENS,
           "Length of the longest completion, its prefix included."),
    Metric("completions/mean_terminated_length", "Mean length of ended completions", "tokens",
           TOKENS, "Mean length of the completions that end with an end-of-sequence token."),
    Metric("completions/min_terminated_length", "Shortest ended completion", "tokens", TOKENS,
           "Length of the shortest completion that ends with an end-of-sequence token."),
    Metric("completions/max_terminated_length", "Longest ended completion", "tokens", TOKENS,
           "Length of the longest completion that ends with an end-of-sequence token."),
    Metric("tokens/sampled", "Tokens sampled", "tokens", TOKENS,
           "Tokens drawn in the step, in every attempt, end of sequence included; neither prefixes "
           "nor demonstrations."),
    Metric("tokens/prefilled", "Tokens given to the sampler", "tokens", TOKENS,
           "The distinct prompts of each process and attempt, and the prefixes."),
    Metric("tokens/forward", "Tokens in forwards without gradient", "tokens", TOKENS,
           "Tokens computed for log-probabilities of the old and the reference policy, and for "
           "entropies and metrics of what the sampler and the update have not told."),
    Metric("tokens/trained", "Tokens in forward and backward", "tokens", TOKENS,
           "Tokens computed in forward and backward passes of the update: a prompt once for the "
           "rows that share it, and no row without gradient (savings)."),
    Metric("tokens/teacher", "Tokens read by teachers", "tokens", TOKENS,
           "Those of the forwards without gradient that teachers have read, prompts included."),
    Metric("num_tokens", "Tokens so far", "tokens", TOKENS,
           "Tokens of prompts and completions since the run began, as TRL counts them.",
           measured=False),
    Metric("step_time", "Time of a step", "seconds", TOKENS,
           "Wall-clock time of an optimizer step."),
    Metric("epoch", "Epoch", "passes", TOKENS,
           "Passes over the data since the run began.", measured=False),
    Metric("train_runtime", "Time of training", "seconds", TOKENS,
           "Wall-clock time of the training, on the last line alone."),
    Metric("train_samples_per_second", "Rows a second", "rows per second", TOKENS,
           "Rows trained on in a second, on the last line alone."),
    Metric("train_steps_per_second", "Steps a second", "steps per second", TOKENS,
           "Optimizer steps in a second, on the last line alone."),
    Metric("total_flos", "Operations", "floating point operations", TOKENS,
           "What the framework estimates of the whole run, on the last line alone."),
    Metric("train_loss", "Mean loss", "", TOKENS,
           "Mean loss over the run, on the last line alone."),
    Metric("runtime", "Time of an evaluation", "seconds", TOKENS,
           "Wall-clock time of an evaluation (with eval_ before it)."),
    Metric("samples_per_second", "Rows a second", "rows per second", TOKENS,
           "Rows evaluated in a second (with eval_ before it)."),
    Metric("steps_per_second", "Batches a second", "batches per second", TOKENS,
           "Batches evaluated in a second (with eval_ before it)."),

    Metric("diffusion/winner_error", "Error on winners", "mean squared", DIFFUSION,
           "Mean squared error of the policy on winners, over all axes."),
    Metric("diffusion/winner_gain", "Gain on winners", "mean squared", DIFFUSION,
           "How much smaller that error is than the reference's, r_w - e_w."),
    Metric("diffusion/sample_gain", "Gain on samples", "mean squared", DIFFUSION,
           "The same on the reference's samples (SSPO) or the losers (DPO), r_r - e_r."),
    Metric("diffusion/flip", "Mean of s", "", DIFFUSION,
           "Mean of the factor s: 1 where samples count as losers, below 0 where they are pulled "
           "up."),
    Metric("diffusion/reference", "Reference", "step", DIFFUSION,
           "Updates before the checkpoint that is the reference and generates samples.",
           measured=False),
    Metric("diffusion/seconds", "Time of an update", "seconds", DIFFUSION,
           "Wall-clock time of an update, with its samples."),
)  # fmt: skip
"""In the order in which the report shows them."""

PROGRESS = (
    ("loss", "loss", "{:.4f}"),
    ("policy/reward", "on-policy reward", "{:.3f}"),
    ("prefix/reward", "hybrid reward", "{:.3f}"),
    ("prefix/length", "prefix", "{:.1f} tok"),
    ("entropy", "entropy", "{:.2f}"),
    ("eval_avg", "held-out", "{:.3f}"),
)
"""Shown on the progress line, in this order: a metric, its name there, and how its value is put."""


@cache
def metric_of(name: str) -> Metric | None:
    """What a logged name stands for; None where it is not registered.

    A name that is registered as it stands goes before one that a pattern fits.
    """
    bare = name.removeprefix(EVALUATION)
    exact = next((m for m in METRICS if m.name in (name, bare)), None)
    return exact or next((m for m in METRICS if m.fits(bare)), None)


def page() -> str:
    """``docs/metrics.md``: a table for each section."""
    shown = ", ".join(f"`{name}`" for name, _, _ in PROGRESS)
    parts = [HEAD.format(shown=shown)]
    for section in SECTIONS:
        metrics = [m for m in METRICS if m.section == section]
        if metrics:
            rows = "".join(f"| `{m.name}` | {m.meaning} | {m.unit} |\n" for m in metrics)
            parts.append(f"## {section}\n\n| name | meaning | unit |\n|---|---|---|\n{rows}")
    return "\n".join(parts)


HEAD = """# Metrics

What a line of a run's `metrics.jsonl` holds. This page is made by
`python -m prefix_rft.runs.metric_names > docs/metrics.md`.

`ORIGIN` is where tokens come from (`policy`, `prefix`, `continuation`, `demonstration`, `guided`),
`STREAM` a stream of the method, `SOURCE` a stream or an origin, `GRADER` a reward function and
`STATUS` a verdict. A name appears only where it is observed. Before a name, `eval_` says that the
rows are not trained on. On verl its own metrics stand beside these, under verl's names.

The progress line shows {shown}.
"""


if __name__ == "__main__":
    print(page(), end="")
