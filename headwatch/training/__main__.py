"""`accelerate launch -m headwatch.training RECIPE.yaml [--option value ...]`, and torchrun's `-m` likewise."""

import sys

from headwatch.training.launch import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
