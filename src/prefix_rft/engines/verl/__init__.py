"""The cluster engine: the same methods, objective, data and graders on verl's trainers (Ray).

A plug-in for verl 0.9's V1 trainers, without a fork and without changing anything of verl's: a
trainer mixin, an actor worker, an agent loop, a dataset and a reward manager, each in the place
that verl has for it. ``python -m prefix_rft.engines.verl`` starts it; docs/cluster.md explains it.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from packaging.specifiers import SpecifierSet

from prefix_rft.support.errors import UserError

SUPPORTED = ">=0.9.1,<0.10"


def require_verl() -> None:
    """Raise UserError where verl is missing, or a version that this engine was not written for."""
    try:
        installed = version("verl")
    except PackageNotFoundError:
        raise UserError(
            "the cluster engine needs verl: pip install 'prefix-rft[verl]' (docs/cluster.md)"
        ) from None
    if installed not in SpecifierSet(SUPPORTED):
        raise UserError(
            f"the cluster engine supports verl {SUPPORTED}, and verl {installed} is installed: its "
            f"trainer may behave otherwise; pip install 'verl{SUPPORTED}'"
        )
