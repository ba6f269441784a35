"""`headwatch demo`: train a small model by SFT and by GRPO with the callback."""
