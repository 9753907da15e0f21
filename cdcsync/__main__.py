"""``python -m cdcsync``."""

from cdcsync.cli import main

if __name__ == "__main__":
    main()
