"""System prompts by name."""

# open-r1's (recipes/DeepSeek-R1-Distill-Qwen-1.5B/grpo/config_demo.yaml, Apache-2.0), which the paper uses.
OPEN_R1_PROMPT = (
    "You are a helpful AI Assistant that provides well-reasoned and detailed responses. You first think about the "
    "reasoning process as an internal monologue and then provide the user with the answer. Respond in the following "
    "format: <think>\n...\n</think>\n<answer>\n...\n</answer>"
)
SYSTEM_PROMPTS = {"open-r1": OPEN_R1_PROMPT, "none": ""}
