"""Loads an exported model folder with transformers and prints what it is: the check that our export is a Hugging Face model.

    python tools/golden/check_export.py FOLDER [PROMPT]
"""

import sys
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer


def main():
    folder = Path(sys.argv[1])
    prompt = sys.argv[2] if len(sys.argv) > 2 else "Mia has 17 coins. Mia finds 5 and loses 3. How many coins does Mia have now?"
    config = AutoConfig.from_pretrained(folder)
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    problems = {key: value for key, value in info.items() if value}
    assert not problems, problems
    assert all(p.isfinite().all() for p in model.parameters())
    count = sum(p.numel() for p in model.parameters())
    print(f"{type(model).__name__}, {count} parameters, {model.dtype}, tied: {config.tie_word_embeddings}")

    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) <= config.vocab_size
    text = tokenizer.apply_chat_template([{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False)
    tokens = tokenizer(text, add_special_tokens=False, return_tensors="pt")
    assert tokenizer.decode(tokens["input_ids"][0]) == text
    with torch.no_grad():
        answer = model.generate(**tokens, max_new_tokens=200, do_sample=False)
    print(tokenizer.decode(answer[0]))


if __name__ == "__main__":
    main()
