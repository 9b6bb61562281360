"""Sample images for captions, best first: python sample.py checkpoint=outputs/demo caption="a red circle"."""

from dalle.cli.sample import main

if __name__ == "__main__":
    main()
