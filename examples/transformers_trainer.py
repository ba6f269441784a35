"""A transformers Trainer script without TRL, and the callback:

python examples/transformers_trainer.py HuggingFaceTB/SmolLM2-135M rows.jsonl out      # rows with "text"
"""

import json
import sys
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
)

from headwatch import HeadWatchCallback

if __name__ == "__main__":
    name, rows, out = sys.argv[1:]
    tokenizer = AutoTokenizer.from_pretrained(name)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    texts = [json.loads(line)["text"] for line in Path(rows).read_text(encoding="utf-8").splitlines()]
    trainer = Trainer(
        model=AutoModelForCausalLM.from_pretrained(name),
        args=TrainingArguments(out, max_steps=20, use_cpu=not torch.cuda.is_available(), report_to="none"),
        train_dataset=[tokenizer(text, truncation=True, max_length=256) for text in texts],
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        processing_class=tokenizer,  # the callback tokenizes its probes with it
        callbacks=[HeadWatchCallback(every=10)],  # the added line
    )
    trainer.train()
