r"""The installed GRPO script of TRL, with the callback. It takes the options of `trl grpo`:

python examples/trl_grpo.py --model_name_or_path Qwen/Qwen2.5-0.5B --dataset_name trl-lib/DeepMath-103K \
    --reward_funcs headwatch.training.rewards.tag_count --output_dir out
"""

import functools

import trl
from trl.scripts import grpo

from headwatch import HeadWatchCallback

# `trl grpo` has no option for callbacks, but its script looks up the trainer in the trl module.
trl.GRPOTrainer = functools.partial(trl.GRPOTrainer, callbacks=[HeadWatchCallback(every=100)])

if __name__ == "__main__":
    grpo.main(*grpo.make_parser().parse_args_and_config(fail_with_unknown_args=False))
