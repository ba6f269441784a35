"""LLaMA-Factory with the callback: python llama_factory.py CONFIG.yaml, in place of llamafactory-cli train CONFIG.yaml.

Not run inside LLaMA-Factory by headwatch's tests; `run_exp(args, callbacks)` is its documented entry for callbacks.
"""

from llamafactory.train.tuner import run_exp

from headwatch import HeadWatchCallback

if __name__ == "__main__":
    run_exp(callbacks=[HeadWatchCallback(every=100)])
