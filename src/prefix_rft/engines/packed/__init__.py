"""Log-probs of many rows without padding, without the prompt twice, and without idle logits."""
