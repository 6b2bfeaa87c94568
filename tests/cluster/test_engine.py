"""Our part of verl's trainers with verl's own classes, without Ray."""

import asyncio
import json
import math
import runpy
import shlex
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

pytest.importorskip("verl")

import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from tensordict import NonTensorStack, TensorDict
from verl.trainer.ppo.v1.trainer_base import get_trainer_cls
from verl.utils import tensordict_utils as tu
from verl.workers.engine_workers import ActorRolloutRefWorker, TrainingWorker
from verl.workers.rollout.replica import TokenOutput

import prefix_rft.engines.verl as engine
from odd_tokenizers import characters
from prefix_rft.cli import main
from prefix_rft.core import Batch, loss, prepare
from prefix_rft.core.planner import Group, Start
from prefix_rft.core.schedules import linear
from prefix_rft.core.store import Seen, Trace
from prefix_rft.data.demonstrations import EXAMPLE, IDS
from prefix_rft.engines.plan import RowPlan, RunPoint, replanned, starting, starts_of
from prefix_rft.engines.setup import configure as configure_recipe
from prefix_rft.engines.state import MethodState
from prefix_rft.engines.verl import columns, require_verl
from prefix_rft.engines.verl import from_recipe as cluster
from prefix_rft.engines.verl.agent_loop import PrefixAgentLoop
from prefix_rft.engines.verl.credit import CreditedRows, verdict_shares
from prefix_rft.engines.verl.dataset import COLUMNS, PROMPT_IDS, Prompts
from prefix_rft.engines.verl.launch import verify
from prefix_rft.engines.verl.loss import means, method_loss
from prefix_rft.engines.verl.memory import learn
from prefix_rft.engines.verl.method_config import KEY, MethodConfig, unsupported
from prefix_rft.engines.verl.prompt_plan import PromptPlan
from prefix_rft.engines.verl.rewards import UNGRADED, Graders, combined
from prefix_rft.engines.verl.rollouts import VERDICTS, rollouts_of
from prefix_rft.engines.verl.settings import MODES, configure
from prefix_rft.engines.verl.trainer import TRAINERS, MethodTrainer
from prefix_rft.engines.verl.worker import (
    MOVED,
    STEP,
    TOTAL,
    DetachMethodWorker,
    MethodActor,
    MethodWorker,
)
from prefix_rft.methods import load
from prefix_rft.rewards import close_all
from prefix_rft.rewards.verdict import Verdict
from prefix_rft.support.errors import UserError
from tiny import CHAT_TEMPLATE, make_chat_tokenizer

METHODS = (
    *("prefix_rft", "dr_grpo", "luffy", "uft", "srft", "hpt", "chord", "grpo", "gspo"),
    *("cispo", "rloo", "superrl", "rl_sft", "adaback", "pope", "r3", "questa", "bread"),
    *("control", "adaprefix", "prefixrl", "pass_rate", "trapo", "opd", "rlsd", "gats", "sdar"),
)
FOUR = {"sizes": [2, 1, 1], "shares": [0, 0.5, 1], "below": [0, 1, 3]}
TEACHER: dict[str, Any] = {"path": "org/teacher"}
OPTIONS = {"trapo": FOUR, "opd": TEACHER, "gats": TEACHER}
"""What a method wants to be told, of groups of four rows."""


def settings(*more: str) -> Any:
    with initialize_config_module("prefix_rft.engines.verl.config", version_base=None):
        return compose(
            "prefix_rft",
            overrides=[
                "actor_rollout_ref.rollout.name=verl_cpu",
                "actor_rollout_ref.rollout.n=4",
                "data.max_prompt_length=32",
                "data.max_response_length=16",
                "actor_rollout_ref.model.path=null",
                *more,
            ],
        )


# ---- settings ----------------------------------------------------------------------------------


