"""``python -m lumitok``: the same as the command ``lumitok``."""

from __future__ import annotations

from lumitok.cli import main

if __name__ == "__main__":
    main()
