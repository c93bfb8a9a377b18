"""Published checkpoints by name, one yaml file each."""