def test_verl_is_set_up_for_the_method() -> None:
    config = settings("prefix_rft.method_options={entropy_keep: 0.5}")
    block, method = configure(config)
    assert (block.method, method.normaliser.const, method.selection.fraction) == (
        "prefix_rft",
        16.0,
        0.5,
    )
    assert config.actor_rollout_ref.actor.calculate_entropy
    assert not config.actor_rollout_ref.actor.use_kl_loss
    assert config.actor_rollout_ref.rollout.agent.default_agent_loop == "prefix_rft"
    before = OmegaConf.to_container(config)
    configure(config)  # the launcher does it, then the trainer
    assert OmegaConf.to_container(config) == before
    with_kl = settings("prefix_rft.method=uft")
    configure(with_kl)
    assert with_kl.actor_rollout_ref.actor.use_kl_loss


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("+prefix_rft.methods=x", "unknown key of 'prefix_rft:' 'methods': did you mean 'method'"),
        ("prefix_rft.method=prefix", "unknown method"),
        ("prefix_rft.method_options={keep: 1}", "keep"),
        ("prefix_rft.method=sft", "'sft' does not run on verl: it never samples"),
        ("prefix_rft.method=relift", "'relift' does not run on verl"),
        ("prefix_rft.method=discriminative", "does not run on verl"),
        ("prefix_rft.epsilon=wide", "'epsilon' must be a number"),
        ("prefix_rft.weight_check=-1", "weight_check must be at least 0"),
        ("algorithm.adv_estimator=gae", "algorithm.adv_estimator=gae cannot be used here"),
        ("actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-sum", "loss_agg_mode"),
        ("actor_rollout_ref.actor.clip_ratio_high=0.28", "set prefix_rft.epsilon_high"),
        ("actor_rollout_ref.actor.entropy_coeff=0.01", "set prefix_rft.entropy_coef"),
        ("algorithm.rollout_correction.bypass_mode=True", "its pass before the update is needed"),
        ("algorithm.rollout_correction.rollout_rs=token", "would stay in the normalisers"),
        ("trainer.use_v1=False", "V1 trainers"),
        ("trainer.v1.trainer_mode=sync", "unknown trainer.v1.trainer_mode 'sync'"),
        ("critic.enable=True", "no method has a critic"),
        ("reward.reward_model.enable=True", "enable_resource_pool=True"),
        ("actor_rollout_ref.rollout.calculate_log_probs=False", "weight_check=null"),
        ("prefix_rft.method=dapo", "'dapo' does not run on verl: another prompt cannot"),
        (
            "prefix_rft.method=sdft",
            "'sdft' does not run on verl: its divergence over the vocabulary",
        ),
        ("prefix_rft.method=hdpo", "a group that fails cannot be sampled from a teacher's prompt"),
        ("prefix_rft.method=gats", "another model: give its folder or Hub name as path"),
        ("prefix_rft.method=rlsd", "actor_rollout_ref.actor.strategy=fsdp2, got fsdp"),
    ],
)
def test_what_cannot_be_is_refused_at_the_start(override: str, words: str) -> None:
    with pytest.raises(UserError, match=words.replace("(", r"\(")):
        configure(settings(override))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("actor_rollout_ref.actor.ulysses_sequence_parallel_size=2", "size above 1: use frozen"),
        ("+prefix_rft.method_options.teacher.weights=adapter_off", "the model has no adapter"),
    ],
)
def test_weights_that_a_teacher_cannot_have(override: str, words: str) -> None:
    configure(settings("prefix_rft.method=sdar"))
    with pytest.raises(UserError, match=words):
        configure(settings("prefix_rft.method=sdar", override))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("trainer.n_gpus_per_node=3", "verl does not take its settings: .*divisible"),
        # In a class of its settings, around which Hydra puts an error of its own.
        ("data.train_batch_size=1024", r"verl does not take its settings: \[actor\] Please set"),
    ],
)
def test_what_verl_refuses_is_one_sentence(override: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        verify(settings(override))


@pytest.mark.parametrize(
    "wrong", ["prefix_rft.method=nope", "prefix_rft.reward=nope", "trainer.n_gpus_per_node=3"]
)
def test_the_module_ends_with_a_sentence(
    wrong: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)  # Hydra leaves files
    monkeypatch.setattr("sys.argv", ["prefix_rft.engines.verl", wrong])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_module("prefix_rft.engines.verl", run_name="__main__")
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("prefix-rft: error: ")
    assert ("divisible" if "gpus" in wrong else f"unknown {wrong[11:17]} 'nope'") in said
    monkeypatch.setattr(engine, "version", lambda name: "0.10.0")
    with pytest.raises(SystemExit, match="2"):
        runpy.run_module("prefix_rft.engines.verl", run_name="__main__")
    assert "and verl 0.10.0 is installed" in capsys.readouterr().err


@pytest.mark.parametrize("more", ["data.train_batch_size=512", "+data.x=1"])
def test_entropies_of_a_second_update_need_rows_of_ones_own(more: str) -> None:
    shared = "actor_rollout_ref.actor.ulysses_sequence_parallel_size=2"
    batch = ["data.train_batch_size=256", "actor_rollout_ref.actor.ppo_mini_batch_size=256"]
    config = settings(*batch, shared, more)
    if more.startswith("+"):
        configure(config)
        return
    with pytest.raises(UserError, match="entropy_source: rollout"):
        configure(config)
    configure(settings(*batch, shared, more, "prefix_rft.method_options={entropy_source: rollout}"))


def test_the_worker_of_each_mode_is_one_of_verls() -> None:
    """What a trainer calls on its workers is still there."""
    assert hasattr(DetachMethodWorker, "save_model_to_cpu")
    assert DetachMethodWorker.actor_worker_cls is MethodWorker.actor_worker_cls is MethodActor
    for name, mode in MODES.items():
        made = get_trainer_cls(name)
        assert issubclass(made, TRAINERS[mode])
        assert issubclass(made, MethodTrainer)
        assert made.mode == mode


def test_likelihoods_are_those_of_temperature_1() -> None:
    with pytest.raises(UserError, match="temperature 1, got"):
        configure(settings("prefix_rft.method=luffy", "actor_rollout_ref.rollout.temperature=0.7"))


@pytest.mark.parametrize("found", ["0.9.0", "0.10.0", "1.0"])
def test_other_versions_are_refused(monkeypatch: pytest.MonkeyPatch, found: str) -> None:
    require_verl()
    monkeypatch.setattr(engine, "version", lambda name: found)
    with pytest.raises(UserError, match=f"verl {found} is installed"):
        require_verl()


@pytest.mark.parametrize("name", METHODS)
def test_methods_that_run(name: str) -> None:
    assert unsupported(load(name)) is None
    options = None if name == "trapo" else OPTIONS.get(name)
    assert MethodConfig(name, options).resolve_method(8, 64).name == name


@pytest.mark.parametrize("nodes", [1, 4])
def test_verl_takes_the_recipes_in_docs(nodes: int) -> None:
    path = Path(__file__).parents[2] / f"examples/cluster/qwen2.5-math-7b-{nodes}x8.yaml"
    with closing(configure_recipe(str(path), [])) as setup:
        assert (
            cluster.verify_settings(setup.recipe, setup.args)
            == "engine verl: its settings are taken"
        )
        wrong = replace(setup.recipe, engine_settings={"verl": {"trainer.nodes": 2}})
        with pytest.raises(UserError, match=r"does not take 'trainer\.nodes'"):
            cluster.verify_settings(wrong, setup.args)


# ---- rows and rollouts -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("task") / "data"
    sizes = ["--train-rows", "12", "--test-rows", "4", "--valid-rows", "4"]
    assert main(["task", "countdown", str(folder), *sizes]) == 0
    return folder


@pytest.fixture(scope="module")
def prompts(task: Path) -> Prompts:
    from transformers import AutoTokenizer

    config = settings(f"actor_rollout_ref.model.path={task}/base")
    configure(config)
    return Prompts(f"{task}/train.jsonl", AutoTokenizer.from_pretrained(task / "base"), config.data)


def test_prompts_tell_the_date_that_the_run_began(tmp_path: Path) -> None:
    tokenizer = make_chat_tokenizer("{{ strftime_now('%d %b %Y') }}" + CHAT_TEMPLATE)
    row = {"prompt": [{"role": "user", "content": "1+1?"}], "demonstration": "2", "answer": "2"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    data = {
        "max_prompt_length": 64,
        "max_response_length": 16,
        "prefix_rft": {"folder": str(tmp_path), "chat_template_date": "2026-07-26"},
    }
    rows = Prompts(str(tmp_path / "rows.jsonl"), tokenizer, OmegaConf.create(data))
    assert tokenizer.decode(rows[0][PROMPT_IDS]).startswith("26 Jul 2026<|user|>")


def test_an_item_holds_no_demonstration(task: Path, prompts: Prompts) -> None:
    rows = [json.loads(x) for x in (task / "train.jsonl").read_text().splitlines()]
    assert len(prompts) == 12
    for i, row in enumerate(rows):
        item = prompts[i]
        assert row["demonstration"] not in json.dumps({k: str(v) for k, v in item.items()})
        assert json.loads(item[COLUMNS])["prompt"] == row["prompt"]
        ids = prompts.rows[i]["prefix_rft_demonstration_ids"][0]
        assert prompts.renderer.tokenizer.decode(ids[:-1]) == row["demonstration"]


GRADER = """
def holds(completions, answer, completion_ids, **columns):
    texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
    return [float(g in t and len(i) > 0) for t, g, i in zip(texts, answer, completion_ids)]
"""


@pytest.mark.parametrize("chat", [False, True])
def test_graders_see_the_text_of_the_ids(chat: bool, task: Path, tmp_path: Path) -> None:
    """As in the TRL engine: think and answer tokens and the unknown one, no token that ends it."""
    tokenizer = characters(tags=True, missing="7")
    (tmp_path / "holding.py").write_text(GRADER)
    config = settings(
        f"actor_rollout_ref.model.path={task}/base",
        f"prefix_rft.folder={tmp_path}",
        "prefix_rft.reward=holding:holds",
        "reward.num_workers=1",
    )
    configure(config)
    graders = Graders(config, tokenizer, None)
    text = "<think>so 7</think><answer>4</answer>"
    ids = graders.renderer.demonstrations([text], chat)[0]
    prompt = [{"role": "user", "content": "2+2?"}] if chat else "2+2?"
    seen = [
        graders.verdicts(ids, {"prompt": prompt, "answer": answer})[0].status
        for answer in ("<answer>4</answer>", "<think>so <unk></think>", "<|end|>", "7")
    ]
    close_all(graders.rewards)
    graders.loop.close()  # verl's manager opens one
    asyncio.set_event_loop(None)
    assert seen == ["correct", "correct", "wrong", "wrong"]


def test_the_ten_minutes_in_docs(task: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the task's own model, and as many tokens as it has positions for."""
    text = (Path(__file__).parents[2] / "docs/cluster.md").read_text()
    block = text.partition("## Ten minutes")[2].split("```")[1].replace("\\\n", "")
    command = shlex.split(block.splitlines()[-1])
    assert command[:3] == ["prefix-rft", "train", "data/countdown/recipe.yaml"]
    given = [x for x in command[3:] if not x.startswith("model=")]
    assert len(given) == len(command) - 4
    recipe = str(task / "recipe.yaml")
    assert main(["check", recipe, *given, "max_completion_length=32", "prompts_per_step=8"]) == 0
    assert "engine verl: its settings are taken" in capsys.readouterr().out


class Server:
    """Answers every request alike."""

    def __init__(self) -> None:
        self.asked: list[tuple[list[int], int]] = []

    async def generate(self, request_id: str, *, prompt_ids: Any, sampling_params: Any) -> Any:
        self.asked.append((prompt_ids, sampling_params["max_tokens"]))
        n = min(3, sampling_params["max_tokens"])
        fields = {"min_global_steps": 4, "max_global_steps": 4}
        return TokenOutput(token_ids=[7] * n, log_probs=[-1.0] * n, extra_fields=fields)


DEMO = list(range(20, 30))


@pytest.mark.parametrize(
    ("start", "sampled"),
    [(None, 3), (Start(1, 4, 0.4), 3), (Start(1, 10, 1.0), 0), (Start(1, 0, 0.0), 3)],
)
@pytest.mark.parametrize("training", [True, False])
def test_a_rollout(start: Start | None, sampled: int, training: bool) -> None:
    server = Server()
    config = OmegaConf.create({"actor_rollout_ref": {"rollout": {"response_length": 16}}})
    agent = PrefixAgentLoop(SimpleNamespace(config=config), server)
    plan = PromptPlan({1: torch.tensor(DEMO, dtype=torch.int32).numpy()}, ((None, start),))
    given = {PROMPT_IDS: [1, 2], "session_id": 1, "global_steps": 5}
    if training:
        given[columns.PLAN] = json.loads(json.dumps(plan.plain(), default=lambda b: b.hex()))
        given[columns.PLAN]["demonstrations"] = plan.plain()["demonstrations"]
    known = DEMO[: start.length] if training and start else []
    sampled = 3 if not training else sampled
    made = asyncio.run(agent.run({"temperature": 1.0, "logprobs": True}, **given))
    assert made.response_ids == known + [7] * sampled
    assert made.response_logprobs == [0.0] * len(known) + [-1.0] * sampled
    assert server.asked == ([([1, 2, *known], 16 - len(known))] if sampled else [])
    made.reward_score, made.extra_fields["reward_extra_info"] = 0.5, {UNGRADED: 0.0}
    row = made.as_dict()
    assert row[columns.PREFIX] == len(known)
    assert bool(row[columns.WHOLE]) == (training and start is not None and start.length == 10)
    assert float(row[columns.REWARD]) == 0.5
    assert row["extra_fields"]["max_global_steps"] == 4
    made.extra_fields["reward_extra_info"] = {UNGRADED: 1.0}
    assert math.isnan(made.as_dict()[columns.REWARD])


class Grades(PrefixAgentLoop):
    """Rewards by the length of the prefix: what a rollout starts from decides."""

    async def grade(self, made: Any, row: Any) -> None:
        await asyncio.sleep(0.01 * (made.prefix_length % 3))
        if made.prefix_length == 99:
            raise ValueError("of the grader")
        made.reward_score = float(made.prefix_length >= row["enough"])
        made.extra_fields["reward_extra_info"] = {UNGRADED: float(row["enough"] < 0)}


def group(plan: PromptPlan, enough: int, uid: str = "a") -> list[Any]:
    """All rollouts of a prompt, side by side."""
    config = OmegaConf.create(
        {"actor_rollout_ref": {"rollout": {"response_length": 128}}, "reward": {"num_workers": 1}}
    )

    async def all_of_them() -> list[Any]:
        given = {PROMPT_IDS: [1], "global_steps": 1, "uid": uid, "enough": enough}
        given[columns.PLAN] = plan.plain()
        loops = [Grades(SimpleNamespace(config=config), Server()) for _ in plan.attempts[0]]
        runs = [x.run({}, **given, session_id=i) for i, x in enumerate(loops)]
        return await asyncio.gather(*runs, return_exceptions=True)

    return asyncio.run(all_of_them())


LONG = {0: torch.arange(100, dtype=torch.int32).numpy()}


def starts(*lengths: int) -> tuple[Start | None, ...]:
    return tuple(Start(0, n, n / 100) if n else None for n in lengths)


@pytest.mark.parametrize(
    ("enough", "prefixes", "attempts"),
    [
        (0, [0, 10, 20], [0, 0, 0]),  # solved at once
        (20, [0, 10, 20], [0, 0, 0]),  # one is enough
        (60, [50, 60, 20], [1, 1, 0]),  # the third row is the same in each attempt
        (99, [80, 90, 20], [2, 2, 0]),  # never, and no attempt is left
        (-1, [0, 10, 20], [0, 0, 0]),  # a group that nobody can grade does not fail
    ],
)
def test_a_group_that_fails_is_sampled_again(
    enough: int, prefixes: list[int], attempts: list[int]
) -> None:
    plan = PromptPlan(LONG, (starts(0, 10, 20), starts(50, 60, 20), starts(80, 90, 20)))
    made = group(plan, enough)
    assert [m.prefix_length for m in made] == prefixes
    assert [m.attempt for m in made] == attempts
    found, replaced = plan.learnt(attempts)
    assert [0 if s is None else s.length for s in found] == prefixes
    assert not any(replaced)


def test_a_demonstration_in_the_place_of_a_row_that_failed() -> None:
    plan = PromptPlan(LONG, (starts(0, 10), starts(100, 10)))
    made = group(plan, 1000)
    assert [(m.prefix_length, m.whole, m.attempt) for m in made] == [(100, True, 1), (10, False, 0)]
    found, replaced = plan.learnt([1, 0])
    assert (found, replaced) == (starts(0, 10), [True, False])


def test_nobody_waits_for_a_rollout_that_failed() -> None:
    plan = PromptPlan(LONG, (starts(0, 99, 20), starts(50, 60, 70)))
    made = group(plan, 1000, "b")
    assert [type(m) for m in made] == [RuntimeError, ValueError, RuntimeError]
    assert "another rollout of prompt b has failed" in str(made[0])


class Scripted(PrefixAgentLoop):
    """Rewards as they stand in a list, by the rollout's place; how often each was asked for."""

    asked: ClassVar[list[int]] = []

    async def grade(self, made: Any, row: Any) -> None:
        reward = row["rewards"][row["session_id"]]
        if reward == "broken":
            raise ValueError("of the grader")
        Scripted.asked.append(row["session_id"])
        await asyncio.sleep(0.01 * (row["session_id"] % 3))
        made.reward_score = reward
        made.extra_fields["reward_extra_info"] = {UNGRADED: float(math.isnan(reward))}


def waiting(rewards: list[Any], uid: str, lengths: int = 100) -> tuple[list[Any], Server]:
    """Eight rollouts of TRAPO's, with these rewards."""
    method, server = MethodConfig("trapo").resolve_method(8, 128), Server()
    rollout = {"response_length": 128, "n": 8, "custom": {KEY: {"method": "trapo"}}}
    config = OmegaConf.create({"actor_rollout_ref": {"rollout": rollout}})
    moment = RunPoint(8, seed=3, step=5, total_steps=20, max_completion_length=128)
    sources = [list(range(lengths))] if lengths else []
    plan = PromptPlan.of(method, {EXAMPLE: 7, IDS: sources}, moment)
    given = {PROMPT_IDS: [1], "global_steps": 6, "uid": uid, "rewards": rewards}

    async def all_of_them() -> list[Any]:
        given[columns.PLAN] = plan.plain()
        loops = [Scripted(SimpleNamespace(config=config), server) for _ in range(8)]
        runs = [x.run({}, **given, session_id=i) for i, x in enumerate(loops)]
        return await asyncio.gather(*runs, return_exceptions=True)

    Scripted.asked.clear()
    return asyncio.run(all_of_them()), server


@pytest.mark.parametrize(
    ("rewards", "given"),
    [
        ([0.0, 0.0, 1.0, 0.0, 1.0, 1.0, 1.0], [25, 25, 50, 100]),
        ([1.0] * 7, [0, 0, 0, 0]),
        ([1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0], [0, 0, 0, 100]),
        ([math.nan, 1.0, 0.0, math.nan, 1.0, 1.0, 1.0], [25, 25, 50, 100]),
    ],
)
def test_rollouts_wait_for_others(rewards: list[float], given: list[int]) -> None:
    """As on the TRL engine; those that wait bring nothing, and are sampled and graded once."""
    made, server = waiting([*rewards, 0.0], f"waits {rewards}")
    assert [m.prefix_length for m in made] == [0, 0, 0, 0, *given]
    assert [m.whole for m in made] == [False] * 7 + [given[3] == 100]
    assert [m.context for m in made] == [False] * 4 + [given[0] > 0] + [False] * 3
    assert [m.attempt for m in made] == [0] * 8
    assert [bool(m.as_dict()[columns.CONTEXT]) for m in made] == [m.context for m in made]
    assert len(server.asked) == 8 - (given[3] == 100)
    # What nobody waits for is graded by verl.
    assert sorted(Scripted.asked) == list(range(7))


def test_without_a_demonstration_rollouts_wait_for_nothing_but_their_turn() -> None:
    made, server = waiting([0.0] * 8, "none", lengths=0)
    assert [m.prefix_length for m in made] == [0] * 8
    assert len(server.asked) == 8


def test_nobody_waits_for_the_turn_of_a_rollout_that_failed() -> None:
    made, _ = waiting([0.0, "broken", *[0.0] * 6], "broken")
    assert [type(m) for m in made] == [RuntimeError, ValueError, *[RuntimeError] * 6]


@pytest.mark.parametrize("all_wrong", ["keep", "lengthen", "demonstration"])
def test_attempts_are_those_of_the_trl_engine(all_wrong: str) -> None:
    options: dict[str, Any] = {"all_wrong": all_wrong}
    if all_wrong == "lengthen":
        options["attempts"] = 2
    method = MethodConfig("prefix_rft", options).resolve_method(4, 64)
    moment = RunPoint(4, seed=3, step=5, total_steps=20, max_completion_length=64)
    example = {EXAMPLE: 7, IDS: [list(range(30)), list(range(40))]}
    plan = PromptPlan.of(method, example, moment)
    first = starts_of(method, moment.group(method, example))
    if all_wrong == "keep":
        assert plan.attempts == (first,)
        return
    rows = [RowPlan(7, 0, r) for r in range(4)]
    rows = [starting(p, example, s) for p, s in zip(rows, first, strict=True)]
    for attempt in range(1, len(plan.attempts)):
        again = [replanned(method, p, example, moment, attempt, all_wrong) for p in rows]
        rows = [old if new is None else new for old, new in zip(rows, again, strict=True)]
        assert plan.attempts[attempt] == tuple(p.start for p in rows)
    assert len(plan.attempts) == (3 if all_wrong == "lengthen" else 2)
    assert not PromptPlan.of(method, {EXAMPLE: 7, IDS: []}, moment).demonstrations


def test_a_plan_survives_the_queue() -> None:
    asked = Group(
        3, 2, (4, 5), own={"a": 1.0}, boundaries=((1, 2), (3,)), limits=(2, 4), rewards=(1.0, None)
    )
    starts = (Start(0, 2, 0.5, trained=False), None)
    plan = PromptPlan({0: torch.arange(4, dtype=torch.int32).numpy()}, (starts,), 0.5, asked)
    again = PromptPlan.read(plan.plain())
    assert again.known(0) == ([0, 1], False, True)
    assert again.known(1) == ([], False, False)
    assert (again.attempts, again.solved_above, again.asked) == ((starts,), 0.5, asked)


def test_own_rollouts_are_kept_and_start_later_rows() -> None:
    """As on the TRL engine: from the prompt alone; behind the demonstrations in a later plan."""
    method = MethodConfig("control", {"own": True, "plain": 1.0}).resolve_method(4, 64)
    example = {EXAMPLE: 7, IDS: [list(range(30))]}
    moment = RunPoint(4, seed=3, step=5, total_steps=20, max_completion_length=64)
    plan = PromptPlan.of(method, example, moment)
    assert plan.attempts == ((None,) * 4,)
    rows: Any = SimpleNamespace(
        filler_N=torch.tensor([False] * 4),
        group_N=torch.zeros(4, dtype=torch.long),
        attempt_N=torch.zeros(4, dtype=torch.long),
        reward_N=torch.tensor([1.0, 1.0, 0.0, math.nan]),
        prefix_N=torch.tensor([2, 0, 0, 0]),
        whole_N=torch.tensor([False] * 4),
    )
    state, keys = MethodState(), [f"u_{i}_0" for i in range(4)]
    told = learn(method, state, [plan] * 4, keys, rows, [[9], [5, 6, 7, 8], [1], [2]])
    assert state.traces == {7: (Trace((5, 6, 7, 8), True, 5),)}
    assert (told["store/examples"], told["store/tokens"]) == (1.0, 4.0)
    later = replace(moment, step=6, examples={7: {"u": 0.5}}, traces=state.traces)
    guided = MethodConfig("control", {"own": True, "plain": 0.0}).resolve_method(4, 64)
    again = PromptPlan.read(PromptPlan.of(guided, example, later).plain())
    assert again.attempts == ((Start(1, 2, 0.5),) * 4,)
    assert again.known(0) == ([5, 6], False, False)
    assert again.asked is not None
    assert again.asked.seen == (Seen(4, True, 5),)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0, 0.5], 2.0),
        ([1.0, None], 1.0),  # one that does not apply
        ([None, None], math.nan),
        (["error", 1.0], math.nan),  # one that could not judge
        ([], 0.0),  # where nobody reads any
    ],
)
def test_rewards_add_up_as_in_trl(values: list[Any], expected: float) -> None:
    verdicts = [
        Verdict("error" if v == "error" else "skipped" if v is None else "correct",
                None if v in ("error", None) else v)
        for v in values
    ]  # fmt: skip
    found = combined(verdicts, [1.0, 2.0])
    assert found == expected or (math.isnan(found) and math.isnan(expected))


