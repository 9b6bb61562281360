"""Evaluate a trained model on held-out data: python evaluate.py checkpoint=outputs/demo"""

from dalle.cli.evaluate import main

if __name__ == "__main__":
    main()
