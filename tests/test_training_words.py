"""The demo model learns from captions that say what is so in many wordings, none of them the evaluation's."""

from __future__ import annotations

import random
import re
import sys
from collections import defaultdict
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "training"))
import wordings
from any_attributes import LEADS, any_attributes
from attributes import INSTRUMENTS, METERS, MODES, STYLES, TONICS, Attributes
from text_tokenizer import make_tokenizer
from tokenizers import Tokenizer
from words import Caption, caption, content, slots_of, speed, unseen_caption, with_invented_words, with_typo

README_EXAMPLE = "a chill lo-fi beat with vinyl crackle and soft piano"
Pairs = list[tuple[Attributes, Caption]]


@pytest.fixture(scope="module")
def captions() -> Pairs:
    """Without mistakes in typing, so that they can be read back."""
    random_ = random.Random(1)
    songs = [any_attributes(random_) for _ in range(20_000)]
    return [(song, caption(song, random_, plain=True)) for song in songs]


@pytest.fixture(scope="module")
def unseen() -> Pairs:
    random_ = random.Random(2)
    songs = [any_attributes(random_) for _ in range(4_000)]
    return [(song, unseen_caption(song, random_)) for song in songs]


def test_every_value_has_words() -> None:
    assert set(wordings.STYLES) == set(STYLES)
    assert set(wordings.INSTRUMENTS) == set(INSTRUMENTS)
    assert len(wordings.TONICS) == len(TONICS)
    assert all(name in names for name, names in zip(TONICS, wordings.TONICS, strict=True))
    assert set(wordings.KEYS) == set(wordings.MODES) == set(MODES)
    assert set(wordings.METERS) == set(METERS)
    assert {style for mood in wordings.MOODS for style in mood.styles} == set(STYLES)
    for style in wordings.STYLES.values():
        assert style.adjectives
        assert style.nouns
        assert style.things
        assert style.scenes


def test_a_word_means_one_style_and_one_instrument() -> None:
    def owners(words: dict[str, tuple[str, ...]]) -> list[str]:
        found = defaultdict(set)
        for name, phrases in words.items():
            for phrase in phrases:
                found[phrase.lower()].add(name)
        return [phrase for phrase, names in found.items() if len(names) > 1]

    assert not owners(
        {name: s.adjectives + s.nouns + s.things + s.beats + s.scenes for name, s in wordings.STYLES.items()}
    )
    assert not owners({name: words.exact for name, words in wordings.INSTRUMENTS.items()})
    families = defaultdict(tuple)
    for name, words in wordings.INSTRUMENTS.items():
        families[INSTRUMENTS[name][1]] += words.broad
    assert not owners(families)


def test_captions_name_the_songs_own_numbers(captions: Pairs, unseen: Pairs) -> None:
    pattern = re.compile(
        r"(?<![\w-])(?:bpm|tempo)[ =:]{0,3}(\d+)\b(?!/|-| bit| sec)"
        r"|(?<![\d/])(\d+) ?(?:bpm(?! ?[:=])|beats per minute)",
        re.IGNORECASE,
    )
    seen = 0
    for song, made in captions + unseen:
        numbers = [int(number) for match in pattern.findall(made.text) for number in match if number]
        assert all(number == song.bpm for number in numbers), made
        assert "bpm" in made.named or not numbers, made
        seen += bool(numbers)
    assert seen > 5_000


def test_captions_name_the_songs_own_key(captions: Pairs, unseen: Pairs) -> None:
    names = {name.lower(): tonic for tonic, names in enumerate(wordings.TONICS) for name in names}
    tonics = "|".join(sorted(map(re.escape, names), key=len, reverse=True))
    pattern = re.compile(
        rf"(?<![\w#-])({tonics}) ?(major|minor|maj|min|dorian|mixolydian)(?! key| tonality| scale)\b"
    )
    modes = {"maj": "major", "min": "minor"}
    seen = 0
    for song, made in captions + unseen:
        for tonic, mode in pattern.findall(made.text.lower()):
            assert names[tonic] == song.tonic, made
            assert modes.get(mode, mode) == song.mode, made
            assert {"tonic", "mode", "third"} <= made.named, made
            seen += 1
    assert seen > 4_000


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_is_named_only_where_it_is_the_songs(mode: str, captions: Pairs, unseen: Pairs) -> None:
    for song, made in captions + unseen:
        if re.search(rf"\b{mode}\b", made.text.lower()):
            assert song.mode == mode, made
            assert "mode" in made.named, made


