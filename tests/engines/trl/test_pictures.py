"""Rows with pictures: every forward sees them, and steps equal plain torch on unpadded rows."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
import torch
from datasets import Dataset, Image
from picture_runs import Steps, columns_of, rl, spread
from torch import Tensor
from transformers import LlavaForConditionalGeneration, ProcessorMixin, TrainerCallback
from two_gloo import launch

from prefix_rft import DemonstrationTrainer, PrefixRFTTrainer
from prefix_rft.data import DataError
from prefix_rft.data.pictures import asked
from prefix_rft.data.render import Renderer
from prefix_rft.engines.pictures import prompt_inputs
from prefix_rft.engines.sampling import SamplingSettings, generate
from prefix_rft.engines.trl.update.example_gradients import example_gradients, retained
from prefix_rft.evaluation.likelihood import likelihood
from prefix_rft.methods.registry import BUILT_IN, load
from prefix_rft.runs.rollouts import Rollout
from prefix_rft.support.errors import UserError
from second.step.formulas import prefix_rft
from second.step.update import Row, Update, relative_error, score
from tiny import make_config, make_imitation_config
from tiny_vision import (
    PATCHES,
    make_byte_tokenizer,
    make_llava,
    make_qwen2_5,
    make_qwen3,
    picture,
    picture_rows,
)

COUNTS = [0, 1, 2, 1, 0, 2]
MODELS = {"llava": make_llava, "qwen2.5": make_qwen2_5, "qwen3": make_qwen3}


@pytest.fixture(autouse=True)
def without_video(monkeypatch: pytest.MonkeyPatch) -> None:
    """Qwen's processors ask for one of videos, which needs torchvision; none is used here."""
    check = ProcessorMixin.check_argument_for_proper_class

    def lenient(self: Any, name: str, argument: Any) -> Any:
        return None if argument is None else check(self, name, argument)

    monkeypatch.setattr(ProcessorMixin, "check_argument_for_proper_class", lenient)


class Seeing:
    """A model that is given ids alone, and finds the pictures by the prompt that they begin with.

    Args:
        model: the model.
        pixels: the model's inputs of pictures, by the prompt's token ids.
    """

    def __init__(self, model: Any, pixels: dict[tuple[int, ...], dict[str, Tensor]]) -> None:
        self.model, self.pixels, self.parameters = model, pixels, model.parameters

    def __call__(self, input_ids: Tensor) -> Any:
        ids = tuple(input_ids[0].tolist())
        of = [p for p in self.pixels if ids[: len(p)] == p]
        assert len(of) == 1
        shown = dict(self.pixels[of[0]])
        if "image_grid_thw" in shown:
            kinds = (input_ids == self.model.config.image_token_id).int()
            shown["mm_token_type_ids"] = kinds
        return self.model(input_ids=input_ids, **shown)