# ---- rows of a step ----------------------------------------------------------------------------


def nested(rows: list[torch.Tensor]) -> torch.Tensor:
    return torch.nested.as_nested_tensor(rows, layout=torch.jagged)


LENGTHS = [5, 7, 6, 4, 8, 3, 5, 6]
PREFIXES = [3, 0, 6, 0, 0, 2, 0, 5]
WHOLE = [False, False, True, False, False, False, False, True]
REWARDS = [1.0, 0.0, 1.0, 0.0, 0.5, 0.0, math.nan, 1.0]


def rollouts(seed: int = 0) -> tuple[Any, list[dict[str, bool]]]:
    """Two groups of four rows, as verl's queue has them; the last row of all fills the batch."""
    g = torch.Generator().manual_seed(seed)
    tags = [{"is_padding": i == 8} for i in range(9)]
    lengths = [*LENGTHS, 1]
    data = TensorDict(
        {
            "prompts": nested([torch.ones(3, dtype=torch.int64)] * 9),
            "responses": nested([torch.randint(2, 9, (n,), generator=g) for n in lengths]),
            "response_mask": nested([torch.ones(n, dtype=torch.int64) for n in lengths]),
            "old_log_probs": nested(
                [-torch.rand(n, generator=g, dtype=torch.float64) for n in lengths]
            ),
            "ref_log_prob": nested(
                [-torch.rand(n, generator=g, dtype=torch.float64) for n in lengths]
            ),
            "entropy": nested([torch.rand(n, generator=g) for n in lengths]),
            columns.PREFIX: torch.tensor([*PREFIXES, PREFIXES[0]]),
            columns.WHOLE: torch.tensor([*WHOLE, WHOLE[0]]),
            columns.CONTEXT: torch.zeros(9, dtype=torch.bool),
            columns.REWARD: torch.tensor([*REWARDS, REWARDS[0]], dtype=torch.float64),
            columns.ATTEMPT: torch.tensor([0, 1, 0, 0, 0, 0, 0, 0, 1]),
        },
        batch_size=9,
    )
    data["uid"] = [*["a"] * 4, *["b"] * 4, "pad"]
    return data, tags


