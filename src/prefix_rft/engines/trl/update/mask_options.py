"""A recipe's ``parameter_mask``: which weights are trained, in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from prefix_rft.core.saliency import SCOPES, SCORES, WITHOUT_GRADIENTS
from prefix_rft.support.errors import UserError, check_types, choose, refuse_unknown

LINEAR, ALL = "linear", "all"
"""Words for ``modules``; anything else is a pattern."""
ACTIONS = ("freeze", "zero")
DEFAULTS: dict[str, dict[str, Any]] = {
    "speft": {
        "modules": LINEAR,
        "fraction": 0.01,
        "score": "gradient",
        "scope": "global",
        "update_every": 0,
        "score_steps": None,
        "examples": None,
    },
    "mifo": {"modules": ALL, "fraction": 0.05, "scope": "global", "history": 0.9},
    "retain": {
        "modules": ALL,
        "fraction": 0.05,
        "score": "fisher",
        "scope": "global",
        "data": None,
        "forget": None,
        "action": "freeze",
        "examples": 64,
    },
}
"""What each kind takes, ``count`` apart, and what it is unless it is given."""
KINDS = tuple(DEFAULTS)
EXAMPLES = 1024
"""Demonstrations that SPEFT looks at before training (arXiv 2412.13488)."""


@dataclass(frozen=True)
class MaskOptions:
    """A recipe's ``parameter_mask``.

    Attributes:
        kind: ``speft`` trains the most salient weights (arXiv 2412.13488); ``mifo`` freezes, in
            steps of imitation, the weights that the other steps have changed most (arXiv
            2510.04454; the rule is ours); ``retain`` looks at what a retain set needs (after arXiv
            2410.03833; the rule is ours).
        modules: what the mask chooses from: ``linear``, the matrices of all linear layers but the
            output head; ``all``, every weight that is trained; or a regular expression or a list of
            them, each for a module's name or its end behind a dot, for the matrices in it.
            ``speft`` trains no other weight, ``mifo`` and ``retain`` leave the others alone.
        fraction: the share of these weights that is: trained (``speft``), frozen in imitation
            (``mifo``), frozen as the most needed or zeroed as the least needed (``retain``). None
            where there is a ``count``.
        count: how many of them, in place of ``fraction``.
        score: salience, see ``core.saliency``.
        scope: the share is that of all these weights together (``global``), or of each tensor
            (``local``).
        update_every: choose anew after so many steps; 0 is never (``speft``).
        score_steps: optimizer steps whose gradients are looked at; all but the last change nothing
            (``speft``).
        history: weight of the past in the moving average of changes (``mifo``).
        data: the retain set: a file, a folder, or the name of a dataset (``retain``).
        forget: rows to be forgotten, likewise; they are looked at only to refuse a prompt that is
            in the retain set, too (``retain``).
        action: ``freeze`` the weights that the retain set needs most, or ``zero`` once those that
            it needs least (``retain``).
        examples: the most demonstrations that are looked at without an update: of the rows to train
            on (``speft``), or of the retain set (``retain``).
    """

    kind: str
    modules: str | list | None = None
    fraction: float | None = None
    count: int | None = None
    score: str | None = None
    scope: str | None = None
    update_every: int | None = None
    score_steps: int | None = None
    history: float | None = None
    data: str | None = None
    forget: str | None = None
    action: str | None = None
    examples: int | None = None

    @classmethod
    def read(cls, settings: Mapping[str, Any]) -> MaskOptions:
        """Check the options of a recipe, and fill in what it leaves out.

        Raises:
            UserError: one is unknown, cannot be used, or has no effect with its kind.
        """
        if not isinstance(settings, Mapping):
            raise UserError(f"parameter_mask must be a mapping with a kind, got {settings!r}")
        names = {f.name: str(f.type) for f in fields(cls)}
        refuse_unknown("option of parameter_mask", settings, names)
        check_types("option of parameter_mask", settings, names)
        given = {k: v for k, v in settings.items() if v is not None}
        if "kind" not in given:
            raise UserError(f"parameter_mask needs a kind: {', '.join(KINDS)}")
        choose("kind of parameter_mask", given["kind"], KINDS)
        if ("data" in given) != (given["kind"] == "retain"):
            raise UserError("parameter_mask: kind retain needs data, and no other kind has any")
        own = DEFAULTS[given["kind"]]
        for key in given:
            if key not in (*own, "kind", "count"):
                raise UserError(
                    f"parameter_mask: {key} has no effect with kind {given['kind']}: leave it out"
                )
        options = cls(**{**own, **given, **({"fraction": None} if "count" in given else {})})
        _check_numbers(options, given)
        _check_looking(options, given)
        return options

    def of(self, samples: bool) -> MaskOptions:
        """The options, with what a ``speft`` mask looks at where they leave that open.

        Demonstrations before the first step for a method that only imitates, as in the paper; the
        first step's loss for one that samples.

        Args:
            samples: the method samples.
        """
        settled = self.score in WITHOUT_GRADIENTS or self.examples or self.score_steps
        if self.kind != "speft" or settled:
            return self
        return replace(self, score_steps=1) if samples else replace(self, examples=EXAMPLES)


def _check_numbers(options: MaskOptions, given: Mapping[str, Any]) -> None:
    """Refuse numbers out of range, and two that say the same.

    Raises:
        UserError: there is one.
    """
    if "count" in given and "fraction" in given:
        raise UserError("parameter_mask: fraction and count say the same: give one of the two")
    if options.action == "zero" and not {"count", "fraction"} & given.keys():
        raise UserError(
            "parameter_mask: action zero needs a fraction or a count: a model may lose all that it "
            "can do with a few weights"
        )
    if options.fraction is not None and not 0.0 < options.fraction < 1.0:
        raise UserError(f"parameter_mask: fraction must be in (0, 1), got {options.fraction}")
    for name, least in (("update_every", 0), ("count", 1), ("score_steps", 1), ("examples", 1)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise UserError(f"parameter_mask: {name} must be at least {least}, got {value}")
    if options.history is not None and not 0.0 <= options.history < 1.0:
        raise UserError(f"parameter_mask: history must be in [0, 1), got {options.history}")


def _check_looking(options: MaskOptions, given: Mapping[str, Any]) -> None:
    """Refuse words that are not known, and what is looked at for nothing.

    Raises:
        UserError: there is one.
    """
    for what, value, known in (
        ("salience score", options.score, SCORES),
        ("scope of the mask", options.scope, SCOPES),
        ("action of parameter_mask", options.action, ACTIONS),
    ):
        if value is not None:
            choose(what, value, known)
    patterns = options.modules if isinstance(options.modules, list) else [options.modules]
    if not patterns or not all(isinstance(p, str) and p for p in patterns):
        raise UserError(
            f"parameter_mask: modules must be '{LINEAR}', '{ALL}', a pattern or a list of patterns "
            f"for names of modules, got {options.modules!r}"
        )
    looks = [key for key in ("examples", "score_steps") if key in given]
    if len(looks) == 2:
        raise UserError(
            "parameter_mask: examples looks at demonstrations before the first step, score_steps "
            "at the first steps: give one of the two"
        )
    if options.kind == "retain" and options.score in WITHOUT_GRADIENTS:
        raise UserError(
            f"parameter_mask: score {options.score} looks at no data, so kind retain has no use "
            "for it: give fisher, gradient, snip or force"
        )
    if looks and options.score in WITHOUT_GRADIENTS:
        raise UserError(
            f"parameter_mask: {looks[0]} has no effect with score {options.score}, which looks at "
            "no gradient: leave it out"
        )