def test_drums_are_denied_and_named_truly(captions: Pairs, unseen: Pairs) -> None:
    denied = re.compile(
        r"\b(no|without|without any|not a single|zero|skip the|leave out the) (drums?|percussion|beat)\b"
        r"|drums left out|without a beat|drumless|beatless|drums ?[:=] ?(no|none)\b"
    )
    named = re.compile(r"\b(drums?|drummer|beat|groove|four.on.the.floor|percussion)\b")
    counts = {True: 0, False: 0}
    for song, made in captions + unseen:
        text = made.text.lower()
        has_denied = bool(denied.search(text))
        if has_denied or named.search(text):
            assert song.drums != has_denied, made
            assert "drums" in made.named, made
            counts[song.drums] += 1
    assert min(counts.values()) > 3_000


def test_instruments_and_crackle_are_the_songs(captions: Pairs, unseen: Pairs) -> None:
    for song, made in captions + unseen:
        text = made.text.lower()
        assert made.instruments <= {song.lead, *song.accompaniment}, made
        assert ("lead" in made.named) == (song.lead in made.instruments), made
        assert "family" in made.named or "lead" not in made.named
        for name in (
            "accordion",
            "flute",
            "trumpet",
            "clarinet",
            "cello",
            "viola",
            "nylon guitar",
            "double bass",
        ):
            if re.search(rf"\b{name}\b", text):
                assert name in made.instruments, made
        if "distort" in text or "overdriven" in text:
            assert "distorted guitar" in made.instruments, made
        if "crackl" in text:
            assert song.crackle, made
            assert "crackle" in made.named, made


def place(text: str, phrases: tuple[str, ...]) -> int:
    """Where the first of `phrases` begins."""
    return min(text.index(phrase) for phrase in phrases if phrase in text)


def test_the_first_instrument_has_the_melody(captions: Pairs) -> None:
    """Where it is said that another one accompanies, it may come before."""
    plain = [name for name in LEADS if name != "pad"]
    accompanies = re.compile(r"back(ed|ground)|over|behind|chords|accompan|bed of|underneath")
    seen = 0
    for song, made in captions:
        text = re.sub("(quartet for|wedding) strings", "quartet", made.text.lower())
        places = {
            name: place(text, wordings.INSTRUMENTS[name].exact) for name in plain if name in made.instruments
        }
        if "lead" in made.named and song.lead != "pad" and len(places) > 1 and not accompanies.search(text):
            assert min(places, key=places.__getitem__) == song.lead, made
            seen += 1
    assert seen > 300


def test_words_for_tempo_meter_and_mood_are_true(captions: Pairs, unseen: Pairs) -> None:
    for song, made in captions + unseen:
        text = made.text.lower()
        for name, words in {
            "slow": "slow",
            "medium": "mid-?tempo|moderate",
            "fast": "fast|uptempo|quick",
        }.items():
            if re.search(rf"\b({words})\b", text):
                assert speed(song.bpm) == name, made
                assert "speed" in made.named, made
        for meter in METERS:
            if meter in text:
                assert song.meter == meter, made
                assert "meter" in made.named, made
        if re.search(r"\b(happy|cheerful|joyful)\b", text):
            assert song.mode in ("major", "mixolydian"), made
        if re.search(r"\b(sad|melancholic|gloomy)\b", text):
            assert song.mode in ("minor", "dorian"), made


@pytest.mark.parametrize("style", STYLES)
def test_there_are_hundreds_of_wordings_of_a_style(style: str, captions: Pairs) -> None:
    texts = {made.text.lower() for song, made in captions if song.style == style and "style" in made.named}
    assert len(texts) > 800


def test_attributes_are_often_missing(captions: Pairs) -> None:
    for name, most in {
        "style": 0.95,
        "lead": 0.65,
        "bpm": 0.5,
        "tonic": 0.4,
        "meter": 0.3,
        "drums": 0.65,
    }.items():
        share = sum(name in made.named for _, made in captions) / len(captions)
        assert 0.1 < share < most, name
    lengths = [len(made.text.split()) for _, made in captions]
    assert min(lengths) == 1
    assert sum(length < 4 for length in lengths) > 2_000


def test_captions_are_reproducible() -> None:
    song = any_attributes(random.Random(3))
    assert caption(song, random.Random(4)) == caption(song, random.Random(4))
    assert unseen_caption(song, random.Random(4)) == unseen_caption(song, random.Random(4))


def test_a_mistake_in_typing_is_small_and_leaves_numbers_alone() -> None:
    random_ = random.Random(7)
    for _ in range(200):
        wrong = with_typo("a lazy accordion waltz at 120 bpm", random_)
        assert wrong.split()[4:] == ["at", "120", "bpm"]
        assert wrong.startswith("a lazy ")
        assert abs(len(wrong) - 33) <= 1
    assert with_typo("lofi", random_) == "lofi"


