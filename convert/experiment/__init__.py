"""What of a model depends on the token alone: found by running it."""