def add_graded(method: Any, data: Any, tags: Any) -> CreditedRows:
    rows = CreditedRows.of(method, data, tags, 16, (8,))
    data[columns.PREFIX], data[columns.WHOLE] = rows.prefix_N, rows.whole_N
    data[columns.REWARD], data[columns.GROUP] = rows.reward_N, rows.group_N
    data[columns.ADVANTAGE] = rows.advantage_SN.T.contiguous()
    data[columns.DROPPED], data[columns.TRUNCATED] = rows.dropped_N, rows.truncated_N
    return rows


@pytest.mark.parametrize("name", METHODS)
def test_both_engines_have_one_loss(name: str) -> None:
    """Rows as core takes them from the TRL engine, and as it takes them out of verl's columns."""
    method = MethodConfig(name, OPTIONS.get(name)).resolve_method(4, 16)
    data, tags = rollouts()
    if name == "trapo":
        data[columns.CONTEXT] = torch.arange(9) == 5
    add_graded(method, data, tags)
    told_MBT = taught_MB = None
    if method.teachers:
        data[columns.taught(0)] = torch.arange(9) % 3 != 1
        g = torch.Generator().manual_seed(4)
        told = [-torch.rand(n, generator=g, dtype=torch.float64) for n in [*LENGTHS, 1]]
        data[columns.said(0)] = nested(told)
        told_MBT = torch.nn.utils.rnn.pad_sequence(told[:8], batch_first=True)[None]
        taught_MB = data[columns.taught(0)][None, :8]
    T = max(LENGTHS)
    position = torch.arange(T)
    lengths = torch.tensor(LENGTHS)
    known = position < torch.tensor(PREFIXES)[:, None]
    whole = torch.tensor(WHOLE)[:, None]
    trl = Batch(
        tokens_BT=columns.padded(data["responses"])[:8],
        response_mask_BT=position < lengths[:, None],
        prefix_mask_BT=known & ~whole,
        demo_mask_BT=known & whole,
        old_logp_BT=columns.padded(data["old_log_probs"])[:8],
        reward_B=torch.tensor(REWARDS, dtype=torch.float64),
        group_B=torch.tensor([0] * 4 + [1] * 4),
        ref_logp_BT=columns.padded(data["ref_log_prob"])[:8],
        context_B=data[columns.CONTEXT][:8],
        truncated_B=columns.padded(data["responses"])[torch.arange(8), lengths - 1] != 8,
        dropped_B=data[columns.DROPPED][:8],
        teacher_logp_MBT=told_MBT,
        taught_MB=taught_MB,
    )
    g = torch.Generator().manual_seed(3)
    logps = [
        (-torch.rand(n, generator=g, dtype=torch.float64)).requires_grad_() for n in [*LENGTHS, 1]
    ]
    entropies = [
        torch.rand(n, generator=g, dtype=torch.float64).requires_grad_() for n in [*LENGTHS, 1]
    ]
    pad = torch.nn.utils.rnn.pad_sequence
    logp_BT, entropy_BT = (pad(x[:8], batch_first=True) for x in (logps, entropies))
    expected = loss(method, trl, logp_BT, entropy_BT, 2, 10).loss
    wanted = torch.autograd.grad(expected, logps[:8], allow_unused=True)

    step = columns.to_batch(data)
    entropy = pad([e.detach() for e in entropies], batch_first=True)
    targets = prepare(
        method, step, entropy, 2, 10, advantage_SB=columns.padded(data[columns.ADVANTAGE]).T
    )
    columns.put_targets(data, targets)
    data["at"] = torch.arange(9)
    total = torch.zeros((), dtype=torch.float64)
    for part in tu.chunk_tensordict(data, 3):  # micro-batches of three rows
        where = part["at"].tolist()
        full = {"log_probs": logps, "entropy": entropies}
        # verl's outputs hold prompts too; the position before a token predicts it.
        out = {
            k: nested([torch.nn.functional.pad(v[i], (2, 1)) for i in where])
            for k, v in full.items()
        }
        tu.assign_non_tensor(part, dp_size=2)
        value, metrics = method_loss(method, out, part)
        total = total + value / 2
        assert all(math.isfinite(m.aggregate()) for m in metrics.values())
    torch.testing.assert_close(total, expected, rtol=1e-10, atol=1e-12)
    found = torch.autograd.grad(total, logps, allow_unused=True)
    for a, b in zip(found, wanted, strict=False):
        zero = torch.zeros((), dtype=torch.float64)
        torch.testing.assert_close(zero if a is None else a, zero if b is None else b)
    assert found[8] is None or not found[8].any()  # a row that fills the batch


