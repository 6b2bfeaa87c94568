"""``prefix-rft continual``: tasks one after the other, and what of the earlier ones is left.

RFT mitigates forgetting (arXiv 2507.05386). Its stages are runs of a comparison, each of which
starts from the model of the one before.
"""

from prefix_rft.compare.continual.command import run_continual

__all__ = ["run_continual"]
