"""Draw a group of rollouts.

Whatever a model wrote is shown and never obeyed: control characters are made visible, nothing is
read as markup, long texts are cut with a count, and a bar at the left keeps them from passing for
lines of the command's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import groupby
from os.path import commonprefix
from typing import Any

from rich.console import Console
from rich.text import Text
from tokenizers import Tokenizer

from prefix_rft.errors import UserError
from prefix_rft.rewards.verdict import CORRECT, WRONG
from prefix_rft.run_reader import Rollout, RunFolder
from prefix_rft.show.groups import (
    DEMONSTRATION,
    HYBRID,
    POLICY,
    Place,
    load,
    origin,
    solved,
    statuses,
)
from prefix_rft.untrusted import visible

CHARACTERS, LINES = 3000, 40
PROMPT_CHARACTERS, PROMPT_LINES = 600, 12
DETAIL = 200
BAR, INDENT = "  │ ", 7
# As `inspect` has them.
KEPT, PREFIX, SAMPLED = "bold black on green", "green", "yellow"
STYLES = {POLICY: SAMPLED, DEMONSTRATION: PREFIX, HYBRID: ""}
OUTCOMES = {CORRECT: "bold green", WRONG: "bold red"}


class View:
    """Draws groups of one run, and reads a generation when one of its groups is drawn.

    Args:
        folder: the run.
        console: to print on.
        verdict: rows of this verdict are drawn first.

    Raises:
        UserError: the run's tokenizer is damaged.
    """

    def __init__(self, folder: RunFolder, console: Console, verdict: str | None = None) -> None:
        self.console, self.verdict = console, verdict
        self.load = lru_cache(maxsize=4)(lambda step: load(folder, step))
        self.tokenizer: Any = None
        path = folder.path / "model" / "tokenizer.json"
        if path.is_file():
            try:
                self.tokenizer = Tokenizer.from_file(str(path))
            except Exception as error:  # the library raises nothing narrower
                raise UserError(f"'{path}' is damaged: it is no tokenizer") from error

    def show(self, place: Place, number: str) -> None:
        """Draw one group under a heading with its number."""
        rows = sorted(
            self.load(place.step)[place.group],
            key=lambda r: (self.verdict is not None and self.verdict not in statuses(r), r["row"]),
        )
        self.console.print()
        self.say(heading(place, rows, number))
        prompt = None
        for row in rows:
            if row["prompt"] != prompt:
                prompt = row["prompt"]
                self.quote(Text(visible(prompt)), PROMPT_CHARACTERS, PROMPT_LINES)
            self.say(row_heading(row))
            self.quote(marked(self.tokenizer, row), CHARACTERS, LINES)

    def say(self, text: Text) -> None:
        """A line of the command's own; a terminal gets it in as many as it needs."""
        for at, part in enumerate(self.fit(text, INDENT)):
            self.console.print(Text(" " * INDENT if at else "") + part, soft_wrap=True)

    def quote(self, text: Text, characters: int, lines: int) -> None:
        """Words of others: the first two thirds and the last third of what there is room for."""
        over, left = len(text) - characters, []
        if over > 0:
            head = 2 * characters // 3
            left.append(count(over, "character"))
            first, second = _lines(text[:head]), _lines(text[head + over :])
        else:
            first, second = _lines(text), []
        surplus = len(first) + len(second) - lines
        if surplus > 0:
            both, head = first + second, 2 * lines // 3
            left.append(count(surplus, "line"))
            first, second = both[:head], both[head + surplus :]
        for line in first:
            self.bar(line)
        if left:
            self.say(Text(f"  … {' and '.join(left)} left out …", "italic"))
        for line in second:
            self.bar(line)

    def bar(self, line: Text) -> None:
        """One line of others behind a bar."""
        for part in self.fit(line, len(BAR)):
            self.console.print(Text.assemble((BAR, "dim"), part), soft_wrap=True)

    def fit(self, line: Text, indent: int) -> Sequence[Text]:
        """The line as it stands, or in parts that leave room for an indent in a terminal."""
        if not self.console.is_terminal:
            return [line]
        return list(line.wrap(self.console, max(20, self.console.width - indent)))


def _lines(text: Text) -> list[Text]:
    return list(text.split("\n", allow_blank=True))


