"""``prefix-rft show``: order, filters, paging, and words of models that would rather command."""

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from tokenizers import Tokenizer, decoders, models

from prefix_rft import show
from prefix_rft.cli import main
from prefix_rft.rewards import STATUSES
from prefix_rft.runs.reader import RunFolder
from prefix_rft.runs.rollouts import OLDER, Rollout
from prefix_rft.show import run_show
from prefix_rft.show.groups import Filters, find, load, read_range
from prefix_rft.show.view import GREEN, SELECTED, UNMARKED, YELLOW, styled

Row = dict[str, Any]
WORDS = ["a", "b", "c", "d", "e", "f"]


def row(group: int, number: int, reward: float | None, **changes: Any) -> Row:
    """A row whose text is ``a b c d``; with a prefix if ``prefix_length`` is given."""
    status = {None: "timeout", 1.0: "correct"}.get(reward, "wrong")
    return {
        "group": group,
        "row": number,
        "example": 10 + group,
        "prompt_ids": [0],
        "completion_ids": [0, 1, 2, 3],
        "prefix_length": 0,
        "demonstration": False,
        "attempt": 0,
        "prompt": f"question {group}",
        "text": "a b c d",
        "reward": reward,
        "verdicts": {"math": {"status": status, "reward": reward, "detail": ""}},
        "advantage": 0.0,
        "truncated": False,
        **changes,
    }


