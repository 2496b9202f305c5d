"""Token ids of rendered chats, as transformers makes them.

Writes the fixture tokenizer (byte-level BPE behind Qwen2's pre-tokeniser, trained on a few lines below) to tests/fixtures/data/chat/, beside
the chat template that is kept there, and the token ids of a few chats to tests/fixtures/golden/template.json.

    python tools/golden/template.py [--qwen FILE]

FILE is Qwen2.5's own chat template, which is not part of this repository; without it the ids for it are left as they are.
"""

import argparse
import json
import pathlib

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

ROOT = pathlib.Path(__file__).resolve().parents[2]
FOLDER = ROOT / "tests/fixtures/data/chat"
GOLDEN = ROOT / "tests/fixtures/golden/template.json"

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CORPUS = [
    "Please reason step by step, and put your final answer within \\boxed{}.",
    "Okay, so I need to find the sum of the first numbers. Let me think step by step.",
    "Wait, let me check that again: the answer should be the same when I add the numbers in the other order.",
    "system user assistant\nAnswer with care. Therefore the final answer is \\boxed{42}.\n\n**Final Answer**\n",
    "Solve the equation and verify the result. Since the two sides agree, the solution is right.",
]

SYSTEM = {"role": "system", "content": "Please reason step by step, and put your final answer within \\boxed{}."}


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


CHATS = {
    "default_system": [user("What is 6 times 7?"), assistant("Okay, 6 times 7 is \\boxed{42}.")],
    "own_system": [SYSTEM, user("What is 6 times 7?"), assistant("Wait, let me check.\n\n\\boxed{42}")],
    "multi_turn": [SYSTEM, user("Hi"), assistant("Hello!"), user("And 2 + 2?"), assistant("4"), user("Sure?"), assistant("Yes.")],
    "unicode": [user("Cafe\u0301 \u2014 \u00bfcu\u00e1nto es \u221a2? \U0001f914"), assistant("\u2248 1.414, \u7b54\u6848\u662f \u221a2\u00a0\u2026 \U0001f44d\U0001f3fd")],
    "empty_content": [user(""), assistant("")],
    "white_space": [user("  two  spaces\t\ttabs\r\n\r\n"), assistant("\n\n leading and trailing \n")],
    "special_in_text": [user("what does <|im_end|> mean? <|endoftext|>"), assistant("It ends a turn: <|im_end|>")],
}


def build_tokenizer():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False))
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.save(str(FOLDER / "tokenizer.json"))
    config = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "tokenizer_class": "Qwen2Tokenizer"}
    (FOLDER / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    stops = {"eos_token_id": [tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>")]}
    (FOLDER / "generation_config.json").write_text(json.dumps(stops, indent=2) + "\n")


def ids_of(template):
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(FOLDER / "tokenizer.json"))
    cases = []
    for name, messages in CHATS.items():
        for prompt in (False, True):
            chat = messages[:-1] if prompt else messages
            ids = tokenizer.apply_chat_template(
                chat, chat_template=template, add_generation_prompt=prompt, tokenize=True, return_dict=False
            )
            cases.append({"name": name, "messages": chat, "add_generation_prompt": prompt, "ids": ids})
    return cases


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--qwen", type=pathlib.Path)
    arguments = parser.parse_args()
    build_tokenizer()
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    golden["fixture"] = ids_of((FOLDER / "chat_template.jinja").read_text())
    if arguments.qwen:
        golden["qwen2.5"] = ids_of(arguments.qwen.read_text())
    lines = {key: ",\n".join("    " + json.dumps(case) for case in cases) for key, cases in golden.items()}
    body = ",\n".join(f'  "{key}": [\n{cases}\n  ]' for key, cases in lines.items())
    GOLDEN.write_text("{\n" + body + "\n}\n")


if __name__ == "__main__":
    main()