def test_where_no_stream_acts_there_is_a_gradient_of_0() -> None:
    """As verl goes back through every micro-batch; here the only teacher is heard no more."""
    method = MethodConfig("opd", {**TEACHER}).resolve_method(4, 16)
    ended = replace(method.streams[0], coefficient=linear(1.0, 0.0, 2))
    method = replace(method, streams=(ended,))
    data, tags = rollouts()
    add_graded(method, data, tags)
    batch = columns.to_batch(data)
    targets = prepare(
        method, batch, None, 2, 10, advantage_SB=columns.padded(data[columns.ADVANTAGE]).T
    )
    columns.put_targets(data, targets)
    logps = [torch.zeros(n + 3, dtype=torch.float64, requires_grad=True) for n in [*LENGTHS, 1]]
    tu.assign_non_tensor(data, dp_size=2)
    out = {"log_probs": nested(logps), "entropy": nested([x.detach() for x in logps])}
    value, _ = method_loss(method, out, data)
    assert value.item() == 0.0
    assert not any(g.any() for g in torch.autograd.grad(value, logps))


def test_a_prefix_that_is_context_is_not_kept() -> None:
    data, tags = rollouts()
    actor: Any = MethodActor.__new__(MethodActor)
    actor.method = MethodConfig("trapo", FOUR).resolve_method(4, 16)
    add_graded(actor.method, data, tags)
    for context, kept in ((9, 2), (5, 0)):
        data[columns.CONTEXT] = torch.arange(9) == context
        keep_BT = actor.keep(data, columns.to_batch(data))
        assert keep_BT.sum(1).tolist() == [3, 0, 0, 0, 0, kept, 0, 0, 0]


