"""Runs: load, train, evaluate, save, and go on."""