def by_hand(processor: Any, rows: Dataset, files: str) -> dict[tuple[int, ...], dict[str, Tensor]]:
    """Prompt ids written token by token, with what the image processor makes of the files."""
    tokenizer = make_byte_tokenizer()
    ids: dict[str, int] = tokenizer.get_vocab()
    tokens = {"llava": PATCHES, "qwen2.5": 1, "qwen3": PATCHES}[files]
    place = [ids["<image>"]] * tokens
    if files != "llava":
        place = [ids["<vision>"], *place, ids["</vision>"]]
    found, number = {}, 0
    for row in rows:
        n = len(row["images"])
        text = [ids[c] for c in row["prompt"][0]["content"]]
        prompt = [ids["<user>"], *place * n, *text, ids["<end>"], ids["<model>"]]
        pictures = [picture(number + i) for i in range(n)]
        number += n
        made = processor.image_processor(images=pictures, return_tensors="pt") if n else {}
        found[tuple(prompt)] = dict(made)
    return found


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("parts", [1, pytest.param(2, marks=pytest.mark.slow), 4])
def test_loss_and_gradient_equal_plain_torch(tmp_path: Path, name: str, parts: int) -> None:
    rows = picture_rows(tmp_path, COUNTS)
    settings = {"per_device_train_batch_size": 24 // parts, "gradient_accumulation_steps": parts}
    trainer = rl(tmp_path, rows, MODELS[name], max_steps=2, learning_rate=1e-2, **settings)
    watched = Steps(trainer)
    trainer.train()
    pixels = by_hand(trainer.processing_class, rows, name)
    for weights, gradient, loss, step_rows in watched.steps:
        assert {r.kind for r in step_rows} == {"own", "hybrid"}
        model, _ = MODELS[name]()
        model.load_state_dict(weights)
        step = Update(Seeing(model, pixels), step_rows, step_rows, const=10.0)
        known = prefix_rft(step)
        assert loss == pytest.approx(known.item(), rel=1e-5, abs=1e-7)
        assert relative_error(gradient, step.gradient(known)) < 1e-5
        # The control: pictures that are mirrored.
        other = {
            p: {**x, "pixel_values": x["pixel_values"].flip(-1)} if x else x
            for p, x in pixels.items()
        }
        mirrored = Update(Seeing(model, other), step_rows, step_rows, const=10.0)
        assert relative_error(gradient, mirrored.gradient(prefix_rft(mirrored))) > 1e-3


@pytest.mark.slow
def test_two_processes_are_one(tmp_path: Path) -> None:
    """Each has a group; the pictures of one are none, or more than those of the other."""
    cases = ["0,2", "2,1"]
    for folder in (tmp_path, *(tmp_path / case for case in cases)):
        folder.mkdir(exist_ok=True)
    picture_rows(tmp_path, [3])  # all files
    _, ranks = launch("pictures_two_processes.py", tmp_path, cases)
    for case in cases:
        rows = picture_rows(tmp_path, [int(n) for n in case.split(",")])
        pixels = by_hand(make_llava()[1], rows, "llava")
        for one, other in zip(ranks[0][case], ranks[1][case], strict=True):
            weights, gradient, loss, _ = one
            both = [Row(**row) for rank in (one, other) for row in rank[3]]
            model, _ = make_llava()
            model.load_state_dict(weights)
            step = Update(Seeing(model, pixels), both, both, const=10.0)
            known = prefix_rft(step)
            assert (loss + other[2]) / 2 == pytest.approx(known.item(), rel=1e-5, abs=1e-7)
            assert relative_error(gradient, step.gradient(known)) < 1e-5
            assert relative_error(other[1], gradient) == 0.0


@pytest.mark.parametrize("counts", [[1, 0], [0, 1], [0, 0], [2, 2]])
def test_any_numbers_of_pictures_in_any_order(tmp_path: Path, counts: list[int]) -> None:
    """TRL looks at the first row alone, and takes no rows without pictures beside others."""
    rows = picture_rows(tmp_path, counts)
    trainer = rl(tmp_path, rows, max_steps=1, per_device_train_batch_size=8)
    trainer.train()
    rollouts = rollouts_in(tmp_path)
    assert [r.images for r in rollouts[::4]] == [[f"images[{i}]" for i in range(n)] for n in counts]
    for rollout in rollouts:
        count = counts[rollout.example or 0]
        assert rollout.prompt.count("<image>") == PATCHES * count
        assert "<image>" not in rollout.text
    written = (tmp_path / "rollouts" / "step_000000.jsonl").read_text()
    assert "pixel" not in written
    assert ".png" not in written


def rollouts_in(folder: Path, step: int = 0) -> list[Rollout]:
    lines = (folder / "rollouts" / f"step_{step:06d}.jsonl").read_text().splitlines()
    return [Rollout.read(json.loads(line), step) for line in lines]


def test_one_picture_in_a_column_of_its_own(tmp_path: Path) -> None:
    """As ``datasets`` has it: the column ``image``, decoded when it is read, or none."""
    files = columns_of(picture_rows(tmp_path, [1, 1, 0, 1]))
    cells = [names[0] if names else None for names in files.pop("images")]
    rows = Dataset.from_dict({**files, "image": cells}).cast_column("image", Image())
    seen: list[Any] = []

    def reward(completions: list[Any], prompts: list[Any], image: list[Any], **kw: Any) -> list:
        seen.extend(zip(prompts, image, strict=True))
        return spread(completions, ["3"] * len(completions))

    trainer = rl(tmp_path, rows, max_steps=1, per_device_train_batch_size=16, reward=reward)
    trainer.train()
    assert [r.images for r in rollouts_in(tmp_path)[::4]] == [["image"], ["image"], [], ["image"]]
    # A reward function is given prompts and columns as the dataset has them.
    assert {type(p[0]["content"]) for p, _ in seen} == {str}
    assert [x is None for _, x in seen[::4]] == [False, False, True, False]


FORWARDS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "likelihood": lambda m, p, row: likelihood(m, p, [{**row, "demonstration": ["it is 7"]}]),
    "sampled": lambda m, p, row: sampled(m, p, row),
}


