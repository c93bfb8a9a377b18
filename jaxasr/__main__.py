"""`python -m jaxasr` is the command line."""

from __future__ import annotations

from jaxasr.cli import main

if __name__ == "__main__":
    main()
