"""`headwatch demo`: a small model trained by SFT and by GRPO under the callback."""
