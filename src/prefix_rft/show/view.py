"""Draw a group of rollouts.

Whatever a model wrote is shown and never obeyed: control characters are made visible, nothing is
read as markup, long texts are cut with a count, and a bar at the left keeps them from passing for
lines of the command's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from rich.console import Console
from rich.text import Text
from tokenizers import Tokenizer

from prefix_rft.rewards.verdict import CORRECT, WRONG
from prefix_rft.runs.reader import RunFolder
from prefix_rft.runs.rollouts import DEMONSTRATION, GUIDED, HYBRID, POLICY, Rollout
from prefix_rft.runs.token_texts import KEPT, SAMPLED, Completion, marked, run_tokenizer
from prefix_rft.show.groups import Place, load, solved, statuses
from prefix_rft.support.untrusted import visible

Piece = tuple[str, str]
"""Words of others as they were read, and a style."""

CHARACTERS, LINES = 3000, 40
PROMPT_CHARACTERS, PROMPT_LINES = 600, 12
DETAIL = 200
UNMARKED = "  (prefix not marked: the tokens do not add up to the text)"
BAR, INDENT = "  │ ", 7
# As `inspect` has them.
GREEN, YELLOW, SELECTED = "green", "yellow", "bold black on green"
STYLES = {POLICY: YELLOW, GUIDED: YELLOW, DEMONSTRATION: GREEN, HYBRID: ""}
OUTCOMES = {CORRECT: "bold green", WRONG: "bold red"}


class View:
    """Draws groups of one run, and reads a generation when one of its groups is drawn.

    Args:
        folder: the run.
        console: the console to print on.
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
            key=lambda r: (self.verdict is not None and self.verdict not in statuses(r), r.row),
        )
        self.console.print()
        self.say(heading(place, rows, number))
        prompt = None
        for row in rows:
            if row.prompt != prompt:
                prompt = row.prompt
                self.quote([(prompt, "")], PROMPT_CHARACTERS, PROMPT_LINES)
            pieces = styled(self.tokenizer, row)
            self.say(row_heading(row))
            if pieces is None and self.tokenizer is not None:
                self.say(Text(UNMARKED, "italic"))
            plain = [(row.text, STYLES[row.origin])]
            self.quote(plain if pieces is None else pieces, CHARACTERS, LINES)

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


def styled(tokenizer: Tokenizer | None, row: Rollout) -> list[Piece] | None:
    """What a row says, with its prefix marked; None where its tokens cannot be told apart."""
    if row.origin != HYBRID:
        return [(row.text, STYLES[row.origin])]
    parts = marked(tokenizer, Completion.of(row))
    if parts is None:
        return None
    pieces: list[Piece] = []
    for state, words in parts:
        if state == SAMPLED:
            pieces += [("┃", "bold"), (words, YELLOW)]
        else:
            pieces.append((f"«{words}»", SELECTED) if state == KEPT else (words, GREEN))
    return pieces


def heading(place: Place, rows: Sequence[Rollout], number: str) -> Text:
    """Which group this is, and how it went."""
    text = Text.assemble((f"{number}  ", "dim"), (f"step {place.step}", "bold"))
    text.append(f"  group {place.group}")
    if rows[0].example is not None:
        text.append(f"  example {rows[0].example}")
    if rows[0].images:
        text.append(f"  with {', '.join(map(short, rows[0].images))}")
    kind = HYBRID if place.kind == 1 else POLICY
    counted = [r for r in rows if r.origin == kind]
    if counted:
        text.append(f"  solved {sum(map(solved, counted))} of {count(len(counted), f'{kind} row')}")
    text.append(f"  mean reward {place.mean:.3f}" if place.kind < 2 else "  none has a reward")
    return text


def row_heading(row: Rollout) -> Text:
    """One row's origin, reward, advantage, lengths and verdicts."""
    reward, advantage, name = row.reward, row.advantage, row.origin
    text = Text.assemble((f"row {row.row}", "bold"), f"  {name:<9}")
    text.append("  no reward" if reward is None else f"  reward {reward:.3f}")
    if advantage is not None:
        text.append(f"  advantage {advantage:+.3f}")
    elif name != DEMONSTRATION:
        text.append("  advantage known at the update only")
    length = count(len(row.completion_ids), "token")
    if row.hint_length:
        text.append(f"  behind {count(row.hint_length, 'token')} of hint")
    text.append(
        f"  prefix {row.prefix_length} of {length}"
        if name == HYBRID and row.prefix_length
        else f"  {length}"
    )
    if name == HYBRID and row.kept is not None:
        text.append(f", {len(row.kept)} kept")
    if row.attempt:
        text.append(f"  attempt {row.attempt + 1}")
    if row.truncated:
        text.append("  truncated", "bold magenta")
    for grader, verdict in row.verdicts.items():
        status, detail = verdict["status"], verdict.get("detail")
        text.append("  " if len(row.verdicts) == 1 else f"  {short(grader)} ")
        text.append(short(status), OUTCOMES.get(status, "bold magenta"))
        text.append(f": {short(detail)}" if detail else "")
    return text


def short(words: str) -> str:
    """A text as a few harmless words on one line."""
    cut = visible(words[:DETAIL]).replace("\n", "↵")
    over = len(words) - DETAIL
    return cut if over <= 0 else f"{cut} … {count(over, 'character')} left out …"


def count(number: int, what: str) -> str:
    """``1 group``, ``1,200 groups``."""
    return f"{number:,} {what}" + ("" if number == 1 else "s")
