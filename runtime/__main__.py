"""transformers' own command line, which then knows folds: ``python -m prefold.runtime serve FOLDED``."""

from transformers.cli.transformers import main

if __name__ == "__main__":
    main()  # by now Python has imported this package, and that registers folds
