"""What a trainer leaves out because it changes no gradient."""

from __future__ import annotations

from collections.abc import Sequence

from prefix_rft.support.errors import UserError, choose

SAVINGS = ("untrained", "packing", "sampler_scores")
HELP = (
    "What is left out because it changes no gradient: 'all', 'none', or a list of untrained (rows "
    "and tokens without gradient), packing (padding, and the prompt that rows share) and "
    "sampler_scores (forwards for what the sampler knows)."
)


def read_savings(given: object, known: Sequence[str] = SAVINGS) -> list[str]:
    """The savings that a setting names, in their order.

    Args:
        given: the setting.
        known: those that there are.

    Raises:
        UserError: it is neither 'all', 'none' nor a list of savings.
    """
    if given == "all":
        return list(known)
    if given == "none":
        return []
    if not isinstance(given, (list, tuple)):
        raise UserError(f"savings must be all, none or a list of {', '.join(known)}; got {given!r}")
    for name in given:
        choose("saving", name, known)
    return [name for name in known if name in given]
