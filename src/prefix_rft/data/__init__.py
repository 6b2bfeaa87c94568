"""Rows in: data files, and demonstrations as token ids."""

from prefix_rft.data.demonstrations import DemonstrationReport, tokenize_demonstrations
from prefix_rft.data.files import DataError, load_rows

__all__ = ["DataError", "DemonstrationReport", "load_rows", "tokenize_demonstrations"]
