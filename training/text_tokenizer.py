"""Make a tokenizer of the captions' words: `python text_tokenizer.py` → work/text_tokenizer/.

Each word of the captions is one token, also within other words ("violin" + "ist"); what is left is split into
frequent pieces or letters. Each number of beats per minute is one token, too: what it means is then one
embedding to learn, and a small text encoder needs no layer that puts digits together. Numbers are split from
letters ("90bpm"). So is each tonic one token ("♮e♭" for "E flat minor", "Ebm"): its letter alone is also an
article, and a piece of words that aren't known. Three replacements do it: more would be refused, because
musicgen-mlx bounds what a tokenizer's replacements can make of a text.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

from draw import draw_attributes
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from wordings import OTHER_MUSIC, OTHER_WORDS
from words import caption

TOKENIZER = Path("work/text_tokenizer")
VOCABULARY = 1500
CAPTIONS = 60_000
SPECIAL = ("<pad>", "</s>", "<unk>")
CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789,.-/'#&:;!?()\"|+=~"
BPMS = range(60, 171)
TONIC = "♮"
"""Stands before each; it isn't punctuation, which would be split from it."""
NAMES = ("c", "c♯", "d♭", "d", "d♯", "e♭", "e", "f", "f♯", "g♭", "g", "g♯", "a♭", "a", "a♯", "b♭", "b")
TONICS = tuple(TONIC + name for name in NAMES)
# Before a mode; the article before "minor key" is none.
BEFORE_TONIC = Regex(
    r"(?<![\w#])(?=([acdfg]([#♯]|[ -]sharp)|[abdeg]([b♭]|[ -]flat)|[a-g])"
    r"[ -]?(maj(or)?|min(or)?|m|dorian|mixolydian)\b(?! (key|scale|tonality)))"
)
# Log probabilities: a word in one piece before one in two, and anything before letters.
WORD, PIECE, CHARACTER = -5.0, -8.0, -12.0


def make_tokenizer(captions: int = CAPTIONS) -> Tokenizer:
    """Of the words of so many captions."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Replace("\N{RIGHT SINGLE QUOTATION MARK}", "'"),
            normalizers.NFD(),
            normalizers.StripAccents(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"[\s_]+"), " "),
            normalizers.Replace(BEFORE_TONIC, TONIC),
            normalizers.Replace(Regex(f"(?<={TONIC}[a-g])([#♯]|[ -]sharp)"), "♯"),
            normalizers.Replace(Regex(f"(?<={TONIC}[a-g])([b♭]|[ -]flat)"), "♭"),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Punctuation("isolated"),
            pre_tokenizers.Digits(individual_digits=False),
        ]
    )
    words = sorted({*caption_words(tokenizer, captions), *OTHER_WORDS, *OTHER_MUSIC} - set(CHARACTERS))
    scores = dict.fromkeys(SPECIAL, 0.0) | dict.fromkeys(CHARACTERS, CHARACTER)
    scores |= dict.fromkeys((*TONICS, *words, *map(str, BPMS)), WORD)
    for piece in frequent_pieces(words):
        if len(scores) == VOCABULARY:
            break
        scores.setdefault(piece, PIECE)
    tokenizer.model = models.Unigram(list(scores.items()), SPECIAL.index("<unk>"), byte_fallback=False)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return tokenizer


def caption_words(tokenizer: Tokenizer, captions: int) -> set[str]:
    """As the tokenizer finds them in plain captions."""
    random_ = random.Random(5)
    result = set()
    for _ in range(captions):
        text = tokenizer.normalizer.normalize_str(caption(draw_attributes(random_), random_, plain=True).text)
        result |= {word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text) if word.isascii()}
    return {word for word in result if word.isalpha()}


def frequent_pieces(words: list[str]) -> list[str]:
    """Of two to four letters, the most useful ones first."""
    counts = Counter(
        word[start : start + length]
        for word in words
        for length in (2, 3, 4)
        for start in range(len(word) - length + 1)
    )
    return sorted(counts, key=lambda piece: (-counts[piece] * (len(piece) - 1), piece))


def main() -> None:
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(
        tokenizer_object=make_tokenizer(),
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=96,
    )
    fast.save_pretrained(TOKENIZER)
    example = "a chill lo-fi beat with vinyl crackle and soft piano, 85bpm in F♯ minor"
    print(json.dumps({"tokens": len(fast), example: fast.tokenize(example)}, ensure_ascii=False))


if __name__ == "__main__":
    main()
