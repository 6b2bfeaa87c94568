"""What is wrong, before anything is trained."""