def sampled(model: Any, processor: Any, row: Any) -> Any:
    render = Renderer(processor)
    ids, shown = prompt_inputs(render, asked(row))
    settings = SamplingSettings(render.eos_ids, 0, temperature=0.0)
    return generate(model, [ids], 12, settings, pictures=[shown])


@pytest.mark.parametrize("name", FORWARDS)
@pytest.mark.parametrize("family", MODELS)
def test_two_pictures_are_told_apart(tmp_path: Path, name: str, family: str) -> None:
    model, processor = MODELS[family]()
    rows = [{"prompt": [{"role": "user", "content": "?"}], "image": picture(i)} for i in (0, 1)]
    first, second = (FORWARDS[name](model.eval(), processor, row) for row in rows)
    again = FORWARDS[name](model, processor, rows[0])
    assert first == again
    assert first != second


def test_a_reference_and_a_retain_set_see_pictures(tmp_path: Path) -> None:
    rows = picture_rows(tmp_path, [1, 1])
    swapped = columns_of(rows) | {"images": rows["images"][::-1]}
    found = []
    for data in (rows, Dataset.from_dict(swapped)):
        model, processor = make_llava()
        path = tmp_path / f"{len(found)}.jsonl"
        data.to_json(path)
        render, weights = Renderer(processor), dict(model.named_parameters())
        kept = retained(render, str(path), 2, 32)
        found.append(example_gradients(model, render, kept, weights, "gradient")["lm_head.weight"])
    assert relative_error([found[0]], [found[1]]) > 1e-3
    model, _ = make_llava()
    model.save_pretrained(tmp_path / "model")  # a reference is loaded from where the policy is from
    here = partial(from_folder, tmp_path / "model")
    trainer = rl(tmp_path, rows, here, beta=0.5, max_steps=2, learning_rate=1e-2)
    watched = Steps(trainer)
    trainer.train()
    (first, *_), (second, gradient, _, step_rows) = watched.steps
    pixels = by_hand(trainer.processing_class, rows, "llava")
    reference, policy = make_llava()[0], make_llava()[0]
    reference.load_state_dict(first)
    policy.load_state_dict(second)

    def old() -> list[Tensor]:
        with torch.no_grad():
            return [score(Seeing(reference, pixels), row)[0] for row in step_rows]

    step = Update(Seeing(policy, pixels), step_rows, step_rows, const=10.0, ref=old)
    exact = step.gradient(prefix_rft(step, beta=0.5))
    assert relative_error(gradient, exact) < 1e-5
    assert relative_error(step.gradient(prefix_rft(step)), exact) > 1e-2


def from_folder(folder: Path) -> tuple[Any, Any]:
    return LlavaForConditionalGeneration.from_pretrained(folder), make_llava()[1]


class Demonstrations(TrainerCallback):
    """The gradient of a step of demonstrations."""

    def __init__(self) -> None:
        self.gradient: list[Tensor] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.gradient = [
            torch.zeros_like(p) if p.grad is None else p.grad.clone()
            for p in kwargs["model"].parameters()
        ]


