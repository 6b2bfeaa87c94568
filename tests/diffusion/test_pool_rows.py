"""The pool, the order of rows, what is read of them and of a recipe, grids: without diffusers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from prefix_rft.diffusion.pictures import Shades, as_bytes, tiled, write_grid
from prefix_rft.diffusion.pool import Pool, stream
from prefix_rft.diffusion.recipe import read
from prefix_rft.diffusion.rows import order, read_rows, read_tensor
from prefix_rft.runs.pictures import cut_grids, grid_path, grids
from prefix_rft.support.errors import UserError

# ---- the pool -----------------------------------------------------------------------------------


def test_the_pool_grows_to_its_size_and_loses_the_oldest() -> None:
    pool = Pool(every=30, size=3)
    assert [pool.members(k) for k in range(5)] == [
        [0], [0, 30], [0, 30, 60], [30, 60, 90], [60, 90, 120],
    ]  # fmt: skip
    assert Pool(30, 3, "first").members(4) == [0]
    assert Pool(30, 3, "latest").members(4) == [120]
    assert Pool().members(7) == [30, 60, 90, 120, 150, 180, 210]


def test_draws_are_those_of_the_seed() -> None:
    """The same in any order and on any day; the numbers themselves are torch's generator's."""
    pool = Pool(every=30, size=3)
    drawn = [pool.draw(k, seed=0) for k in range(8)]
    assert drawn == [0, 30, 0, 60, 90, 150, 180, 150]
    assert [pool.draw(k, seed=0) for k in reversed(range(8))] == drawn[::-1]
    assert [pool.draw(k, seed=1) for k in range(8)] != drawn


def test_draws_are_uniform() -> None:
    pool = Pool(every=1, size=3)
    counts = dict.fromkeys(range(3), 0)
    for seed in range(600):
        counts[pool.draw(2, seed)] += 1
    # Binomial(600, 1/3): standard deviation 11.5; four of them.
    assert all(abs(c - 200) < 46 for c in counts.values())


@pytest.mark.parametrize("source", ["uniform", "first", "latest"])
def test_a_run_keeps_what_it_may_draw_now_or_one_checkpoint_back(source: str) -> None:
    pool = Pool(every=4, size=2, source=source)
    there = {0}
    for step in (4, 8, 12, 14):  # the last one at the end of a run, in the middle of a stage
        there = {s for s in there | {step} if s in pool.kept(step)}
        for back in (step, (step - 1) // 4 * 4):
            assert {back, *pool.members(back // 4)} <= there
    assert len(there) <= 5


def test_sources_of_chance_do_not_touch_one_another() -> None:
    first = torch.randn(3, generator=stream(0, "noise", 1))
    assert torch.equal(first, torch.randn(3, generator=stream(0, "noise", 1)))
    for other in (stream(0, "noise", 2), stream(0, "sample", 1), stream(1, "noise", 1)):
        assert not torch.equal(first, torch.randn(3, generator=other))


# ---- rows ---------------------------------------------------------------------------------------


def test_every_epoch_has_all_rows_once_however_it_is_cut() -> None:
    whole = order(seed=3, count=5, start=0, batch=20)
    assert [sorted(whole[i : i + 5]) for i in range(0, 20, 5)] == [list(range(5))] * 4
    assert whole[:5] != whole[5:10]
    assert [x for start in range(0, 18, 3) for x in order(3, 5, start, 3)] == whole[:18]
    assert order(3, 2, 0, 7)[:6].count(0) == 3  # a batch larger than the data


def write_rows(folder: Path, rows: list[Any]) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def test_files_of_three_kinds(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 255], [51, 204]], np.uint8)).save(tmp_path / "a.png")
    colour = np.zeros((2, 2, 3), np.uint8)
    colour[..., 2] = 255
    Image.fromarray(colour).save(tmp_path / "b.png")
    np.save(tmp_path / "c.npy", np.full((4, 3, 2, 2), 0.25, np.float64))
    save_file({"x": torch.ones(1, 2, 2).bfloat16()}, tmp_path / "d.safetensors")
    grey, blue, video, half = (
        read_tensor(tmp_path / n, n) for n in ("a.png", "b.png", "c.npy", "d.safetensors")
    )
    torch.testing.assert_close(grey, torch.tensor([[[-1.0, 1.0], [-0.6, 0.6]]]))
    assert blue[:, 0, 0].tolist() == [-1.0, -1.0, 1.0]
    assert (video.shape, video.dtype) == ((4, 3, 2, 2), torch.float32)
    assert half.dtype == torch.float32


def test_a_batch(tmp_path: Path) -> None:
    for i in range(3):
        np.save(tmp_path / f"{i}.npy", np.full((1, 2, 2), float(i), np.float32))
        np.save(tmp_path / f"e{i}.npy", np.full((5, 4), float(i), np.float32))
    rows = [{"image": f"{i}.npy", "loser": f"{2 - i}.npy", "condition": i} for i in range(3)]
    labels = read_rows(write_rows(tmp_path, rows), losers=True)
    batch = labels.batch([2, 0])
    assert batch.winner[:, 0, 0, 0].tolist() == [2, 0]
    assert batch.loser is not None
    assert batch.loser[:, 0, 0, 0].tolist() == [0, 2]
    assert batch.condition is not None
    assert batch.condition.tolist() == [2, 0]
    assert read_rows(labels.path, losers=False).batch([0]).loser is None
    with pytest.raises(UserError, match="row 3: condition 2 is no class of the model, which has 0"):
        labels.check_labels(2)
    rows = [{"image": "0.npy", "condition": f"e{i}.npy"} for i in range(3)]
    told = read_rows(write_rows(tmp_path, rows), losers=False).batch([0, 2]).condition
    assert told is not None
    assert told.shape == (2, 5, 4)


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("was-run"),))


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("x.npy", lambda p: np.save(p, np.array([Hostile()])), "cannot be read"),
        ("x.npy", lambda p: p.write_bytes(b"\x93NUMPY broken"), "cannot be read"),
        ("x.npy", lambda p: np.save(p, np.ones((1, 2, 2), np.int64)), "torch.int64: save it as fl"),
        ("x.npy", lambda p: np.save(p, np.full((1, 2, 2), np.nan)), "a number that is not finite"),
        ("x.png", lambda p: p.write_bytes(b"GIF89a"), "cannot be read"),
        ("x.png", lambda p: Image.new("RGBA", (2, 2)).save(p), "of mode RGBA: save it as grey"),
        ("x.safetensors", lambda p: p.write_bytes(b"no"), "cannot be read"),
        ("x.safetensors", lambda p: save_file({}, p), "has 0 tensors: save one alone"),
    ],
)
def test_files_that_cannot_be_used(
    tmp_path: Path, name: str, make: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where code in a file would leave its mark
    make(tmp_path / name)
    rows = read_rows(write_rows(tmp_path, [{"image": name}]), losers=False)
    with pytest.raises(UserError, match=rf"row 1, image '{name}' .*{message}"):
        rows.batch([0])
    assert not Path("was-run").exists()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "has no rows"),
        ([3], "row 1 is no mapping"),
        ([{"picture": "a.npy"}], "row 1: it has no 'image': give the path"),
        ([{"image": "a.npy"}, {"image": "b.npy"}], "row 2, image 'b.npy' does not exist"),
        ([{"image": "a.gif"}], "row 1, image 'a.gif' must end in .png, .npy, .safetensors"),
        ([{"image": "a.npy", "condition": True}], "row 1: 'condition' is True: give the number"),
        ([{"image": "a.npy", "condition": "e.npy"}], "row 1, condition 'e.npy' does not exist"),
        ([{"image": "a.npy", "condition": 1}, {"image": "a.npy"}], "give all the same"),
    ],
)
def test_rows_that_cannot_be_used(tmp_path: Path, rows: list[Any], message: str) -> None:
    np.save(tmp_path / "a.npy", np.ones((1, 2, 2), np.float32))
    with pytest.raises(UserError, match=message):
        read_rows(write_rows(tmp_path, rows), losers=False)


def test_more_rows_that_cannot_be_used(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((1, 2, 2), np.float32))
    np.save(tmp_path / "b.npy", np.ones((1, 2, 3), np.float32))
    path = write_rows(tmp_path, [{"image": "a.npy"}, {"image": "b.npy"}])
    with pytest.raises(UserError, match="row 1: method dpo needs pairs, and it has no 'loser'"):
        read_rows(path, losers=True)
    with pytest.raises(UserError, match=r"row 2, image 'b.npy' has the shape \(1, 2, 3\), that of"):
        read_rows(path, losers=False).batch([0, 1])
    path.write_text('{"image": "a.npy"\n')
    with pytest.raises(UserError, match="row 1 is no JSON"):
        read_rows(path, losers=False)
    with pytest.raises(UserError, match="does not exist: give a file of jsonl rows"):
        read_rows(tmp_path / "none.jsonl", losers=False)


# ---- recipes ------------------------------------------------------------------------------------

LEAST = {"model": "base", "train_data": "rows.jsonl", "learning_rate": 1e-4}


def recipe_file(folder: Path, **keys: Any) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(json.dumps({**LEAST, **keys}))
    return path


def test_what_each_method_has_by_default(tmp_path: Path) -> None:
    path = recipe_file(tmp_path)
    sspo = read(path)
    assert (sspo.beta, sspo.flip, sspo.shared_noise) == (2000.0, "sign", True)
    assert sspo.checkpoints == Pool(30, 7, "uniform")
    assert read(path, ["reference=latest"]).checkpoints == Pool(30, 1, "latest")
    dpo = read(path, ["method=dpo"])
    assert (dpo.flip, dpo.reference, dpo.checkpoints) == (None, None, Pool(30, 1, "first"))
    assert "flip" not in dpo.resolved()
    assert read(path, ["method=sft"]).beta is None
    assert sspo.resolved()["command"] == "diffusion"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"methods": "sft"}, "unknown key of a diffusion recipe 'methods': did you mean 'method'"),
        ({"method": "sso"}, "unknown value of recipe key 'method' 'sso': did you mean"),
        ({"flip": "plus"}, "unknown value of recipe key 'flip' 'plus'"),
        ({"method": "sft", "beta": 10}, "'beta' has no effect with method: sft"),
        ({"method": "dpo", "flip": "sign"}, "'flip' has no effect with method: dpo"),
        ({"method": "dpo", "pool": 3}, "'pool' has no effect without method: sspo, reference"),
        ({"reference": "first", "pool": 3}, "'pool' has no effect without method: sspo, reference"),
        ({"max_steps": 0}, "recipe key 'max_steps' must be at least 1, got 0"),
        ({"batch_size": 2.5}, "'batch_size' must be a whole number"),
        ({"beta": -1}, "'beta' must be above 0, got -1"),
        ({"learning_rate": 0}, "'learning_rate' must be above 0"),
        ({"name": "a/b"}, "'name' is the name of a folder"),
    ],
)
def test_recipes_that_are_refused(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(recipe_file(tmp_path, **keys))


def test_what_a_recipe_needs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs the key 'learning_rate'"):
        read(recipe_file(tmp_path), ["~learning_rate"])


# ---- grids --------------------------------------------------------------------------------------


def test_pictures_as_bytes() -> None:
    x = torch.tensor([-3.0, -1.0, 0.0, 1.0]).view(1, 1, 2, 2)
    assert as_bytes(x, Shades(-1, 1)).flatten().tolist() == [0, 0, 128, 255]
    assert Shades.of(x) == Shades(-3, 1)
    assert Shades.of(torch.zeros(2)) == Shades(0, 1)
    video = torch.arange(5.0).view(1, 1, 5, 1, 1).expand(1, 4, 5, 2, 2)
    assert as_bytes(video, Shades(0, 4)).shape == (1, 2, 2, 3)
    assert as_bytes(video, Shades(0, 4)).unique().tolist() == [128]  # frame 2 of 0 to 4
    assert as_bytes(video[:, :2], Shades(0, 4)).shape == (1, 2, 2, 1)


def test_a_grid_is_square_and_enlarged() -> None:
    page = tiled(torch.arange(5).byte().view(5, 1, 1, 1).expand(5, 8, 8, 1))
    assert page.shape == (2 * 50 - 2, 3 * 50 - 2, 1)  # 8 pixels become 48, with gaps of 2
    assert (page[0, 0], page[49 + 1, 0], page[48, 0], page[-1, -1]) == (0, 3, 128, 128)
    assert tiled(torch.zeros(1, 50, 60, 3).byte()).shape == (50, 60, 3)


def test_grids_are_found_in_their_order(tmp_path: Path) -> None:
    for step in (None, 30, 0, 120):
        write_grid(grid_path(tmp_path, step), torch.zeros(2, 3, 8, 8), Shades(0, 1))
    assert [g.step for g in grids(tmp_path)] == [None, 0, 30, 120]
    with Image.open(grid_path(tmp_path, 30)) as picture:
        assert (picture.size, picture.mode) == ((98, 48), "RGB")
    cut_grids(tmp_path, 30)
    assert [g.step for g in grids(tmp_path)] == [None, 0, 30]
    grid_path(tmp_path, 0).write_bytes(b"GIF89a")
    with pytest.raises(UserError, match="is damaged: it is no PNG"):
        grids(tmp_path)[1].png()
