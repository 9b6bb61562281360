"""Train one stage, or all three in turn: python train.py stage=dvae data=folder data.path=... run=my-dvae"""

from dalle.cli.train import main

if __name__ == "__main__":
    main()
