"""Draw a group of rollouts.

Whatever a model wrote is shown and never obeyed: control characters are made visible, nothing is
read as markup, long texts are cut with a count, and a bar at the left keeps them from passing for
lines of the command's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import groupby

from rich.console import Console
from rich.text import Text
from tokenizers import Tokenizer

from prefix_rft.rewards.verdict import CORRECT, WRONG
from prefix_rft.runs.reader import RunFolder
from prefix_rft.runs.rollouts import DEMONSTRATION, HYBRID, POLICY, Row, origin
from prefix_rft.runs.token_texts import LONGEST_CHARACTER, run_tokenizer, split
from prefix_rft.show.groups import Place, load, solved, statuses
from prefix_rft.support.errors import UserError
from prefix_rft.support.untrusted import visible

Piece = tuple[str, str]
"""Words of others as they were read, and a style."""

CHARACTERS, LINES = 3000, 40
PROMPT_CHARACTERS, PROMPT_LINES = 600, 12
DETAIL = 200
UNMARKED = "  (prefix not marked: the tokens do not add up to the text)"
BAR, INDENT = "  │ ", 7
# As `inspect` has them.
SELECTED, PREFIX, SAMPLED = "bold black on green", "green", "yellow"
STYLES = {POLICY: SAMPLED, DEMONSTRATION: PREFIX, HYBRID: ""}
OUTCOMES = {CORRECT: "bold green", WRONG: "bold red"}


class View:
    """Draws groups of one run, and reads a generation when one of its groups is drawn.

    Args:
        folder: the run.
        console: to print on.
        verdict: rows of this verdict are drawn first.
        full: nothing is cut.

    Raises:
        UserError: the run's tokenizer is damaged.
    """

    def __init__(
        self, folder: RunFolder, console: Console, verdict: str | None = None, full: bool = False
    ) -> None:
        self.console, self.verdict, self.full = console, verdict, full
        self.load = lru_cache(maxsize=4)(lambda step: load(folder, step))
        self.tokenizer = run_tokenizer(folder.path)

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
                self.quote([(prompt, "")], PROMPT_CHARACTERS, PROMPT_LINES)
            found = marked(self.tokenizer, row)
            self.say(row_heading(row))
            if found is None and self.tokenizer is not None:
                self.say(Text(UNMARKED, "italic"))
            plain = [(row["text"], STYLES[origin(row)])]
            self.quote(plain if found is None else found, CHARACTERS, LINES)

    def say(self, text: Text) -> None:
        """A line of the command's own; a terminal gets it in as many as it needs."""
        for at, part in enumerate(self.fit(text, INDENT)):
            self.console.print(Text(" " * INDENT if at else "") + part, soft_wrap=True)

    def quote(self, pieces: Sequence[Piece], characters: int, lines: int) -> None:
        """Words of others: the first two thirds and the last third of what there is room for."""
        # Cut before it is made visible: a megabyte of control characters would become five.
        size = sum(len(words) for words, _ in pieces)
        if self.full:
            characters, lines = size, size + 1
        over, left = size - characters, []
        if over > 0:
            head = 2 * characters // 3
            left.append(count(over, "character"))
            first, second = _lines(pieces, 0, head), _lines(pieces, head + over, size)
        else:
            first, second = _lines(pieces, 0, size), []
        surplus = len(first) + len(second) - lines
        if surplus > 0:
            both, head = first + second, 2 * lines // 3
            left.append(count(surplus, "line"))
            first, second = both[:head], both[head + surplus :]
        for line in first:
            self.bar(line)
        if left:
            self.say(Text(f"  … {' and '.join(left)} left out (--full shows all) …", "italic"))
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


def _lines(pieces: Sequence[Piece], start: int, stop: int) -> list[Text]:
    """The lines from one character to another, visible."""
    text, at = Text(), 0
    for words, style in pieces:
        part = words[max(0, start - at) : max(0, stop - at)]
        text.append(visible(part), style)
        at += len(words)
    return list(text.split("\n", allow_blank=True))


def marked(tokenizer: Tokenizer | None, row: Row) -> list[Piece] | None:
    """What a row says, with its prefix marked; None where its tokens cannot be told apart.

    Raises:
        UserError: its ids are none.
    """
    ids, length, whole = row["completion_ids"], row["prefix_length"], row["text"]
    if origin(row) != HYBRID:
        return [(whole, STYLES[origin(row)])]
    if tokenizer is None:
        return None
    if not all(type(i) is int and 0 <= i < 2**32 for i in ids):
        raise UserError(f"row {row['row']} of group {row['group']} is damaged: its ids are none")
    # Behind the prefix only as many as one character may take: the rest is known from the text.
    near = ids[: length + LONGEST_CHARACTER]
    found = split(tokenizer, near, len(ids), whole, len(whole) + 1)
    prefix = [] if found is None else found[:length]
    if found is None or not whole.startswith("".join(prefix)):
        return None
    kept = {place for place in row.get("kept") or () if isinstance(place, int)}
    pieces: list[Piece] = []
    for own, run in groupby(enumerate(prefix), key=lambda pair: pair[0] in kept):
        words = "".join(text for _, text in run)
        pieces.append((f"«{words}»", SELECTED) if own else (words, PREFIX))
    rest = whole[sum(map(len, prefix)) :]
    return [*pieces, ("┃", "bold"), (rest, SAMPLED)] if length < len(ids) else pieces


def heading(place: Place, rows: Sequence[Row], number: str) -> Text:
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


def row_heading(row: Row) -> Text:
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
