"""Long recordings: where in them somebody speaks."""
