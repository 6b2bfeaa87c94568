"""A model that is named wrongly, or loaded with options that would be ignored."""

from pathlib import Path

import pytest
import torch

from prefix_rft.engines.models import load_configs, load_model, load_tokenizer
from prefix_rft.engines.packages import check_packages
from prefix_rft.engines.setup import configure
from prefix_rft.recipe.model_options import find_model, model_options
from prefix_rft.recipe.recipe import RecipeFile
from prefix_rft.support.errors import UserError
from tiny import make_config, make_model, make_rows, make_tokenizer


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tokenizer = make_tokenizer()
    for name in ("base", "models/base"):
        make_model(tokenizer).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    make_rows(4).to_json(tmp_path / "train.jsonl")
    (tmp_path / "recipe.yaml").write_text(
        "model: base\ntrain_data: train.jsonl\nreward: exact\nprompts_per_step: 2\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


MISTYPED = {
    "./bas": "model './bas' is no folder (did you mean 'base'?): give a folder or a Hub name",
    "bas/": "model 'bas/' is no folder (did you mean 'base'?)",
    "models/base/x": "model 'models/base/x' is no folder: give",
    "../nowhere/base": "model '../nowhere/base' is no folder: give",
    "train.jsonl": "model 'train.jsonl' is a file, no folder",
    "": "is no folder",
    "bas": "there is no such folder (did you mean 'base'?), and as a Hub name: ",
    "models/bas": "there is no such folder (did you mean 'models/base'?), and as a Hub name: ",
    "owner/something": "there is no such folder, and as a Hub name: ",
}


@pytest.mark.parametrize("name", MISTYPED)
def test_a_mistyped_folder_gets_the_nearest_one(name: str, folder: Path) -> None:
    for load in (load_tokenizer, load_configs, load_model):
        with pytest.raises(UserError) as refused:
            load(name)
        if name:
            assert MISTYPED[name] in str(refused.value)
        assert "\n" not in str(refused.value)


def test_a_gguf_is_no_model_to_train(folder: Path) -> None:
    """transformers reads one, and refuses to train it when everything else has been loaded."""
    (folder / "small").mkdir()
    for name in ("small.gguf", "small/small.gguf"):
        (folder / name).write_bytes(b"GGUF")
    for name in ("small.gguf", "small/small.gguf", "small"):
        with pytest.raises(UserError, match=rf"model '{name}' is GGUF.*that it was made of"):
            find_model(name, folder)
    (folder / "base/small.gguf").write_bytes(b"GGUF")
    assert find_model("base", folder) == str(folder / "base")


def test_a_recipe_elsewhere_is_told_what_stands_beside_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    recipe = RecipeFile.read(folder / "recipe.yaml", ["model=./bas"]).recipe()
    with pytest.raises(UserError, match="did you mean 'base'"):
        recipe.model_source()
    recipe = RecipeFile.read(folder / "recipe.yaml", ["model=bas"]).recipe()
    with pytest.raises(UserError, match="did you mean 'base'"):
        load_model(recipe.model_source(), recipe.folder)
    good = RecipeFile.read(folder / "recipe.yaml", ["model=./models/base/"]).recipe()
    assert Path(good.model_source()) == folder / "models/base"
    assert find_model("owner/name", folder) == "owner/name"


@pytest.mark.parametrize("name", ["bfloat16", "torch.bfloat16"])
def test_torch_dtype_is_dtype(name: str, folder: Path) -> None:
    recipe = RecipeFile.read("recipe.yaml", [f"model_init_kwargs={{torch_dtype: {name}}}"]).recipe()
    assert recipe.model_options == {"dtype": name}
    if "." not in name:
        model, _ = load_model(recipe.model_source(), **recipe.model_options)
        assert model.dtype is torch.bfloat16
    assert model_options({"dtype": "auto"}) == {"dtype": "auto"}
    assert model_options(None) == {}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("{torch_dtype: bfloat16, dtype: float32}", "which are one: leave one"),
        ("{dtype: float3}", "unknown dtype 'float3': give float32 or bfloat16"),
        ("{torch_dtype: bf16}", "unknown dtype 'bf16'"),
        ("{trust_remote_code: true}", "code that comes with a model is never run"),
        ("{use_safetensors: false}", "weights are read from safetensors alone"),
        ("{output_loading_info: true}", "the model alone is of use"),
        ("5", "'model_init_kwargs' must be a mapping, got 5"),
        ("bfloat16", "'model_init_kwargs' must be a mapping, got 'bfloat16'"),
    ],
)
def test_options_of_a_model_that_would_be_ignored(options: str, words: str, folder: Path) -> None:
    with pytest.raises(UserError) as refused:
        RecipeFile.read("recipe.yaml", [f"model_init_kwargs={options}"]).recipe()
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optim=adamw_8bit", "optim 'adamw_8bit' cannot be used: You need to install `bitsandb"),
        ("optim=adamw_bnb_8bit", "optim 'adamw_bnb_8bit' cannot be used: "),
        ("optim=galore_adamw", "optim 'galore_adamw' cannot be used: "),
        ("optim=schedule_free_adamw", "install `schedulefree`"),
        ("use_vllm=true", "use_vllm: true needs the package 'vllm': pip install"),
        ("use_liger_kernel=true", "needs the package 'liger_kernel': pip install liger-kernel"),
        ("model_init_kwargs.attn_implementation=flash_attention_2", "package 'flash_attn'"),
        ("model_init_kwargs.attn_implementation=flash_attention_3", "'flash_attn_interface'"),
        ("model_init_kwargs.attn_implementation=kernels-community/x", "package 'kernels'"),
        ("use_peft=true", "unknown recipe key 'use_peft'"),
        ("report_to=wandb", "tracker 'wandb' is not installed"),
        ("deepspeed=zero3.json", "trainer settings are refused: "),
    ],
)
def test_a_missing_package_is_named_before_anything_is_loaded(
    override: str, words: str, folder: Path
) -> None:
    with pytest.raises(UserError) as refused:
        configure("recipe.yaml", [override])
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("optim", ["adamw_torch", "adafactor", "sgd", "adagrad"])
def test_what_is_there_can_be_used(optim: str, tmp_path: Path) -> None:
    check_packages(make_config(tmp_path, optim=optim), {"attn_implementation": "sdpa"})


def test_another_library_that_is_missing_is_one_sentence(folder: Path) -> None:
    with pytest.raises(UserError, match="'base' cannot be loaded: Flash"):
        load_model("base", attn_implementation="flash_attention_2")
    with pytest.raises(UserError, match="'base' cannot be loaded: "):
        load_model("base", quantization_config={"load_in_4bit": True})
