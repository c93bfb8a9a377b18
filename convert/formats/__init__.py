"""Files that are read and never executed: what a publisher stores, whoever the publisher is."""
