"""A plain SFTTrainer script with the callback added:

python examples/sft_trainer.py HuggingFaceTB/SmolLM2-135M rows.jsonl out      # rows with a "text" or "messages"
"""

import sys

import torch
from datasets import load_dataset
from trl import SFTConfig, SFTTrainer

from headwatch import HeadWatchCallback

if __name__ == "__main__":
    model, rows, out = sys.argv[1:]
    gpu = torch.cuda.is_available()
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(output_dir=out, max_steps=20, bf16=gpu, use_cpu=not gpu, report_to="none", logging_steps=1),
        train_dataset=load_dataset("json", data_files=rows, split="train"),
        callbacks=[HeadWatchCallback(every=10)],  # the added line
    )
    trainer.train()
