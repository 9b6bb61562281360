"""python -m dalle: the same as the command `dalle`."""

from dalle.cli.main import main

if __name__ == "__main__":
    main()