def test_words_that_the_tokenizer_does_not_know_stand_between_the_others() -> None:
    random_ = random.Random(7)
    for _ in range(200):
        words = with_invented_words("a waltz at 120 bpm", random_).split()
        assert 5 < len(words) <= 10
        others = iter(words)
        assert all(word in others for word in ["a", "waltz", "at", "120", "bpm"])


# The tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return make_tokenizer(captions=5_000)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Lofi, 90bpm", ["lofi", ",", "90", "bpm"]),
        ("in F♯ minor", ["in", "♮f♯", "minor"]),
        ("A-flat Major, B flat Dorian", ["♮a♭", "major", ",", "♮b♭", "dorian"]),
        ("Gbmaj / D#m / Am", ["♮g♭", "maj", "/", "♮d♯", "m", "/", "♮a", "m"]),
        ("a piano in a minor key", ["a", "piano", "in", "a", "minor", "key"]),
        ("in the key of A minor", ["in", "the", "key", "of", "♮a", "minor"]),
        ("bossa nova at 137 BPM", ["bossa", "nova", "at", "137", "bpm"]),
        ("a violinist\n in  6/8", ["a", "violin", "ist", "in", "6", "/", "8"]),
        ("café", ["cafe"]),
    ],
)
def test_words_and_numbers_are_tokens(text: str, tokens: list[str], tokenizer: Tokenizer) -> None:
    assert tokenizer.encode(text).tokens == [*tokens, "</s>"]


def test_each_tempo_is_a_token_and_no_word_is_unknown(tokenizer: Tokenizer, captions: Pairs) -> None:
    assert tokenizer.get_vocab_size() == 1500
    assert all(tokenizer.token_to_id(str(bpm)) is not None for bpm in range(60, 171))
    for text in ("xylophonist", "zzz", "quetzalcoatl 9000"):
        assert "<unk>" not in tokenizer.encode(text).tokens
    lengths = [len(tokenizer.encode(made.text).ids) for _, made in captions[:2_000]]
    assert max(lengths) < 80


# The evaluation


def test_readmes_example_is_of_the_evaluation_and_says_what_is_so() -> None:
    song = Attributes("lo-fi", 75, 9, "minor", "4/4", True, "piano", ("electric bass",), True)
    random_ = random.Random(5)
    found = {made.text: made for made in (unseen_caption(song, random_) for _ in range(500))}
    made = found[README_EXAMPLE]
    assert made.named == {"style", "drums", "crackle", "lead", "family"}
    assert made.instruments == {"piano"}


def test_readmes_example_is_readmes() -> None:
    assert README_EXAMPLE in (Path(__file__).parent.parent / "README.md").read_text()


def test_no_sentence_of_the_evaluation_is_in_training(captions: Pairs, unseen: Pairs) -> None:
    training = {content(made.text) for _, made in captions}
    assert not training & {content(sentence.text) for sentence in wordings.UNSEEN_SENTENCES}
    assert not training & {content(made.text) for _, made in unseen}


def test_no_training_caption_is_readmes_example_in_other_clothes() -> None:
    """Of a song that it fits."""
    song = Attributes("lo-fi", 75, 9, "minor", "4/4", True, "piano", (), True)
    random_ = random.Random(6)
    assert all(content(caption(song, random_).text) != content(README_EXAMPLE) for _ in range(5_000))


@pytest.mark.parametrize("template", wordings.UNSEEN_TEMPLATES)
def test_a_template_of_the_evaluation_has_words_that_no_training_caption_has(
    template: str, captions: Pairs
) -> None:
    assert slots_of(template) >= {"style", "lead"}
    literals = [text.strip(" ,;:.") for text in re.split(r"\{\w+\}", template)]
    longest = max(literals, key=len)
    assert len(longest) > 3
    assert not any(longest in made.text.lower() for _, made in captions)


def test_every_sentence_and_template_of_the_evaluation_is_used(unseen: Pairs) -> None:
    texts = [made.text for _, made in unseen]
    for template in wordings.UNSEEN_TEMPLATES:
        pattern = re.compile(".+".join(map(re.escape, re.split(r"\{\w+\}", template))))
        assert any(pattern.fullmatch(text) or pattern.match(text) for text in texts), template
    for sentence in wordings.UNSEEN_SENTENCES:
        assert sentence.attributes["style"] in STYLES
        assert sentence.attributes.get("lead", "piano") in LEADS