def sft(folder: Path, rows: Dataset, make: Callable = make_llava, **settings: Any) -> Any:
    model, processor = make()
    quiet = {"max_steps": 1, "max_grad_norm": 1e9, "save_strategy": "no", "logging_steps": 1}
    args = make_imitation_config(folder, **{**quiet, **settings})
    return DemonstrationTrainer(model, args, train_dataset=rows, processing_class=processor)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("parts", [1, 3])
def test_imitation_equals_plain_torch(tmp_path: Path, name: str, parts: int) -> None:
    rows = picture_rows(tmp_path, COUNTS)
    sizes = {"per_device_train_batch_size": 6 // parts, "gradient_accumulation_steps": parts}
    trainer = sft(tmp_path, rows, MODELS[name], **sizes)
    model, processor = MODELS[name]()
    watched = Demonstrations()
    trainer.add_callback(watched)
    trainer.train()
    pixels = by_hand(processor, rows, name)
    texts = make_byte_tokenizer()
    made = [
        Row(list(p), [*texts(row["demonstration"])["input_ids"], 1], whole=True)
        for p, row in zip(pixels, rows, strict=True)
    ]
    step = Update(Seeing(model, pixels), made, made, const=1.0)
    loss = -torch.cat(step.lp).mean()
    assert relative_error(watched.gradient, step.gradient(loss)) < 1e-5
    assert trainer.state.log_history[0]["loss"] == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize("kind", [rl, sft])
def test_a_run_goes_on_to_the_bit(tmp_path: Path, kind: Callable) -> None:
    rows = picture_rows(tmp_path, [1, 0, 2, 1])
    saving = {"save_strategy": "steps", "save_steps": 1, "max_steps": 4}
    if kind is rl:  # in the middle of a generation, too
        saving |= {"gradient_accumulation_steps": 1, "steps_per_generation": 2}
    whole = kind(tmp_path / "whole", rows, **saving)
    whole.train()
    for step in (1, 2):
        shutil.copytree(tmp_path / "whole", tmp_path / str(step))
        again = kind(tmp_path / str(step), rows, **saving)
        again.train(resume_from_checkpoint=str(tmp_path / str(step) / f"checkpoint-{step}"))
        for (name, a), (_, b) in zip(
            whole.model.named_parameters(), again.model.named_parameters(), strict=True
        ):
            assert torch.equal(a, b), name
    others = picture_rows(tmp_path / "whole", [1, 1, 2, 1])
    other = kind(tmp_path / "2", others, **saving)
    with pytest.raises(UserError, match="other"):
        other.train(resume_from_checkpoint=str(tmp_path / "2" / "checkpoint-2"))


def test_a_mask_of_imitation_looks_at_pictures(tmp_path: Path) -> None:
    rows, masks = picture_rows(tmp_path, [1, 1, 2]), []
    swapped = Dataset.from_dict(columns_of(rows) | {"images": rows["images"][::-1]})
    for data in (rows, swapped):
        trainer = sft(tmp_path / "run", data, parameter_mask={"kind": "speft", "fraction": 0.3})
        trainer.train()
        masks.append(trainer.parameter_mask.masks)
    assert any(not masks[0][name].equal(masks[1][name]) for name in masks[0])


def test_another_template_of_a_processor_is_noticed(tmp_path: Path) -> None:
    rows, hashes = picture_rows(tmp_path, [1, 1]), []
    for more in ("", "!"):
        made = partial(with_template, more)
        hashes.append(rl(tmp_path, rows, made).made_of)
    assert [k for k in hashes[0] if hashes[0][k] != hashes[1][k]] == ["another chat template"]


def with_template(more: str) -> tuple[Any, Any]:
    model, processor = make_llava()
    processor.chat_template += more
    return model, processor


def test_texts_through_a_processor_are_as_through_a_tokenizer(tmp_path: Path) -> None:
    rows = picture_rows(tmp_path, [0, 0, 0, 0]).remove_columns(["images"])
    weights = []
    never = {"suppress_tokens": [make_byte_tokenizer().image_token_id]}  # TRL's, with a processor
    for with_processor in (True, False):
        model, processor = make_llava()
        tokenizer = processor.tokenizer
        tokenizer.chat_template = processor.chat_template
        trainer = PrefixRFTTrainer(
            model,
            spread,
            make_config(tmp_path, num_generations=4, learning_rate=1e-2, generation_kwargs=never),
            train_dataset=rows,
            processing_class=processor if with_processor else tokenizer,
        )
        trainer.train()
        weights.append(dict(trainer.model.named_parameters()))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def broken(folder: Path, rows: dict[str, Any]) -> str:
    """A picture that ends in its middle, which can be seen at its pixels alone."""
    path = Path(rows["images"][1][0])
    path.write_bytes(path.read_bytes()[:200])
    return "cannot be read as a picture"


def missing(folder: Path, rows: dict[str, Any]) -> str:
    """A file that is not there."""
    rows["images"][1] = [str(folder / "nowhere.png")]
    return "nowhere.png', does not exist"


def places(folder: Path, rows: dict[str, Any]) -> str:
    """More places than pictures."""
    content = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "1?"}]
    rows["prompt"] = [[{"role": "user", "content": content}]] * 4
    return "places for 2 pictures"


