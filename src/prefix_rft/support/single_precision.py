"""What trainers can hold, which count in single precision."""

from __future__ import annotations

LARGEST = 3.4e38
"""The size of the largest reward or advantage."""
