"""The page itself: what it says, what it refuses, and that nothing in it can do harm."""

import re
import shutil
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
from jinja2 import UndefinedError
from report_runs import (
    EVALUATION,
    HOSTILE,
    RECIPE,
    hostile_run,
    metrics_of,
    row,
    words,
    write_run,
)

from prefix_rft.report import write_report
from prefix_rft.report.write import render
from prefix_rft.support.errors import UserError

VOID = {"meta", "link", "path", "circle"}


class Elements(HTMLParser):
    """Tags, attributes and text of a page, and whether its tags close in order."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: set[tuple[str, str, str | None]] = set()
        self.words: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {(tag, k, v) for k, v in attrs}
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {(tag, k, v) for k, v in attrs}

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def page_of(*folders: Path) -> tuple[str, Elements]:
    page = write_report([str(f) for f in folders], None).read_bytes().decode("utf-8")
    elements = Elements(page)
    assert elements.open == []
    return page, elements


def test_everything_that_a_reader_wants_is_there(tmp_path: Path) -> None:
    rows = [row(0, 0, prefix_length=2, kept=[1], reward=1.0, advantage=0.875), row(0, 1)]
    folder = write_run(tmp_path / "r1", metrics_of(100), [rows], words(), EVALUATION)
    page, elements = page_of(folder)
    text = " ".join(" ".join(elements.words).split())
    for wanted in (
        "r1",
        "method prefix_rft model base",
        "trained 50.0 % 40.0 % to 60.0 %",
        "centred mean over 3 steps",
        "Hybrid and on-policy rollouts",
        "r1, hybrid: from 1 to 0.505",
        "Bounds of the prefix ratio",
        "gradient",
        "on-policy 0 , hybrid 1",
        "0 · hybrid 2 of 3 tokens are prefix, 1 kept reward 1 advantage +0.88 verdict wrong",
        "trainer.learning_rate 1e-06",
        "python 3.11",
    ):
        assert wanted in text, wanted
    assert '<mark class="prefix">a</mark><mark class="kept"> b</mark> c</div>' in page


def test_two_runs_are_overlaid_and_their_differences_listed(tmp_path: Path) -> None:
    other = {**RECIPE, "method": {"name": "grpo"}}
    a = write_run(tmp_path / "a", metrics_of(30), [[row()]])
    b = write_run(tmp_path / "b", metrics_of(20), recipe=other)
    page, _ = page_of(a, b)
    reward = page[page.index("<title id=") :]
    assert "a, on-policy" in reward[: reward.index("</svg>")]
    assert "b, hybrid" in reward[: reward.index("</svg>")]
    assert page.index("differs between the runs") < page.index("method.name")
    assert '<td class="mono">prefix_rft</td><td class="mono">grpo</td>' in page
    assert (tmp_path / "a" / "report.html").is_file()
    assert not (tmp_path / "b" / "report.html").exists()


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    page, _ = page_of(write_run(tmp_path / "empty"))
    for words_ in ("No metrics yet", "No rollouts", "No evaluation", "none yet"):
        assert words_ in page
    page, _ = page_of(write_run(tmp_path / "raw", metrics_of(3), [[row(prefix_length=2)]]))
    assert "No tokenizer in the run folder" in page
    assert "prefix not marked" in page
    assert "<mark class=" not in page[page.index("No tokenizer") :]
    sure = write_run(tmp_path / "old", rollouts=[[row(prefix_length=2)]], tokenizer=words())
    page, _ = page_of(sure)
    assert "is not recorded for this run" in page
    assert '<mark class="prefix">a b</mark> c' in page


def test_hostile_rollouts_are_shown_harmlessly(tmp_path: Path) -> None:
    page, elements = page_of(hostile_run(tmp_path))
    assert elements.tags.isdisjoint({"script", "img", "iframe", "object", "form", "base"})
    assert not [a for a in elements.attributes if a[1].startswith("on") or a[1] == "style"]
    links = {v for _, k, v in elements.attributes if k in ("href", "src", "xlink:href")}
    assert all(v == "data:," or re.fullmatch(r"#\w+", v) for v in links), links
    hidden = [c for c in page if not c.isprintable() and c not in "\n\t\u200c\u200d"]
    assert hidden == []
    text = "".join(elements.words)
    for seen in (
        "<script>console.error('ran')</script>",
        "{{ 7 * 7 }}{% raw %}",
        "⟨ESC⟩[2J⟨ESC⟩]0;title⟨BEL⟩⟨U+009B⟩31m",
        "⟨U+202E⟩desrever⟨U+2066⟩",
        "nul ⟨NUL⟩ return ⟨CR⟩ line ⟨U+2028⟩ bom ⟨U+FEFF⟩ tag ⟨U+E0041⟩",
        "⟨U+D800⟩ lone ⟨U+DFFF⟩ surrogates",
        "&lt;b&gt; &amp; \"double\" 'single' `back`",
    ):
        assert seen in text, seen
    assert re.search(r"x{1000}… 99\d,\d{3} characters more", text)
    assert "e" + "\u0301" * 400 in text


def test_the_policy_allows_no_script_and_no_network(tmp_path: Path) -> None:
    page, elements = page_of(write_run(tmp_path / "r"))
    policies = {v for t, k, v in elements.attributes if (t, k) == ("meta", "content")}
    assert (
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    ) in policies
    assert page.index("Content-Security-Policy") < page.index("<style>")
    assert "url(" not in page
    assert "@import" not in page


def test_a_run_of_a_thousand_steps_stays_small(tmp_path: Path) -> None:
    long = "".join(HOSTILE[:-1]) * 4
    rows = [row(g, i, text=long, prompt=long) for g in range(3) for i in range(8)]
    plain = [row(g, i, reward=1.0) for g in range(2) for i in range(4)]
    steps = [rows if s % 100 == 0 else plain for s in range(1000)]
    metrics = [
        {**m, **{f"extra/{k}": m["step"] * k % 7 for k in range(40)}} for m in metrics_of(1000)
    ]
    folder = write_run(tmp_path / "r", metrics, steps, words(), EVALUATION)
    start = time.monotonic()
    path = write_report([str(folder)])
    print(f"{path.stat().st_size:,} bytes in {time.monotonic() - start:.2f} s")
    assert path.stat().st_size < 5_000_000
    page = path.read_text(encoding="utf-8")
    # 1,000 steps are drawn with at most 300 points.
    longest = max(d.count("L") + 1 for d in re.findall(r' d="([^"]*)"', page))
    assert 200 <= longest <= 300


@pytest.mark.slow
def test_eight_hostile_runs_stay_small(tmp_path: Path) -> None:
    first = hostile_run(tmp_path / "0", 3)
    others = [tmp_path / str(i) / "r" for i in range(1, 8)]
    for other in others:
        shutil.copytree(first, other)
    path = write_report([str(first), *map(str, others)])
    assert path.stat().st_size < 5_000_000


@pytest.mark.parametrize(
    ("runs", "output", "message"),
    [
        (["r"], "r/report.pdf", "must end in .html"),
        (["r"], "nowhere/report.html", "folder 'nowhere' does not exist"),
        (["r"], "folder.html", "is a folder"),
        (["r", "./r"], None, "given twice"),
        (["r", "none"], None, "'none' does not exist"),
        (["folder.html"], None, "is no run folder"),
        ([], None, "1 to 8 runs"),
        (["r"] * 9, None, "1 to 8 runs"),
    ],
)
def test_bad_input_is_one_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    runs: list[str],
    output: str | None,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "r")
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(UserError, match=re.escape(message)) as refusal:
        write_report(runs, output)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "r" / "report.html").exists()


def test_a_run_that_still_writes_is_shown(tmp_path: Path) -> None:
    """The last line of a file may be half there."""
    rows = [row(0, i, text=f"text {i}") for i in range(4)]
    folder = write_run(tmp_path / "r", metrics_of(5), [rows], words())
    for name in ("metrics.jsonl", "rollouts/step_000000.jsonl"):
        with (folder / name).open("a") as file:
            file.write('{"step": 5, "rew')
    page = write_report([str(folder)]).read_text(encoding="utf-8")
    assert "text 3" in page
    assert '"rew' not in page


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metrics.jsonl", '{"loss": 1}\n', "it lacks 'step'"),
        ("metrics.jsonl", '{"step": 1, "loss": "x"}\n', "not a number"),
        ("metrics.jsonl", "{\n", "line 1 is damaged"),
        ("eval.json", '{"base": {}}', "it lacks 'mean'"),
        ("eval.json", "[1]", "eval.json' is damaged"),
        ("environment.json", "[1]", "environment.json' is damaged: it must be a mapping"),
        ("recipe.yaml", "[1]", "must be a mapping"),
        ("model/tokenizer.json", "{", "tokenizer.json' is damaged"),
        ("rollouts/step_000000.jsonl", "{\n", "line 1 is damaged"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    folder = write_run(tmp_path / "r", tokenizer=words())
    (folder / name).write_text(content)
    with pytest.raises(UserError, match=re.escape(message)):
        write_report([str(folder)])


def test_a_name_that_the_template_does_not_get_is_an_error() -> None:
    with pytest.raises(UndefinedError):
        render({"title": "x"})
