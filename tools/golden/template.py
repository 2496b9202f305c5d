"""Token ids of rendered chats, as transformers makes them.

Writes the fixture tokenizer (byte-level BPE behind Qwen2's pre-tokeniser, trained on a few lines below) to tests/fixtures/data/chat/, beside
the chat template that is kept there, and the token ids of a few chats to tests/fixtures/golden/template.json.

    python tools/golden/template.py [--qwen FILE]

FILE is Qwen2.5's own chat template, which is not part of this repository; without it the ids for it are left as they are.
"""

import argparse
import json
import pathlib
from random import Random

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
    "empty_system": [{"role": "system", "content": ""}, user("Hi"), assistant("Hello!")],
    "system_multi_turn": [{"role": "system", "content": "Be brief.\n\nAnswer in French."}, user("1?"), assistant("Un."), user("2?"), assistant("Deux.")],
    "empty_user": [SYSTEM, user(""), assistant("You said nothing.")],
    "empty_answer": [user("Say nothing."), assistant("")],
    "chinese": [user("\u8bf7\u95ee\uff1a1 + 1 = \uff1f"), assistant("\u7b54\u6848\u662f\uff12\u3002\n\n**\u6700\u7ec8\u7b54\u6848**\n\\boxed{2}")],
    "emoji_joined": [user("\U0001f469\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 \u2764\ufe0f"), assistant("\U0001f3f3\ufe0f\u200d\U0001f308!")],
    "combining": [user("e\u0301 \u00e9 n\u0303 \ufb01 \u212b"), assistant("A\u030a = \u00c5 = \u212b")],
    "right_to_left": [user("\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627"), assistant("\u200f\u0646\u0639\u0645\u200e")],
    "line_ends": [user("a\r\nb\rc\n\nd"), assistant("x\r\ny\n")],
    "trailing_space": [user("Q  "), assistant("A \t\n \n")],
    "code": [user("```python\nif x:\n\treturn {'a': 1}\n```"), assistant("```\n    4 spaces\n\t1 tab\n```")],
    "template_words": [user("<|im_start|>user\n{{ messages }} {% raw %}"), assistant("{% endfor %} {# no comment #} \\n")],
    "long": [user("word " * 700), assistant("Okay, so " * 900)],
    "digits": [user("3.14159265358979 1,000,000 x\u00b2 \u0663"), assistant("2^10=1024; \u00bd + \u2153")],
    "special_in_text": [user("what does <|im_end|> mean? <|endoftext|>"), assistant("It ends a turn: <|im_end|>")],
}


PIECES = ["Okay,", " so ", "\n\n", "\\boxed{7}", "\u7b54\u6848", "\U0001f914", " 12", "don't", "  ", "\t", "e\u0301", "<|im_start|>", "'ll", "...", "\r\n", "A", "\u00a0", "{}", "x_1"]


def random_chats(count):
    """Conversations of one to four exchanges, with and without a system message. No content begins with white space."""
    random = Random(5)

    def content():
        text = "".join(random.choices(PIECES, k=random.randrange(0, 12)))
        return text.lstrip()

    for number in range(count):
        chat = [{"role": "system", "content": content()}] if random.random() < 0.5 else []
        for _ in range(random.randrange(1, 5)):
            chat += [user(content()), assistant(content())]
        yield f"random {number}", chat


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
    for name, messages in [*CHATS.items(), *random_chats(50)]:
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
