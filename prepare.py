"""Prepare data and checkpoints for training and sampling: python prepare.py data=folder data.path=my/pictures

data= surveys a data set; with find=, it searches the data set for an image; with dvae=, it encodes the data set into
tokens. sources= reports the training data of a checkpoint. import= converts published weights to a checkpoint.
export= copies a checkpoint for publication.
"""

from dalle.cli.prepare import main

if __name__ == "__main__":
    main()
