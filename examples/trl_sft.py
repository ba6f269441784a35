"""TRL's own SFT script, as installed, with the callback added. It takes the same options as `trl sft`:

python examples/trl_sft.py --model_name_or_path Qwen/Qwen2.5-0.5B --dataset_name trl-lib/Capybara --output_dir out
"""

import functools

import trl
from trl.scripts import sft

from headwatch import HeadWatchCallback

# `trl sft` has no option for callbacks, but it takes its trainer from here.
trl.SFTTrainer = functools.partial(trl.SFTTrainer, callbacks=[HeadWatchCallback(every=100)])

if __name__ == "__main__":
    sft.main(*sft.make_parser().parse_args_and_config(fail_with_unknown_args=False))
