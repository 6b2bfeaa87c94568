"""From a batch of prompts to rewarded rollouts with their advantages."""
