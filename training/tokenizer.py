"""Train a tokenizer on captions: `python tokenizer.py` → work/tokenizer/."""

from __future__ import annotations

import random
from pathlib import Path

from captions import caption
from compose import draw_attributes
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

VOCABULARY = 480
# Words of other prompts, so that these aren't all split into single letters.
OTHER_WORDS = """the of and for music video game movie night morning rain ocean love dance party jazz blues
folk metal pop ambient electronic orchestral soft loud deep high low warm cold dreamy epic funky groove summer
winter child lullaby meditation violin cello saxophone trumpet beat 80s 90s retro classical play please"""


def main() -> None:
    random_ = random.Random(5)
    captions = [caption(draw_attributes(random_), random_) for _ in range(20000)]
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "</s>", "<unk>"],
        unk_token="<unk>",
        initial_alphabet=list("abcdefghijklmnopqrstuvwxyz0123456789,.-/'"),
    )
    tokenizer.train_from_iterator(captions + [" ".join(OTHER_WORDS.split())] * 30, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=64,
    )
    fast.save_pretrained(Path("work/tokenizer"))
    print(f"{len(fast)} tokens; {captions[0]!r} → {fast.tokenize(captions[0])}")


if __name__ == "__main__":
    main()