@pytest.mark.parametrize("source", ["current", "rollout"])
@pytest.mark.parametrize("moved", [False, True])
def test_later_updates_select_by_the_present_entropies(
    monkeypatch: pytest.MonkeyPatch, source: str, moved: bool
) -> None:
    """Two updates of one step; the policy may have moved before, where steps share a sync."""
    options = {"entropy_source": source, "entropy_scope": "row", "entropy_keep": 0.01}
    method = MethodConfig("prefix_rft", options).resolve_method(4, 16)
    data, tags = rollouts()
    add_graded(method, data, tags)
    tu.assign_non_tensor(data, **{STEP: 0, TOTAL: 4, MOVED: moved})
    kept: list[torch.Tensor] = []

    def update(self: Any, part: Any) -> None:
        kept.append(part[columns.TARGETS["keep"]])

    def both(self: Any, part: Any) -> None:
        self.train_batch(part.copy())
        self.train_batch(part.copy())

    monkeypatch.setattr(TrainingWorker, "train_batch", update)
    monkeypatch.setattr(TrainingWorker, "train_mini_batch", both)
    monkeypatch.setattr(MethodActor, "all_sum", lambda self, x: x)
    then = columns.padded(data["entropy"])
    monkeypatch.setattr(MethodActor, "entropy", lambda self, part: -then)
    actor: Any = MethodActor.__new__(MethodActor)
    actor.method, actor.seed = method, 0
    actor.train_mini_batch(data)
    highest, lowest = ([int(f(then[i, : PREFIXES[i]])) for i in (0, 5)]
                       for f in (torch.argmax, torch.argmin))  # fmt: skip
    assert highest != lowest
    found = [[int(k[i].nonzero()) for i in (0, 5)] for k in kept]
    later = lowest if source == "current" else highest
    assert found == [later if moved else highest, later]


