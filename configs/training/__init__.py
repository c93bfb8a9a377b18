"""Training recipes, one yaml file each."""