def make_run(path: Path, steps: dict[int, list[Row]], **trainer: Any) -> Path:
    (path / "rollouts").mkdir(parents=True)
    recipe = {"method": {"name": "prefix_rft"}, "trainer": trainer or {"log_rollouts": True}}
    (path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    for step, rows in steps.items():
        text = "".join(json.dumps({"step": step, **r}) + "\n" for r in rows)
        (path / f"rollouts/step_{step:06d}.jsonl").write_text(text)
    return path


def add_tokenizer(path: Path) -> None:
    (path / "model").mkdir()
    vocab = {w: i for i, w in enumerate([*WORDS, "<unk>"])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.save(str(path / "model/tokenizer.json"))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Means of the on-policy rows: step 3: 0.5 and none; step 7: 0 and 0.5; step 8: 1."""
    return make_run(
        tmp_path / "run",
        {
            3: [
                row(0, 0, 1.0, prefix_length=2),
                row(0, 1, 0.0),
                row(0, 2, 1.0),
                row(1, 0, 0.0, prefix_length=3),
                row(1, 1, None),
            ],
            7: [
                row(0, 0, 1.0, prefix_length=1),
                row(0, 1, 0.0),
                row(1, 0, 0.0),
                row(1, 1, 1.0),
                row(1, 2, None),
            ],
            8: [row(0, 0, 1.0, demonstration=True, prefix_length=4), row(0, 1, 1.0)],
        },
    )


def shown(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(["show", *argv]) == 0
    return capsys.readouterr().out


def order(text: str) -> list[tuple[int, int]]:
    return [(int(s), int(g)) for s, g in re.findall(r"step (\d+)  group (\d+)", text)]


def test_the_worst_group_comes_first(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By on-policy rows, the later of equals first; what has no on-policy reward comes last."""
    assert order(shown(capsys, str(run))) == [(7, 0), (7, 1), (3, 0), (8, 0), (3, 1)]
    text = shown(capsys, str(run), "--best")
    assert text.startswith("run: 5 groups, best first\n")
    assert order(text) == [(8, 0), (7, 1), (3, 0), (7, 0), (3, 1)]


def test_a_group_in_plain_text(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, str(run), "--step", "3", "--limit", "1")
    assert "\x1b" not in text
    assert text.splitlines() == [
        "run: 2 groups, worst first, 1 of them shown (--limit)",
        show.UNMARKED,
        "",
        "1 of 1  step 3  group 0  example 10  solved 1 of 2 on-policy rows  mean reward 0.500",
        "  │ question 0",
        "row 0  hybrid     reward 1.000  advantage +0.000  prefix 2 of 4 tokens  correct",
        "  │ a b c d",
        "row 1  on-policy  reward 0.000  advantage +0.000  4 tokens  wrong",
        "  │ a b c d",
        "row 2  on-policy  reward 1.000  advantage +0.000  4 tokens  correct",
        "  │ a b c d",
    ]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--step", "7"], [(7, 0), (7, 1)]),
        (["--step", "4-8"], [(7, 0), (7, 1), (8, 0)]),
        (["--step", "8-"], [(8, 0)]),
        (["--verdict", "timeout"], [(7, 1), (3, 1)]),
        (["--prefix", "1-"], [(7, 0), (3, 0), (3, 1)]),
        (["--prefix", "2-3"], [(3, 0), (3, 1)]),
        (["--prefix", "0"], [(7, 1), (8, 0)]),  # a whole demonstration is no prefix
        (["--prefix", "3", "--verdict", "timeout"], [(3, 1)]),
        (["--limit", "2"], [(7, 0), (7, 1)]),
    ],
)
def test_filters(
    options: list[str],
    expected: list[tuple[int, int]],
    run: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert order(shown(capsys, str(run), *options)) == expected


def test_one_of_several_prefixes_is_enough(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [row(0, 0, 1.0, prefix_length=1), row(0, 1, 1.0, prefix_length=3)]
    path = str(make_run(tmp_path / "r", {0: rows}))
    assert order(shown(capsys, path, "--prefix", "3")) == [(0, 0)]


def test_solved_is_what_the_first_grader_says_that_applies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def graded(*found: str) -> dict[str, Row]:
        return {f"grader{n}": {"status": s, "detail": ""} for n, s in enumerate(found)}

    verdicts = [graded("skipped", "correct"), graded("wrong", "correct"), graded("skipped")]
    rows = [row(0, n, 0.5, verdicts=v) for n, v in enumerate(verdicts)]
    assert "solved 1 of 3 on-policy rows" in shown(capsys, str(make_run(tmp_path / "r", {0: rows})))


def test_a_prompt_is_shown_where_it_changes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Resampled rows may have another."""
    rows = [row(0, n, 0.0, prompt=p) for n, p in enumerate(["one?", "one?", "two?"])]
    text = shown(capsys, str(make_run(tmp_path / "r", {0: rows})))
    assert re.findall(r"^row \d|\w+\?$", text, re.MULTILINE) == [
        *("one?", "row 0", "row 1"),
        *("two?", "row 2"),
    ]


def test_rows_of_the_verdict_come_first(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, str(run), "--verdict", "timeout", "--step", "7")
    assert re.findall(r"^row (\d)", text, re.MULTILINE) == ["2", "0", "1"]


def test_what_a_row_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verdicts = {
        "math": {"status": "no answer", "reward": None, "detail": "no box\nat all"},
        "format": {"status": "correct", "reward": 1.0, "detail": ""},
    }
    rows = [
        row(0, 0, None, verdicts=verdicts, advantage=None, truncated=True, attempt=2),
        row(0, 1, 0.0, demonstration=True, prefix_length=4, advantage=None),
    ]
    text = shown(capsys, str(make_run(tmp_path / "r", {0: rows})))
    head = "row 0  on-policy  no reward  advantage known at the update only  4 tokens  attempt 3"
    assert f"{head}  truncated  math no answer: no box↵at all  format correct\n" in text
    assert "row 1  demonstration  reward 0.000  4 tokens  wrong\n" in text
    assert "solved 0 of 1 on-policy row  none has a reward\n" in text


def test_the_prefix_is_marked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its end, and those of its tokens that keep their advantage, where that was written."""
    rows = [row(0, 0, 1.0, prefix_length=3), row(0, 1, 1.0, prefix_length=1), row(0, 2, 1.0)]
    path = make_run(tmp_path / "r", {0: rows})
    add_tokenizer(path)
    (path / "rollouts/kept_000000.jsonl").write_text('{"group": 0, "row": 0, "kept": [1]}\n')
    text = shown(capsys, str(path))
    assert "prefix 3 of 4 tokens, 1 kept  correct\n  │ a« b» c┃ d\n" in text
    assert "prefix 1 of 4 tokens  correct\n  │ a┃ b c d\n" in text
    assert text.endswith("4 tokens  correct\n  │ a b c d\n")


def test_marks_never_split_a_character() -> None:
    """The two bytes of é are two tokens: the character belongs to the part that ends it."""
    vocab = {"<0x61>": 0, "<0xC3>": 1, "<0xA9>": 2, "a": 3}
    tokenizer = Tokenizer(models.BPE(vocab, [], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    ids = [0, 1, 2, 3, 3, 3, 3, 3]
    line = row(0, 0, 1.0, completion_ids=ids, text="aéaaaaa", prefix_length=2)
    assert styled(tokenizer, Rollout.read(line, kept=frozenset({1, 5}))) == [
        ("a", GREEN),
        ("«»", SELECTED),
        ("┃", "bold"),
        ("éaaaaa", YELLOW),
    ]


def test_a_prefix_that_is_the_whole_row_ends_nowhere() -> None:
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>"))
    one = Rollout.read(row(0, 0, 1.0, completion_ids=[0, 0], text="a a", prefix_length=2))
    assert styled(tokenizer, one) == [("a a", GREEN)]


def test_colours_of_prefix_and_sample(run: Path) -> None:
    """As `inspect` has them: green and yellow."""
    add_tokenizer(run)
    file = io.StringIO()
    console = Console(file=file, width=100, force_terminal=True, color_system="standard")
    run_show(console, str(run), step="7", limit=1)
    assert "\x1b[32ma\x1b[0m\x1b[1m┃\x1b[0m\x1b[33m b c d\x1b[0m\n" in file.getvalue()


@pytest.mark.parametrize("text", ["a b", "a b x d", ""])
def test_the_text_counts_where_its_tokens_say_something_else(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = [0, 1, 2, 3, 4, 5, 0, 1, 2]
    bad = row(0, 0, 1.0, prefix_length=3, completion_ids=ids, text=text)
    path = make_run(tmp_path / "r", {0: [bad]})
    add_tokenizer(path)
    assert shown(capsys, str(path)).endswith(f"correct\n{UNMARKED}\n  │ {text}\n")


def test_a_run_under_way_has_the_tokenizer_of_its_newest_checkpoint(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = shown(capsys, str(run), "--step", "7")
    assert show.UNMARKED in text
    assert UNMARKED not in text  # said once
    add_tokenizer(run)
    (run / "model").rename(run / "checkpoint-7")
    text = shown(capsys, str(run), "--step", "7")
    assert show.MARKS in text
    assert "  │ a┃ b c d\n" in text


HOSTILE = (
    "\x1b[2J\x1b]8;;http://evil\x07here\x1b]0;title\x07 [bold]x[/bold] [link=http://e]y[/link] [/]"
    "\u202egnp.exe\u2066\u200b\x00\x08\r\t\x7f\x9b31m\ud800\nrow 9  hybrid  reward 1.000"
)


@pytest.mark.parametrize("terminal", [False, True])
def test_hostile_words_are_shown_and_not_obeyed(tmp_path: Path, terminal: bool) -> None:
    verdicts = {HOSTILE: {"status": HOSTILE, "reward": 0.0, "detail": HOSTILE}}
    bad = row(0, 0, 0.0, text=HOSTILE, prompt=HOSTILE, verdicts=verdicts)
    file = io.StringIO()
    # A terminal without colours: any escape in its output would be the model's.
    console = Console(
        file=file, width=100, force_terminal=terminal, color_system=None, legacy_windows=False
    )
    run_show(console, str(make_run(tmp_path / "r", {0: [bad]})))
    text = file.getvalue()
    own = r"\x1b\[[0-9;?]*[a-zA-Z]|\r" if terminal else r"(?!)"  # of the spinner
    body = re.sub(own, "", text.partition("worst first")[2])
    assert all(c.isprintable() or c == "\n" for c in body)
    assert "[bold]x[/bold] [link=http://e]y[/link] [/]" in re.sub(r"\s+│?\s*", " ", body)
    assert "⟨ESC⟩[2J⟨ESC⟩]8;;http://evil⟨BEL⟩here" in body
    assert not re.search(r"^row 9", body, re.MULTILINE)


def test_long_words_are_cut_with_a_count(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        row(0, 0, 0.0, text="x" * 1_000_000 + "end", prompt="q" * 10_000),
        row(0, 1, 0.0, text="\n".join(map(str, range(100)))),
        row(0, 2, 0.0, verdicts={"math": {"status": "error", "detail": "z" * 5000}}),
    ]
    text = shown(capsys, str(make_run(tmp_path / "r", {0: rows})))
    assert "  … 997,003 characters left out (--full shows all) …\n" in text
    assert "  … 9,400 characters left out (--full shows all) …\n" in text
    assert "xend\n" in text
    assert "  │ 25\n  … 60 lines left out (--full shows all) …\n  │ 86\n" in text
    assert "  │ 99\n" in text
    assert f"error: {'z' * 200} … 4,800 characters left out …\n" in text
    assert len(text) < 8000
    whole = shown(capsys, str(tmp_path / "r"), "--full")
    assert f"  │ {'x' * 1_000_000}end\n" in whole
    assert "  │ 50\n" in whole
    assert f"  │ {'q' * 10_000}\n" in whole


def test_what_is_left_out_is_counted_as_it_was_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not by the names that control characters get; and the names are never cut."""
    rows = [row(0, 0, 0.0, text="\0" * 100_000)]
    text = shown(capsys, str(make_run(tmp_path / "r", {0: rows})))
    assert "97,000 characters left out" in text
    assert f"  │ {'⟨NUL⟩' * 2000}\n" in text
    assert f"  │ {'⟨NUL⟩' * 1000}\n" in text


def test_other_scripts_stay_legible(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Spaces that are not U+0020, joined emoji, and tabs as spaces."""
    words = "中\u3000文 12\u00a0km \N{WOMAN}\u200d\N{ROCKET}"
    path = str(make_run(tmp_path / "r", {0: [row(0, 0, 0.0, text=f"{words}\n\tx = 1")]}))
    text = shown(capsys, path)
    assert f"  │ {words}\n" in text
    assert re.search("  │  +x = 1\n", text)


def test_older_runs_lack_fields(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rollouts without verdict, attempt, demonstration, advantage: as the first version wrote."""
    rows = [row(0, 0, 1.0, prefix_length=2), row(0, 1, 1.0), row(0, 2, 0.5)]
    old = [{k: v for k, v in r.items() if k not in OLDER} for r in rows]
    path = str(make_run(tmp_path / "r", {0: old}))
    text = shown(capsys, path)
    assert "step 0  group 0  solved 1 of 2 on-policy rows  mean reward 0.750\n" in text
    assert "row 0  hybrid     reward 1.000  advantage known at the update only  prefix 2" in text
    assert main(["show", path, "--verdict", "wrong"]) == 2
    assert "hold no verdicts" in capsys.readouterr().err


class Typed(io.StringIO):
    """Someone at a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ("q\n", [(7, 0)]),
        ("\n \nq\n", [(7, 0), (7, 1), (3, 0)]),
        ("\nb\nq\n", [(7, 0), (7, 1), (7, 0)]),
        ("b\nQ\n", [(7, 0)]),
        ("4\nb\nq\n", [(7, 0), (8, 0), (3, 0)]),
        ("5\n\nq\n", [(7, 0), (3, 1)]),
        ("n\np\nn\nq\n", [(7, 0), (7, 1), (7, 0), (7, 1)]),
        ("6\n0\nx\n?\n²\n\nq\n", [(7, 0), (7, 1)]),
        ("\n", [(7, 0), (7, 1)]),  # the end of the input ends the command
    ],
)
def test_paging(
    keys: str, expected: list[tuple[int, int]], run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", Typed(keys))
    file = io.StringIO()
    run_show(Console(file=file, width=100, force_terminal=True, color_system=None), str(run))
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", file.getvalue())
    assert order(text) == expected
    assert text.count(show.KEYS) == 1 + sum(k in keys for k in "60x?²")


@pytest.mark.parametrize(("limit", "last"), [(None, 30), (2, 2)])
def test_a_terminal_pages_through_all_groups(
    limit: int | None, last: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the end of the input ends its line, where the shell goes on."""
    path = str(make_run(tmp_path / "r", {0: [row(g, 0, 0.0) for g in range(30)]}))
    monkeypatch.setattr("sys.stdin", Typed(""))
    file = io.StringIO()
    console = Console(file=file, width=100, force_terminal=True, color_system=None)
    run_show(console, path, limit=limit)
    assert file.getvalue().endswith(f"\n1/{last} (Enter, b, q, ?) \n")


def test_a_terminal_that_knows_few_characters(run: Path) -> None:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii")
    run_show(Console(file=file, width=100), str(run), limit=1)
    file.flush()
    assert b"  ? a b c d\n" in raw.getvalue()


def test_a_hostile_name_in_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(tmp_path / "\x1b[2J\nnone")]) == 2
    assert "⟨ESC⟩[2J none' does not exist" in capsys.readouterr().err


@pytest.mark.parametrize("width", [80, 120])
def test_lines_fit_a_terminal(width: int, tmp_path: Path) -> None:
    rows = [row(0, 0, 0.0, text="word " * 300, prefix_length=2, truncated=True)]
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=True, color_system=None)
    run_show(console, str(make_run(tmp_path / "r", {0: rows})))
    lines = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", file.getvalue()).splitlines()
    assert max(map(len, lines)) <= width
    assert sum("word" in x and not x.startswith("  │ word") for x in lines) == 0


def test_twenty_groups_unless_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(make_run(tmp_path / "r", {0: [row(g, 0, 0.0) for g in range(30)]}))
    text = shown(capsys, path)
    assert text.startswith("r: 30 groups, worst first, 20 of them shown (--limit)\n")
    assert order(text) == [(0, g) for g in range(20)]
    assert len(order(shown(capsys, path, "--limit", "25"))) == 25


def test_generations_are_read_one_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a group's place is kept, and a generation is read again when one of its is shown."""
    steps = {s: [row(g, 0, 0.0) for g in range(2)] for s in range(5)}
    path, read = make_run(tmp_path / "r", steps), []
    rollouts = RunFolder.rollouts
    monkeypatch.setattr(
        RunFolder, "rollouts", lambda self, step: read.append(step) or rollouts(self, step)
    )
    places = find(RunFolder(path), Filters(), best=False)
    assert read == [0, 1, 2, 3, 4]
    assert all(isinstance(value, (int, float)) for place in places for value in place)
    read.clear()
    run_show(Console(file=io.StringIO()), str(path), limit=3)
    assert read == [0, 1, 2, 3, 4, 4, 3]  # two of step 4, from one reading


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--step", "x"], "--step must be N, A-B or A- (like 5, 3-9 or 3-), got 'x'"),
        (["--step", "9-3"], "--step 9-3 ends before it begins"),
        (["--prefix", "1-2-3"], "--prefix must be N, A-B or A-"),
        (["--prefix", "²"], "--prefix must be N, A-B or A-"),
        (["--verdict", "wrongs"], "unknown verdict 'wrongs': did you mean 'wrong'?"),
        (["--verdict", "error"], "has the verdict 'error'"),
        (["--verdict", "error", "--prefix", "9", "--step", "7"], "a prefix of 9 tokens at step 7"),
        (["--step", "100-"], "no rollouts of step 100-: it has those of 3 steps from 3 to 8"),
        (["--limit", "0"], "--limit must be at least 1, got 0"),
    ],
)
def test_wrong_options(
    options: list[str], says: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["show", str(run), *options]) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1


def test_help_names_every_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["show", "--help"])
    words = " ".join(capsys.readouterr().out.split())
    assert [s for s in STATUSES if s not in words] == []


def test_runs_without_rollouts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, trainer, says in (
        ("sft", {"max_steps": 5}, "a run of an imitation method samples nothing"),
        ("off", {"log_rollouts": False}, "log_rollouts was off"),
        ("new", {"log_rollouts": True}, "it has not sampled yet"),
    ):
        assert main(["show", str(make_run(tmp_path / name, {}, **trainer))]) == 2
        assert says in capsys.readouterr().err
    assert main(["show", str(tmp_path / "none")]) == 2
    assert "does not exist" in capsys.readouterr().err


@pytest.mark.parametrize(
    "line",
    [b'{"row": 1}', b'{"group": [1], "row": 1}', b'{"prompt": "\xff"}', b"[" * 100_000, b"3"],
)
def test_lines_that_no_run_writes(
    line: bytes, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "rollouts/kept_000007.jsonl").write_text('{"group": 0, "row": 0, "kept": [0]}\n')
    with (run / "rollouts/step_000007.jsonl").open("ab") as file:
        file.write(line + b"\n")
    assert main(["show", str(run)]) == 2
    err = capsys.readouterr().err
    assert "line 6 is damaged" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "line",
    ['{"group": 0}', *(f'{{"group": 0, "row": 0, "kept": {k}}}' for k in ("3", '["x"]', "[-1]"))],
)
def test_damaged_kept_tokens(line: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run / "rollouts/kept_000007.jsonl"
    path.write_text(line + "\n")
    assert main(["show", str(run)]) == 2
    assert f"'{path}', line 1 is damaged: it names no kept tokens" in capsys.readouterr().err


def test_a_line_that_is_being_written(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It may end anywhere, within a character too."""
    with (run / "rollouts/step_000007.jsonl").open("ab") as file:
        file.write('{"prompt": "é'.encode()[:-1])
    assert len(order(shown(capsys, str(run), "--step", "7"))) == 2


def test_files_beside_the_rollouts(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "rollouts/step_9.jsonl").write_text("a copy")
    (run / "rollouts/step_000010.jsonl").mkdir()
    assert len(order(shown(capsys, str(run)))) == 5


def test_a_damaged_tokenizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = make_run(tmp_path / "r", {4: [row(0, 0, 1.0)]})
    add_tokenizer(path)
    (path / "model/tokenizer.json").write_text("{")
    assert main(["show", str(path)]) == 2
    assert "tokenizer.json' is damaged" in capsys.readouterr().err


def test_nothing_heavy_is_imported() -> None:
    import subprocess
    import sys

    code = "import sys, prefix_rft.show; print({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_ranges() -> None:
    one, many, rest = (read_range("--step", t) for t in ("4", "4-6", "4-"))
    assert one is not None
    assert many is not None
    assert rest is not None
    assert [n in one for n in (3, 4, 5)] == [False, True, False]
    assert [n in many for n in (3, 4, 6, 7)] == [False, True, True, False]
    assert [n in rest for n in (3, 4, 10**9)] == [False, True, True]


def test_groups_of_a_generation(run: Path) -> None:
    found = load(RunFolder(run), 3)
    assert {g: len(rows) for g, rows in found.items()} == {0: 3, 1: 2}