def both(folder: Path, rows: dict[str, Any]) -> str:
    """Both columns."""
    rows["image"] = [names[0] for names in rows["images"]]
    return "both 'image' and 'images'"


def text(folder: Path, rows: dict[str, Any]) -> str:
    """A text with a picture."""
    rows["prompt"] = ["1?"] * 4
    return "is a conversation, not a text"


@pytest.mark.parametrize("spoil", [broken, missing, places, both, text])
@pytest.mark.parametrize("kind", [rl, sft])
def test_what_is_wrong_with_a_picture_is_said(
    tmp_path: Path, kind: Callable, spoil: Callable
) -> None:
    rows = columns_of(picture_rows(tmp_path, [1, 1, 1, 1]))
    words = spoil(tmp_path, rows)
    with pytest.raises(DataError, match=words):
        kind(tmp_path / "run", Dataset.from_dict(rows), max_steps=2).train()


def test_a_demonstration_with_the_token_of_a_picture_is_dropped(tmp_path: Path) -> None:
    rows = columns_of(picture_rows(tmp_path, [1, 1, 1, 1]))
    rows["demonstration"][2] = "it is <image>"
    trainer = rl(tmp_path, Dataset.from_dict(rows), max_steps=1)
    assert "1 dropped: with a token inside that stands for a picture" in str(trainer.demonstrations)
    trainer.train()


def test_a_model_that_reads_none_is_refused(tmp_path: Path) -> None:
    rows, (model, processor) = picture_rows(tmp_path, [1, 1, 1, 1]), make_llava()
    processor.tokenizer.chat_template = processor.chat_template
    with pytest.raises(DataError, match="reads no pictures"):
        PrefixRFTTrainer(
            model,
            spread,
            make_config(tmp_path, num_generations=4),
            train_dataset=rows,
            processing_class=processor.tokenizer,
        )


METHODS = [name for name in BUILT_IN if load(name).samples]


def odd(completions: list[Any], **kwargs: Any) -> list[float]:
    """Right or wrong, about half and half."""
    return [float(crc32(c[0]["content"].encode()) % 2) for c in completions]


@pytest.mark.parametrize(
    "method",
    [m if m in ("luffy", "grpo") else pytest.param(m, marks=pytest.mark.slow) for m in METHODS],
)
def test_every_method_takes_pictures(tmp_path: Path, method: str) -> None:
    rows = picture_rows(tmp_path, COUNTS)
    model, _ = make_llava()
    model.save_pretrained(tmp_path / "model")
    here = partial(from_folder, tmp_path / "model")
    settings = {"method": method, "max_steps": 2, "per_device_train_batch_size": 12}
    trainer = rl(tmp_path, rows, here, odd, **settings)
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    trainer.train()
    moved = {n for n, p in trainer.model.named_parameters() if not torch.equal(p, before[n])}
    assert any(n.startswith("model.vision_tower") for n in moved)
