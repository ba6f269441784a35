"""Settings that every test shares. This file also makes pytest put tests/ on the path, so that tests import
`tiny` and `wandb_reader` by name.
"""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # models and tokenizers are made here; nothing is downloaded
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
