"""One yaml per published model."""
