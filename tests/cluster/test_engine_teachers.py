"""Teachers on verl's own worker, without Ray: each update against plain torch."""

import math
import os
import random
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("verl")

import torch
import verl_runs as cluster
from datasets import Dataset
from teacher_steps import nested
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefix_rft.cli import main
from prefix_rft.data.demonstrations import IDS
from prefix_rft.data.render import Renderer
from prefix_rft.engines.contexts import Contexts
from prefix_rft.engines.plan import RunPoint
from prefix_rft.engines.verl.columns import asked, taught
from prefix_rft.engines.verl.method_config import MethodConfig
from prefix_rft.engines.verl.prompt_plan import PromptPlan
from prefix_rft.engines.verl.teacher_prompts import TeacherPrompts
from second.step.teachers import FORMULAS
from second.step.update import Row, Update, score
from tiny import make_tokenizer

Case = dict[str, Any]
STEPS, ROWS, UPDATES = 2, 8, 2
GATHERED = ("actor_rollout_ref.actor.fsdp_config.reshard_after_forward=False",)
"""What a forward has gathered stays so."""
LORA = ("actor_rollout_ref.model.lora_rank=4", "actor_rollout_ref.model.lora_alpha=64")


def case(method: str, weights: str, name: str = "", **more: Any) -> Case:
    teacher: dict[str, Any] = {"weights": weights, "context": "demonstration", "column": None}
    if weights == "ema":
        teacher |= {"rate": 0.25, "every": 1}
    elif weights == "snapshot":
        teacher |= {"every": 2}
    if method in ("opd", "gats"):
        del teacher["column"]
    given = {"name": name or weights, "method": method, "weights": weights, "updates": UPDATES}
    return {**given, "options": {"teacher": teacher}, **more}


CASES = [
    case("rlsd", "ema", resume=True, more=GATHERED),
    case("opd", "snapshot", resume=True),
    case("sdar", "live"),
    case("opd", "frozen", resume=True, more=GATHERED),
    case("gats", "model"),
    case("rlsd", "adapter_off", more=LORA),
    case("sdar", "ema", "ema of an adapter", more=LORA),
    case("opd", "live", "nothing more", same=True),
]
NAMES = [c["name"] for c in CASES]


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("task") / "data"
    sizes = ["--train-rows", "12", "--test-rows", "4", "--valid-rows", "4"]
    assert main(["task", "countdown", str(folder), *sizes]) == 0
    torch.manual_seed(5)
    other = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(0.05 * torch.randn_like(p))
    other.save_pretrained(folder / "other")
    AutoTokenizer.from_pretrained(folder / "base").save_pretrained(folder / "other")
    return folder


