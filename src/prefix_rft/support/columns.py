"""How columns that the library adds to a dataset are told from a user's own."""

from __future__ import annotations

OURS = "prefix_rft_"
"""What the names of our columns begin with; no file of a user may have such a column."""
