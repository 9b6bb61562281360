"""Sample images for captions, best first: python sample.py caption="a red apple"."""

from dalle.cli.sample import main

if __name__ == "__main__":
    main()
