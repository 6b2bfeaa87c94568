"""What stops a run before harm is done, and what it needs to go on exactly."""
