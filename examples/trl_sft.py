"""The installed SFT script of TRL, with the callback. It takes the options of `trl sft`:

python examples/trl_sft.py --model_name_or_path Qwen/Qwen2.5-0.5B --dataset_name trl-lib/Capybara --output_dir out
"""

import functools

import trl
from trl.scripts import sft

from headwatch import HeadWatchCallback

# `trl sft` has no option for callbacks, but its script looks up the trainer in the trl module.
trl.SFTTrainer = functools.partial(trl.SFTTrainer, callbacks=[HeadWatchCallback(every=100)])

if __name__ == "__main__":
    sft.main(*sft.make_parser().parse_args_and_config(fail_with_unknown_args=False))
