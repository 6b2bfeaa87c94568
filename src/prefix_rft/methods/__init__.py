"""One file per method: which rows, which streams, which constants.

A method is a function that takes options and returns a ``Method``. ``load`` finds the built-in ones
by name and anyone else's by import path; both have the same powers.
"""

from prefix_rft.methods.registry import BUILT_IN, load, options_of

__all__ = ["BUILT_IN", "load", "options_of"]
