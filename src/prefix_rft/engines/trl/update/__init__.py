"""From rollouts to the loss of an optimizer step, and what is measured of it."""