def test_rows_that_fill_the_batch_take_no_part() -> None:
    method = MethodConfig("prefix_rft").resolve_method(4, 16)
    data, tags = rollouts()
    rows = add_graded(method, data, tags)
    assert rows.dropped_N.tolist() == [False] * 8 + [True]
    assert int(rows.prefix_N[8]) == 0
    assert math.isnan(rows.reward_N[8])
    found = rows.metrics(method)
    assert found["prefix/row_share"] == 2 / 8
    assert found["groups/all_wrong"] == 0
    assert "groups/resampled" not in found
    again = MethodConfig("bread").resolve_method(4, 16)
    assert add_graded(again, *rollouts()).metrics(again)["groups/resampled"] == 4 / 8
    assert found["prefix/length"] == 2.5
    assert found["rewards/ungraded"] == 1 / 8
    # By hand: rewards 1, 0 and 0 of group a; its whole demonstration, 1, was not planned.
    assert rows.advantage_SN[0][:2].tolist() == pytest.approx([2 / 3, -1 / 3])


def texts(rows: list[list[int]]) -> list[str]:
    return [str(ids) for ids in rows]


def test_rollouts_are_written_as_the_trl_engine_writes_them() -> None:
    method = MethodConfig("luffy").resolve_method(4, 16)
    data, tags = rollouts()
    add_graded(method, data, tags)
    said = {"exact": {"status": "correct", "reward": 1.0, "detail": "", "answer": None}}
    extra = [{"reward_extra_info": {VERDICTS: json.dumps(said)}}] * 4 + [{}] * 5
    data["extra_fields"] = NonTensorStack(*extra)
    data["index"] = NonTensorStack(*[7] * 4, *[3] * 4, 7)
    keys = [f"u_v_{i}_0" if i < 4 else f"w_{7 - i}_0" for i in range(8)] + ["pad_0_0"]
    lines = rollouts_of(method, data, keys, [i == 8 for i in range(9)], 5, texts)
    # By example, then by place; the second group's rows came in reverse.
    assert [(x["example"], x["group"], x["row"]) for x in lines] == [
        *((3, 0, r) for r in range(4)),
        *((7, 1, r) for r in range(4)),
    ]
    assert [x["prefix_length"] for x in lines] == PREFIXES[7:3:-1] + PREFIXES[:4]
    assert [x["demonstration"] for x in lines] == WHOLE[7:3:-1] + WHOLE[:4]
    assert [x["reward"] for x in lines[4:]] == REWARDS[:4]
    assert lines[1]["reward"] is None  # it could not be graded
    row = lines[4]
    assert row["completion_ids"] == data["responses"][0].tolist()
    assert row["prompt_ids"] == [1, 1, 1]
    assert row["text"] == str(row["completion_ids"])
    assert row["verdicts"] == said
    assert lines[0]["verdicts"] == {}
    # LUFFY's mean is over all rows of the group: 1, 0, 1 and 0.
    assert [x["advantage"] for x in lines[4:]] == [0.5, -0.5, 0.5, -0.5]
    assert [x["attempt"] for x in lines[4:]] == [0, 1, 0, 0]
    assert {x["step"] for x in lines} == {5}
    json.dumps(lines)


