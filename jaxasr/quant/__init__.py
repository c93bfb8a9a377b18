"""Low-bit weights: integers with scales that stand wherever a kernel stands, and the rules that say which ones do."""
