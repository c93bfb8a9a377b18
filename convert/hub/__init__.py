"""Published models by name: downloaded, verified, converted once."""