def test_verdicts_are_counted_whatever_they_are_worth() -> None:
    """Four rows and one that fills the batch; ``no answer`` has reward 0 and is told apart."""
    statuses = [("correct", "wrong"), ("no answer", "wrong"), ("no answer", "correct")]
    extras: list[dict[str, Any]] = []
    for math_status, format_status in [*statuses, ("timeout", "correct"), ("correct", "correct")]:
        said = {"math": {"status": math_status}, "format": {"status": format_status}}
        extras.append({"reward_extra_info": {VERDICTS: json.dumps(said)}})
    found = verdict_shares(extras, torch.tensor([False] * 4 + [True]))
    assert {k: v for k, v in found.items() if v} == {
        "verdicts/math/correct": 0.25,
        "verdicts/math/no answer": 0.5,
        "verdicts/math/timeout": 0.25,
        "verdicts/format/correct": 0.5,
        "verdicts/format/wrong": 0.5,
    }
    assert found["verdicts/math/wrong"] == 0.0
    assert verdict_shares([{}], torch.tensor([False])) == {}


def test_means_are_quotients_of_sums() -> None:
    metrics = {
        f"actor/{kind}{name.encode().hex()}": value
        for name, s, n in (("a/minimum", 3.0, 4.0), ("b/max", 0.0, 0.0))
        for kind, value in (("prefix_rft_sum/", s), ("prefix_rft_count/", n))
    }
    assert not any("max" in k or "min" in k for k in metrics)
    assert means(metrics) == {"a/minimum": 0.75}
    assert metrics == {}


@pytest.mark.parametrize("several", [False, True], ids=["one module", "pipeline stages"])
def test_an_actor_has_no_dropout(
    several: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ActorRolloutRefWorker, "init_model", lambda self: None)
    monkeypatch.setattr("torch.distributed.get_rank", lambda: 0)
    layers = [torch.nn.Dropout(0.1), torch.nn.Dropout(0.2)]
    module = layers if several else torch.nn.Sequential(*layers)
    worker: Any = MethodWorker.__new__(MethodWorker)
    worker.actor = SimpleNamespace(
        engine=SimpleNamespace(module=module), set_loss_fn=lambda loss_fn: None
    )
    rollout = {"custom": {KEY: {"method": "dr_grpo"}}, "n": 8, "response_length": 16}
    worker.config = OmegaConf.create({"rollout": rollout})
    worker.init_model()
    assert [layer.p for layer in layers] == [0.0, 0.0]
    assert [r.message.partition(":")[0] for r in caplog.records] == [
        "dropout is turned off (Dropout.p)"
    ]
