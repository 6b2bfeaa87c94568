"""A training step of a real model in plain torch, one unpadded row at a time.

Only what was sampled, where a row's demonstration part ends and which rows are of one group come
from a trainer; rewards, flat groups, advantages, log-probs, entropies, selection, normalisers, loss
and gradient are computed anew.

``update`` is what formulas read, ``formulas`` the losses, ``trl_run`` watches TRL's trainers,
``measured`` has what they log and write, and ``verl_run`` goes beside a run of verl's.
"""