def marked(tokenizer: Any, row: Rollout) -> Text:
    """What a row says, with its prefix marked where its tokens can be read.

    Raises:
        UserError: its ids are none.
    """
    ids, length, name = row["completion_ids"], row["prefix_length"], origin(row)
    if tokenizer is None or name != HYBRID:
        return Text(visible(row["text"]), STYLES[name])
    if not all(type(i) is int and 0 <= i < 2**32 for i in ids):
        raise UserError(f"row {row['row']} of group {row['group']} is damaged: its ids are none")
    kept = [k for k in row.get("kept") or () if isinstance(k, int)]
    roles = [PREFIX] * min(length, len(ids)) + [SAMPLED] * (len(ids) - length)
    for place in kept:
        if 0 <= place < min(length, len(ids)):
            roles[place] = KEPT
    text = Text()
    for role, words in pieces(tokenizer, ids, roles):
        if role == SAMPLED:
            text.append("┃", "bold")
        text.append(f"«{visible(words)}»" if role == KEPT else visible(words), role)
    return text


def pieces(tokenizer: Any, ids: Sequence[int], roles: Sequence[str]) -> Iterator[tuple[str, str]]:
    """What each run of tokens of one role adds to the text.

    Tokens are decoded with all those before them: alone, they could lose spaces. A character whose
    bytes two runs share belongs to the second.
    """
    done, shown = 0, ""
    for role, run in groupby(roles):
        done += len(list(run))
        text = tokenizer.decode(ids[:done], skip_special_tokens=False)
        if done < len(ids):
            text = text.rstrip("\N{REPLACEMENT CHARACTER}")
            # Half a character can spoil even what was whole before it: leave it to the next run.
            text = text if text.startswith(shown) else shown
        shared = commonprefix([shown, text])  # noqa: RUF071 (of texts, not of paths)
        yield role, text[len(shared) :]
        shown = text


def heading(place: Place, rows: Sequence[Rollout], number: str) -> Text:
    """Which group this is, and how it went."""
    text = Text.assemble((f"{number}  ", "dim"), (f"step {place.step}", "bold"))
    text.append(f"  group {place.group}")
    if "example" in rows[0]:
        text.append(f"  example {short(rows[0]['example'])}")
    kind = HYBRID if place.kind == 1 else POLICY
    own = [r for r in rows if origin(r) == kind]
    if own:
        text.append(f"  solved {sum(map(solved, own))} of {count(len(own), f'{kind} row')}")
    text.append(f"  mean reward {place.mean:.3f}" if place.kind < 2 else "  none has a reward")
    return text


def row_heading(row: Rollout) -> Text:
    """One row's origin, reward, advantage, lengths and verdicts."""
    reward, advantage, name = row["reward"], row.get("advantage"), origin(row)
    text = Text.assemble((f"row {row['row']}", "bold"), f"  {name:<9}")
    text.append("  no reward" if reward is None else f"  reward {reward:.3f}")
    if advantage is not None:
        text.append(f"  advantage {advantage:+.3f}")
    elif name != DEMONSTRATION:
        text.append("  advantage known at the update only")
    length = count(len(row["completion_ids"]), "token")
    text.append(f"  prefix {row['prefix_length']} of {length}" if name == HYBRID else f"  {length}")
    if name == HYBRID and row.get("kept") is not None:
        text.append(f", {len(row['kept'])} kept")
    if row.get("attempt"):
        text.append(f"  attempt {row['attempt'] + 1}")
    if row.get("truncated"):
        text.append("  truncated", "bold magenta")
    verdicts = row.get("verdicts") or {}
    for grader, verdict in verdicts.items():
        status, detail = str(verdict.get("status")), verdict.get("detail")
        text.append("  " if len(verdicts) == 1 else f"  {short(grader)} ")
        text.append(short(status), OUTCOMES.get(status, "bold magenta"))
        text.append(f": {short(detail)}" if detail else "")
    return text


def short(value: object) -> str:
    """Anything as a few harmless words on one line."""
    words = str(value)
    cut = visible(words[:DETAIL]).replace("\n", "↵")
    over = len(words) - DETAIL
    return cut if over <= 0 else f"{cut} … {count(over, 'character')} left out …"


def count(number: int, what: str) -> str:
    """``1 group``, ``1,200 groups``."""
    return f"{number:,} {what}" + ("" if number == 1 else "s")
