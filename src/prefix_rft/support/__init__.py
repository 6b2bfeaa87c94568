"""What every other package may use; nothing of ours below it, and no torch."""