def generation(vocabulary: int, rng: random.Random, same: bool) -> list[dict[str, Any]]:
    """Two groups of four rows; a third of them is not taught."""

    def ids(low: int, high: int) -> list[int]:
        return [rng.randrange(2, vocabulary) for _ in range(rng.randint(low, high))]

    prompts, rows = [ids(3, 6), ids(3, 6)], []
    for i in range(ROWS):
        prompt = prompts[i // 4]
        asked = prompt if same else ids(2, 5) + prompt if i % 3 else None
        reward = float(rng.random() < 0.5) if i % 4 else float(i // 4)
        completion = [*ids(2, 12), 1]
        rows.append({"prompt": prompt, "completion": completion, "asked": asked})
        rows[-1] |= {"reward": reward, "group": i // 4}
    return rows


def launch(task: Path, folder: Path, ranks: int) -> tuple[list[Case], list[dict[str, Any]]]:
    """What each process found, of all cases in one launch."""
    vocabulary = AutoModelForCausalLM.from_pretrained(task / "base").config.vocab_size
    rng, cases = random.Random(7), []
    for one in CASES:
        rows = [generation(vocabulary, rng, one.get("same", False)) for _ in range(STEPS)]
        options = dict(one["options"])
        if one["weights"] == "model":
            options = {"path": str(task / "other"), "reference": 1.0}
        cases.append({**one, "options": options, "rows": rows})
    torch.save(cases, folder / "cases.pt")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    here = Path(__file__).parent
    shared = {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(cluster.ROOT / "src"), str(here), str(here.parent)]),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    command = [sys.executable, str(here / "teacher_steps.py"), str(task), str(folder)]
    running = [
        subprocess.Popen(
            command,
            env={**os.environ, **shared, "RANK": str(r), "LOCAL_RANK": str(r)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for r in range(ranks)
    ]
    said = [p.communicate(timeout=600)[1] for p in running]
    assert all(p.returncode == 0 for p in running), "\n".join(x[-4000:] for x in said)
    found = [torch.load(folder / f"results_{r}.pt", weights_only=False) for r in range(ranks)]
    return cases, found


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(1, marks=pytest.mark.slow, id="one rank"),
        pytest.param(2, id="two ranks"),
    ],
)
def found(
    request: pytest.FixtureRequest, task: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[Case], list[dict[str, Any]]]:
    return launch(task, tmp_path_factory.mktemp("steps"), request.param)


def begun(result: Case) -> list[dict[str, torch.Tensor]]:
    """The policy before each update, and after the last."""
    return [w for step in result["steps"] for w in step["begun"]] + [result["last"]]


def taught_by(kind: str, policy: list[dict[str, torch.Tensor]], n: int) -> dict[str, torch.Tensor]:
    """The weights of a teacher in update n, from those of the policy before each."""
    if kind == "live":
        return policy[n]
    if kind == "snapshot":  # every 2
        return policy[n - n % 2]
    kept = policy[0]
    if kind == "ema":  # a quarter of the policy, before each update but the first
        for weights in policy[1 : n + 1]:
            kept = {k: 0.75 * v + 0.25 * weights[k] for k, v in kept.items()}
    return kept


@pytest.mark.parametrize("name", [n for n in NAMES if "adapter" not in n])
def test_an_update_is_its_formula(name: str, task: Path, found: Any) -> None:
    """Its loss, and the weights that it leaves; what the teacher says on the way."""
    cases, results = found
    one = next(c for c in cases if c["name"] == name)
    policy = begun(results[0][name])
    model, teacher, old = (
        AutoModelForCausalLM.from_pretrained(task / "base", dtype=torch.float32) for _ in range(3)
    )
    other = AutoModelForCausalLM.from_pretrained(task / "other", dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.01, eps=cluster.EPS)
    ranks = len(results)
    share = ROWS // ranks
    size = share // UPDATES
    for n in range(STEPS * UPDATES):
        step, u = divmod(n, UPDATES)
        given = one["rows"][step]
        rows = [
            Row(r["prompt"], r["completion"], reward=r["reward"], group=r["group"]) for r in given
        ]
        at = [r * share + u * size + i for r in range(ranks) for i in range(size)]
        model.load_state_dict(policy[n], strict=False)
        old.load_state_dict(policy[step * UPDATES], strict=False)
        teacher.load_state_dict(taught_by(one["weights"], policy, n), strict=False)
        tells = other if one["weights"] == "model" else teacher
        told: list[Any] = []
        with torch.no_grad():
            first = [score(old, rows[i])[0] for i in at]
            for i in at:
                behind = Row(given[i]["asked"] or [], given[i]["completion"])
                told.append(score(tells, behind)[0] if given[i]["asked"] else None)
        spoken = said(results, step, u, size, name)
        for i, q in zip(range(len(at)), told, strict=True):
            length = len(rows[at[i]].completion)
            torch.testing.assert_close(
                spoken[i][:length], torch.zeros(length) if q is None else q, atol=1e-5, rtol=1e-5
            )
        now = Update(model, [rows[i] for i in at], rows, const=48.0, old=lambda f=first: f)
        share_of = {"share": 0.5 * (1 - step / 50)} if one["method"] == "rlsd" else {}
        optimizer.zero_grad()
        loss = FORMULAS[one["method"]](now, told, **share_of)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        assert apart(model.state_dict(), policy[n + 1]) < 1e-5
        assert one.get("same") or apart(policy[n], policy[n + 1]) > 5e-3


def apart(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """The largest difference of two sets of weights."""
    return max(float((a[k] - v).abs().max()) for k, v in b.items())


def said(results: list[Any], step: int, u: int, size: int, name: str) -> list[torch.Tensor]:
    """What the teacher said of the rows of an update, rank by rank."""
    rows = []
    for result in results:
        of = result[name]["steps"][step]
        part = of["said"][u]
        rows += list(part if len(part) == size else part[u * size : (u + 1) * size])
    return rows


@pytest.mark.parametrize("name", ["frozen", "model", "adapter_off"])
def test_the_policy_is_as_it_was_once_a_teacher_has_spoken(name: str, found: Any) -> None:
    _, results = found
    assert all(step["undisturbed"] for r in results for step in r[name]["steps"])


@pytest.mark.parametrize("name", [c["name"] for c in CASES if c.get("resume")])
def test_killed_and_resumed_to_the_bit(name: str, found: Any) -> None:
    _, results = found
    for of in (r[name] for r in results):
        assert all(torch.equal(of["last"][k], v) for k, v in of["again"].items())
        assert all(torch.equal(of["kept"][k], v) for k, v in of["kept_again"].items())
        assert of["kept"].keys() == of["kept_again"].keys() != set()


def test_without_its_adapter_the_model_is_the_base(task: Path, found: Any) -> None:
    cases, results = found
    one = next(c for c in cases if c["name"] == "adapter_off")
    base = AutoModelForCausalLM.from_pretrained(task / "base", dtype=torch.float32)
    for step in range(STEPS):
        told = [x for r in results for x in r["adapter_off"]["steps"][step]["asked"]]
        for row, q in zip(one["rows"][step], told, strict=True):
            n = len(row["completion"])
            with torch.no_grad():
                said = score(base, Row(row["asked"] or [1], row["completion"]))[0]
            torch.testing.assert_close(
                q[:n], said if row["asked"] else torch.zeros(n), atol=1e-5, rtol=1e-5
            )
    first, last = begun(results[0]["adapter_off"])[:: STEPS * UPDATES]
    assert apart(last, {k: w for k, w in first.items() if "lora" in k}) > 5e-3


def test_of_an_adapter_only_its_weights_are_kept(found: Any) -> None:
    for result in found[1]:
        kept = result["ema of an adapter"]["kept"]
        assert len(kept) > 20
        assert all("lora" in k for k in kept)
        assert all(w.dtype == torch.float32 for w in result["ema"]["kept"].values())


def test_the_same_weights_and_context_leave_nothing(found: Any) -> None:
    for result in found[1]:
        for step in result["nothing more"]["steps"]:
            assert max(step["metrics"]["grad_norm"]) < 1e-6


# ---- prompts -------------------------------------------------------------------------------------

PROMPTS = [f"p{i}" for i in range(4)]
TEMPLATE = "a:{context};{prompt}"


def lesson(method: str, reads: dict[str, Any], step: int = 3, followed: Any = None) -> Any:
    """Of two groups of three rows and one row that fills the batch, behind prompts as texts."""
    tokenizer = make_tokenizer()
    demonstrations = [[tokenizer(f"d{i}e")["input_ids"]] for i in range(3)] + [[]]
    table = {"prompt": PROMPTS, IDS: demonstrations, "answer": list("wxyz")}
    teacher = {"template": TEMPLATE, "weights": "live", **reads}
    path = {"path": "org/teacher"} if method == "gats" else {}
    if method == "gats":
        teacher.pop("weights")
    resolved = MethodConfig(method, {**path, "teacher": teacher}).resolve_method(3, 16)
    contexts = Contexts(Renderer(tokenizer), Dataset.from_dict(table), {"teacher": 9})
    responses = [[5, 6], [7, 1], [8, 9, 1], [5], [6, 1], [7], [5]]
    data: Any = {"index": [1, 1, 1, 3, 3, 3, 1], "responses": nested(responses)}
    keys = ["u_2_0", "u_0_0", "u_1_0", "v_0_0", "v_1_0", "v_2_0", "fill_0_0"]
    rows: Any = SimpleNamespace(
        filler_N=torch.arange(7) == 6,
        group_N=torch.tensor([0, 0, 0, 1, 1, 1, 2]),
        attempt_N=torch.zeros(7, dtype=torch.long),
        reward_N=torch.tensor([1.0, 0.0, 1.0, 0.0, torch.nan, 0.0, torch.nan]),
        whole_N=torch.zeros(7, dtype=torch.bool),
    )
    moment = RunPoint(3, seed=0, step=step, total_steps=10, max_completion_length=16)
    plans = [PromptPlan({}, ((None,) * 3,))] * 7
    made = TeacherPrompts(resolved, contexts).lesson(
        data, keys, plans, rows, moment, followed or {}
    )
    if not made.heard:
        return made, None
    texts = [tokenizer.decode(ids.tolist()) for ids in made.columns[asked(0)].unbind()]
    taught_by = made.columns[taught(0)].tolist()
    return made, [x if t else None for x, t in zip(texts, taught_by, strict=True)]


def test_what_teachers_show() -> None:
    """As on the TRL engine, whose writer it is; a row that fills the batch is not taught."""
    demonstration = {"context": "demonstration", "column": None}
    assert lesson("sdar", demonstration)[1] == ["a:d1e;p1"] * 3 + [None] * 4
    column = {"context": "column", "column": "answer"}
    made, shown = lesson("sdar", column)
    assert shown == ["a:x;p1"] * 3 + ["a:z;p3"] * 3 + [None]
    assert made.metrics == {"gate/coefficient": 0.1, "teacher/too_long": 0.0}
    # The first solved other row by its place, not by where it stands in the batch.
    peer = {"context": "peer", "column": None}
    texts = make_tokenizer().decode([8, 9]), make_tokenizer().decode([5, 6])
    expected = [f"a:{texts[0]};p1", f"a:{texts[0]};p1", f"a:{texts[1]};p1"]
    assert lesson("sdar", peer)[1] == expected + [None] * 4
    wrong = {"context": "wrong", "column": None}
    seven, five = (make_tokenizer().decode([i]) for i in (7, 5))
    found = [f"a:{seven};p1", None, f"a:{seven};p1"]
    found += [f"a:{seven};p3", f"a:{five};p3", f"a:{five};p3", None]
    assert lesson("sdar", wrong)[1] == found
    long = {"context": "column", "column": "answer", "template": "a longer one: {context};{prompt}"}
    made, shown = lesson("sdar", long)
    assert shown == [None] * 7
    assert made.metrics["teacher/too_long"] == 1.0


def test_a_teacher_without_a_coefficient_is_not_asked() -> None:
    gats = {"context": "none"}
    assert lesson("gats", gats, followed={"teacher": (0.25,)})[0].metrics == {
        "teacher/coefficient": 0.75, "teacher/too_long": 0.0,
    }  # fmt: skip
    made, _ = lesson("gats", gats, followed={"teacher": (math.inf,)})
    assert (made.columns, made.heard) == ({}, ())
    assert made.metrics == {"teacher/coefficient": 0.0}
    rlsd = {"context": "column", "column": "answer"}
    assert lesson("rlsd", rlsd, step=49)[0].heard == (0,)
    assert lesson("rlsd", rlsd, step=50)[0].heard == ()
