"""Rows in: known shapes of data, and demonstrations as token ids."""

from prefix_rft.data.demonstrations import DemonstrationReport, tokenize_demonstrations
from prefix_rft.data.files import DataError, find_source
from prefix_rft.data.render import PLAIN_TEMPLATE, Renderer
from prefix_rft.data.rows import Reading, load_rows, read_rows

__all__ = [
    "PLAIN_TEMPLATE",
    "DataError",
    "DemonstrationReport",
    "Reading",
    "Renderer",
    "find_source",
    "load_rows",
    "read_rows",
    "tokenize_demonstrations",
]
