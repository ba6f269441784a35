"""An SFTTrainer script with TRL's default options, and the callback:

python examples/sft_trainer.py HuggingFaceTB/SmolLM2-135M rows.jsonl out      # rows with "text" or "messages"
"""

import sys

import torch
from datasets import load_dataset
from trl import SFTConfig, SFTTrainer

from headwatch import HeadWatchCallback

if __name__ == "__main__":
    model, rows, out = sys.argv[1:]
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(output_dir=out, max_steps=20, use_cpu=not torch.cuda.is_available()),
        train_dataset=load_dataset("json", data_files=rows, split="train"),
        callbacks=[HeadWatchCallback(every=10)],  # the added line
    )
    trainer.train()
