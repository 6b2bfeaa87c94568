"""What the package computes, computed a second time, twice.

``objective`` is every method's loss from its published formula, one token at a time, from numbers
that a test makes up. ``step`` is a training step of a real model in plain torch, one unpadded row
at a time, from what a trainer has sampled. Neither knows the package, nor the other. Mistakes that
are made on purpose are their controls: with one of them a test must fail.
"""
