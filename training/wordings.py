"""Words for the attributes of songs, as people write them: the lists that `words.py` makes captions of."""

from __future__ import annotations

from dataclasses import dataclass


def split(text: str) -> tuple[str, ...]:
    return tuple(" ".join(part.split()) for part in text.split("|") if part.strip())


def split_words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


@dataclass(frozen=True)
class StyleWords:
    adjectives: tuple[str, ...]
    """Before a noun: "lo-fi" track."""
    nouns: tuple[str, ...]
    """Without an article: "chillhop"."""
    things: tuple[str, ...]
    """With an article: a "waltz"."""
    beats: tuple[str, ...]
    """With an article, and only of a song with drums: a "lo-fi beat"."""
    scenes: tuple[str, ...]
    """What people write who mean the style."""
    drums: tuple[str, ...]
    """Its drums."""


def style(adjectives: str, nouns: str, things: str, beats: str, scenes: str, drums: str = "") -> StyleWords:
    return StyleWords(*map(split, (adjectives, nouns, things, beats, scenes, drums)))


STYLES = {
    "lo-fi": style(
        "lo-fi|lofi|lo fi|lofi hip hop|lo-fi hip-hop|chillhop|lofi chillhop|lo-fi hip hop",
        "lofi|lo-fi|lo-fi music|lofi hip hop|chillhop|lo-fi hip hop",
        "lo-fi track|lofi tune|chillhop instrumental|lofi song",
        "lo-fi beat|lofi beat|lofi hip hop beat|chillhop beat|lo-fi hip-hop beat|bedroom lofi beat",
        """rainy night study music|study music|music to study to|music for studying late at night|
        late night coding music|homework music|lofi study session|lofi cafe|cozy lofi for reading|
        lofi for a rainy afternoon|lo-fi to relax and study to|studying in a coffee shop, lofi""",
        "boom bap drums|dusty drums|lofi drums|a boom bap beat|a lazy drum beat",
    ),
    "house": style(
        "house|deep house|house music|club|edm|dance|electronic dance|classic house",
        "house|house music|deep house|edm|electronic dance music|dance music|club music",
        "house track|deep house tune|club track|house anthem",
        "house beat|house groove|deep house groove|club beat",
        """dj set in a club|night at the club|dance floor at midnight|ibiza beach club|rooftop party dj set|
        peak time on the dance floor|clubbing all night|90s house party|warehouse club night""",
        """four on the floor|four-on-the-floor drums|four on the floor kick|a club beat|a dance beat|
        house drums""",
    ),
    "synthwave": style(
        "synthwave|80s synthwave|retrowave|outrun|synth wave|retro synthwave|80s synth",
        "synthwave|retrowave|80s synthwave|outrun|synth wave|80s electronic music|80s synth music",
        "synthwave track|retrowave tune|synthwave anthem|80s synth track",
        "synthwave beat|retrowave groove",
        """80s night drive|neon city at night|driving through a neon city|cruising in a sports car, 1984|
        80s sci-fi movie soundtrack|cyberpunk city|miami at night in the 80s|neon lights and chrome|
        retro future night drive|neon grid sunset""",
        "80s drums|electronic drums|big 80s drums|a driving 80s beat",
    ),
    "rock": style(
        "rock|rock band|indie rock|alternative rock|guitar rock|rock and roll|garage rock|rocking",
        "rock|rock music|indie rock|rock 'n' roll|alternative rock|garage rock",
        "rock song|rock track|rock anthem|rock instrumental|rock tune",
        "rock beat|rock groove",
        """garage band rehearsal|stadium rock show|rock concert|a band rocking out|power chords in a garage|
        battle of the bands""",
        "rock drums|a rock beat|driving drums|a loud drum kit|pounding drums|live drums",
    ),
    "folk": style(
        "folk|acoustic folk|indie folk|folky|traditional folk|folk style|singer-songwriter",
        "folk|folk music|acoustic folk|indie folk|singer-songwriter music",
        "folk song|folk tune|folk melody|folk number",
        "folk groove",
        """campfire song|around the campfire|singing by the campfire|songs by the fire in the woods|
        cabin in the woods, campfire|village folk festival""",
        "light drums|light percussion|simple percussion",
    ),
    "waltz": style(
        "waltz|waltz style|waltzing|ballroom waltz",
        "waltz|waltz music",
        "waltz|ballroom waltz|little waltz|waltz tune|old-fashioned waltz",
        "",
        """ballroom dance|dancing in a ballroom|a ball in vienna|couples turning in a ballroom|viennese ball|
        grand ballroom, couples dancing""",
        "light drums|soft drums",
    ),
    "jazz trio": style(
        "jazz trio|jazz|jazzy|small group jazz|jazz combo|swinging jazz|jazz club|swing jazz",
        "jazz|jazz trio|jazz music|trio jazz|swing jazz|lounge jazz",
        "jazz trio|jazz tune|jazz number|jazz combo|jazz piece|jazz song",
        "jazz groove|swing groove",
        """smoky jazz club|late night jazz bar|jazz for dinner|dinner jazz|jazz lounge|speakeasy|
        jazz cellar in paris|hotel bar jazz|late night jazz club in new york""",
        "jazz drums|swinging drums|a swing beat|a jazz drummer|brushed drums|brushes|drums with brushes",
    ),
    "bossa nova": style(
        "bossa nova|bossa|brazilian bossa nova|bossanova|bossa-nova|brazilian jazz",
        "bossa nova|bossa|bossanova|brazilian bossa nova|bossa nova music",
        "bossa nova|bossa nova tune|bossa tune|bossa nova song|bossa",
        "bossa groove|bossa nova groove|bossa nova beat",
        """beach in rio|rio de janeiro at sunset|copacabana evening|brazilian beach bar|ipanema beach|
        cafe in rio|caipirinha on the beach in brazil""",
        "bossa drums|a bossa groove|light bossa drums|bossa nova drums",
    ),
    "funk": style(
        "funk|funky|70s funk|funk band|old school funk|funky soul|funk style",
        "funk|70s funk|funk music|funky music|old school funk",
        "funk track|funk jam|funky jam|funk tune|funk instrumental",
        "funk groove|funky groove|funk beat|70s funk groove|funky beat",
        """70s funk party|get down on the funk|70s cop show|funky 70s car chase|
        block party in the 70s, funky|platform shoes and funk""",
        "funky drums|tight funk drums|a funky beat|a tight groove|a syncopated drum groove",
    ),
    "ambient": style(
        "ambient|atmospheric ambient|space ambient|drifting ambient|ambient electronic|beautiful ambient",
        "ambient|ambient music|space ambient|ambient soundscapes|ambient electronic music",
        "soundscape|ambient soundscape|ambient piece|ambient texture",
        "",
        """meditation music|music for meditation|yoga music|sleep music|music to fall asleep to|spa music|
        floating in deep space|deep space|drifting through space|weightless in space|underwater dream""",
        "",
    ),
    "string quartet": style(
        "string quartet|chamber|classical|classical string quartet|classical chamber",
        "chamber music|classical music|classical chamber music|string quartet music",
        "string quartet|string quartet piece|classical string quartet|chamber piece|quartet for strings",
        "",
        """chamber music concert|classical concert in a small hall|classical wedding strings|
        classical salon concert|quartet playing chamber music""",
        "",
    ),
    "chiptune": style(
        "chiptune|8-bit|8 bit|8bit|retro game|video game|chip music|arcade game|nes style|retro video game",
        "chiptune|8-bit music|chip music|8 bit music|video game music|retro game music|8bit chiptune",
        "chiptune|8-bit tune|chiptune track|8-bit melody|video game theme|8 bit song|retro game theme",
        "8-bit beat|chiptune beat",
        """retro video game level|boss fight in a retro game|old arcade|platformer level one|8-bit adventure|
        pixel art game|8 bit dungeon|handheld game console from 1989|high score screen""",
        "8-bit drums|chiptune drums|noise drums",
    ),
}


@dataclass(frozen=True)
class InstrumentWords:
    exact: tuple[str, ...]
    """That mean this instrument and no other."""
    sounds: tuple[str, ...]
    """What it sounds like: true of each of its notes."""
    broad: tuple[str, ...] = ()
    """That mean its family."""


def instrument(exact: str, sounds: str = "", broad: str = "") -> InstrumentWords:
    return InstrumentWords(*map(split, (exact, sounds, broad)))


INSTRUMENTS = {
    "piano": instrument("piano|piano|piano|grand piano|acoustic piano", "soft|gentle|warm|mellow"),
    "electric piano": instrument(
        "electric piano|electric piano|rhodes|rhodes piano|e-piano|wurlitzer|fender rhodes",
        "soft|warm|mellow",
        "electric keys",
    ),
    "organ": instrument("organ|organ|hammond organ|hammond|drawbar organ|electric organ", "warm", ""),
    "accordion": instrument("accordion|accordion|squeezebox|french accordion", "", ""),
    "acoustic guitar": instrument(
        "acoustic guitar|acoustic guitar|steel-string guitar|steel string guitar",
        "warm|soft|bright",
        "guitar|acoustic guitars|guitars",
    ),
    "nylon guitar": instrument(
        "nylon guitar|nylon-string guitar|classical guitar|nylon string guitar|spanish guitar",
        "soft|warm|gentle",
        "guitar",
    ),
    "electric guitar": instrument(
        "electric guitar|electric guitar|clean electric guitar|clean guitar",
        "clean|bright",
        "guitar|guitars",
    ),
    "distorted guitar": instrument(
        """distorted guitar|distorted electric guitar|overdriven guitar|heavy guitar|fuzz guitar|
        distortion guitar|heavy distorted guitars|crunchy guitar""",
        "loud|gritty|raw",
        "guitar|guitars",
    ),
    "double bass": instrument(
        "double bass|upright bass|acoustic bass|contrabass|standup bass",
        "warm|deep|woody",
        "bass|bass line|bassline",
    ),
    "electric bass": instrument(
        "electric bass|bass guitar|electric bass guitar", "deep|warm|round", "bass|bass line|bassline"
    ),
    "synth bass": instrument(
        "synth bass|bass synth|synthesizer bass|synth bassline|electronic bass|analog synth bass",
        "deep|fat|punchy",
        "bass|bass line|bassline",
    ),
    "violin": instrument("violin|violin|fiddle", "sweet|expressive", ""),
    "viola": instrument("viola", "warm|rich", ""),
    "cello": instrument("cello|violoncello", "warm|deep|rich", ""),
    "strings": instrument(
        "strings|string section|string ensemble|orchestral strings|string orchestra",
        "lush|warm|soft|sweeping",
    ),
    "trumpet": instrument("trumpet", "bright|bold", "brass"),
    "saxophone": instrument(
        "saxophone|sax|tenor sax|tenor saxophone|sax", "smooth|smoky|warm|breathy", "woodwind"
    ),
    "clarinet": instrument("clarinet", "warm|woody|soft|mellow", "woodwind"),
    "flute": instrument("flute|flute|concert flute|silver flute", "airy|soft|breathy|light", ""),
    "square lead": instrument(
        """square lead|square wave lead|square wave|square synth|square wave synth|pulse wave|8-bit lead""",
        "bright|buzzy|retro",
        "synth|synthesizer|lead synth|synth lead",
    ),
    "saw lead": instrument(
        "saw lead|sawtooth lead|saw synth|sawtooth synth|saw wave lead|sawtooth wave",
        "bright|fat|soaring|buzzy",
        "synth|synthesizer|lead synth|synth lead|analog synth",
    ),
    "pad": instrument(
        "pad|synth pad|pads|synth pads|warm pad|ambient pad|atmospheric pads|warm synth pads",
        "soft|warm|lush|airy",
        "synth|synthesizer|synths",
    ),
}


@dataclass(frozen=True)
class Mood:
    words: tuple[str, ...]
    styles: tuple[str, ...]
    """Of which people say so."""
    third: str | None = None
    """"major" or "minor", where the mood is one of the scale's."""
    bpm: tuple[int, int] = (0, 999)


def mood(words: str, styles: str = "", third: str | None = None, bpm: tuple[int, int] = (0, 999)) -> Mood:
    return Mood(split(words), split(styles) or tuple(STYLES), third, bpm)


MOODS = (
    mood("happy|cheerful|joyful|sunny|uplifting|feel-good|optimistic|merry|positive", "", "major", (70, 999)),
    mood(
        "hopeful|uplifting|tender|sweet|happy", "lo-fi|folk|waltz|ambient|string quartet|bossa nova", "major"
    ),
    mood(
        "sad|melancholic|melancholy|sorrowful|gloomy|mournful|heartbroken|wistful|bittersweet|lonely",
        "",
        "minor",
        (0, 140),
    ),
    mood(
        "dark|moody|brooding|ominous|mysterious|tense|haunting",
        "house|synthwave|rock|ambient|string quartet|chiptune|lo-fi|jazz trio",
        "minor",
    ),
    mood(
        "chill|chilled|chilled out|laid-back|laid back|mellow|relaxing|relaxed|easygoing|cozy",
        "lo-fi|jazz trio|folk|ambient|synthwave",
        None,
        (0, 115),
    ),
    mood(
        "chill|laid-back|laid back|mellow|relaxing|relaxed|easygoing|gentle|soft|breezy|sunny", "bossa nova"
    ),
    mood("dreamy|hazy|floaty|ethereal|dreamlike", "lo-fi|synthwave|ambient", None, (0, 115)),
    mood("nostalgic|sentimental", "lo-fi|synthwave|folk|waltz|chiptune"),
    mood(
        "calm|peaceful|serene|tranquil|gentle|soothing|quiet|calming",
        "lo-fi|folk|waltz|ambient|string quartet",
        None,
        (0, 108),
    ),
    mood("meditative|spacious|vast|weightless|hypnotic|atmospheric", "ambient"),
    mood(
        "energetic|lively|high-energy|high energy|exciting|powerful",
        "house|synthwave|rock|funk|chiptune|folk",
        None,
        (100, 999),
    ),
    mood("romantic|tender|charming|intimate", "waltz|bossa nova|jazz trio|string quartet|folk"),
    mood("elegant|graceful|noble|classy", "waltz|string quartet|jazz trio|bossa nova"),
    mood("groovy|danceable|catchy", "house|funk|bossa nova"),
    mood("smooth|sophisticated|cool|late-night", "jazz trio|bossa nova|lo-fi"),
    mood("epic|heroic|cinematic|dramatic", "rock|synthwave|string quartet|chiptune"),
    mood("playful|bouncy|fun|quirky|cute", "chiptune|funk|waltz", "major"),
    mood("heavy|aggressive|gritty|raw|loud", "rock"),
    mood("retro|vintage", "synthwave|chiptune|waltz|funk"),
    mood("driving|pulsing", "house|synthwave|rock", None, (100, 999)),
    mood("rustic|earthy|heartfelt|homely", "folk"),
    mood("expressive|emotional|moving|beautiful", "string quartet|waltz|folk|ambient"),
)

SPEEDS = {
    "slow": (
        split("slow|slow|slow-paced|unhurried|slow-moving|downtempo"),
        split("at a slow tempo|slow tempo|played slowly|at a slow pace|in a slow tempo"),
    ),
    "medium": (
        split("mid-tempo|medium tempo|midtempo|moderate|moderately paced|medium-paced"),
        split("at a medium tempo|at a moderate tempo|moderate tempo|at walking pace|at a moderate pace"),
    ),
    "fast": (
        split("fast|fast|up-tempo|uptempo|quick|fast-paced|upbeat|rapid|brisk"),
        split("at a fast tempo|fast tempo|played fast|at high speed|at a quick pace|at a fast pace"),
    ),
}
"""Adjectives, and what stands after a noun."""
BPM = split(
    """{} bpm|{} bpm|{} BPM|{}bpm|at {} bpm|at {} BPM|{} beats per minute|at {}bpm|tempo {}|tempo {} bpm|
    around {} bpm|about {} bpm|~{} bpm|with a tempo of {} bpm|{} BPM tempo|at a tempo of {}"""
)

# Names of the twelve tonics, from C.
TONICS = tuple(
    split(names)
    for names in (
        "C",
        "C#|Db|C sharp|D flat|C-sharp",
        "D",
        "Eb|D#|E flat|E-flat|D sharp",
        "E",
        "F",
        "F#|Gb|F sharp|G flat|F-sharp",
        "G",
        "Ab|G#|A flat|A-flat|G sharp",
        "A",
        "Bb|A#|B flat|B-flat|A sharp",
        "B",
    )
)
KEYS = {
    "major": split("{} major|{} major|{} maj|{}maj|{} Major"),
    "minor": split("{} minor|{} minor|{} min|{}m|{} Minor"),
    "dorian": split("{} dorian|{} Dorian|{} dorian mode"),
    "mixolydian": split("{} mixolydian|{} Mixolydian|{} mixolydian mode"),
}
KEY_PHRASES = split("in {}|in {}|{}|in the key of {}|key of {}|key: {}|key {}")
MODES = {
    "major": split("in a major key|major key|in major|major scale|in a major tonality"),
    "minor": split("in a minor key|minor key|in minor|minor scale|in a minor tonality"),
    "dorian": split("in dorian mode|dorian|dorian mode|dorian scale"),
    "mixolydian": split("in mixolydian mode|mixolydian|mixolydian mode|mixolydian scale"),
}
METERS = {
    "4/4": split("in 4/4|4/4|4/4 time|in 4/4 time|in common time|four-four time"),
    "3/4": split("in 3/4|3/4|3/4 time|in 3/4 time|in waltz time|in triple meter|three-four time"),
    "6/8": split("in 6/8|6/8|6/8 time|in 6/8 time|6/8 feel|six-eight time|in six eight|in a 6/8 meter"),
}
DRUMS = split(
    "drums|drums|drums|a drum kit|a drum beat|a steady beat|a beat|percussion|steady drums|drum groove"
)
NO_DRUMS = split(
    """no drums|without drums|no drums|no percussion|without percussion|no beat|without any drums|
    no drum kit|without a beat|leave out the drums|drums left out"""
)
DRUMLESS = split("drumless|beatless")
CRACKLE = split(
    """vinyl crackle|vinyl crackle|record crackle|vinyl noise|crackling vinyl|
    the crackle of an old record|dusty vinyl|crackle|a crackling record|vinyl hiss and crackle"""
)
# What is said of instruments that don't have the melody.
ROLES = split(
    """backed by {}|over {}|with {} in the background|with {} behind it|with {} chords|{} chords|
    {} accompaniment|accompanied by {}|on a bed of {}|{} in the background|background {}"""
)
BACKGROUND_ROLES = split("with {}|{}|over {}|{} underneath|with {} underneath|and {}|{}")
"""Of a bass or a pad, which nobody takes for the melody."""
LEADS = split(
    "{}|{}|{}|{}|{} melody|{} lead|lead {}|{} playing the melody|{} as the lead|a melody on {}|{} in front"
)
NOUNS = split(
    "track|song|tune|piece|instrumental|theme|number|recording|clip|composition|jam|background track"
)
MASS_NOUNS = split("music|music|background music|instrumental music|vibes|soundtrack music")
BEATS = split("beat|beat|groove")

REQUESTS = split(
    """make|make me|can you make|could you make|please make|create|generate|i want|i need|i'd like|
    give me|play|play me|write|write me|compose|i would like|can i have|looking for|make a song:|
    produce|we need|i want to hear|can you generate|could you write|please create|let's hear|do"""
)
# Said of any song, and meaning nothing.
NOISE = split(
    """high quality|hq|4k|masterpiece|best quality|award winning|professional|studio quality|please|
    thanks|thank you|royalty free|no copyright|instrumental|no vocals|without vocals|no singing|
    for my video|for youtube|for a podcast|podcast intro|for my vlog|for a short film|for my game|
    background|well produced|well mixed|professionally mixed|clean mix|original|new|something nice|
    good|very good|nice|really good|the best|amazing|awesome|perfect|for an advert|for a presentation|
    for my friends|for a slideshow|for the intro|for a trailer|for instagram|for my website|trending|
    viral|hd|ultra hd|crisp|polished|mastered|full song|30 seconds|10 seconds|15 seconds|
    60 seconds long|one minute|20s|a minute long|loop|seamless|no lyrics|free|demo|version 2|take 3|
    top 10"""
)
PLACES = split(
    """for a rainy night|for a morning walk|for a long train ride|at sunset|for cooking|late at night|
    on a sunny day|for a sunday morning|in autumn|for a winter evening|for a summer day|by the sea|
    in the rain|under the stars|in the morning|for two|for a walk in the park|on a quiet street|
    for my birthday|for a first date|in the city|at the end of the day|after work|on the road|
    for a friend|about love|about the ocean|about a journey|about home|with feeling|like a memory|
    for a picnic|while it snows"""
)
# Words of other prompts, thrown into captions so that they come to mean nothing.
OTHER_WORDS = split_words(
    """the of and for to is it that this these those my your our their we you they he she me us who what
    when where why how all any some more most much many little bit lot kind sort type like as if then
    than so but or just also very really quite rather almost always never often again still already here
    there now today tonight tomorrow yesterday morning evening night day week month year time hour
    minute second moment life world people person man woman boy girl kid kids child children baby family
    friend mother father brother sister king queen hero princess robot alien ghost cat dog bird horse
    fish lion tiger wolf bear dragon tree forest flower garden mountain river lake sea ocean island
    desert field sky sun moon star stars cloud rain snow storm wind fire ice water light shadow color
    red blue green yellow black white golden silver home room kitchen window door street road city town
    village country train car boat ship plane bike school work office shop market church castle park
    bridge tower station airport hotel restaurant coffee tea wine bread food breakfast lunch book story
    letter picture photo movie film scene intro outro opening ending chapter episode show channel menu
    logo advert commercial trailer documentary vlog podcast stream travel journey adventure trip walk
    run jump fly fall rise sing dream wake think feel feeling want need make made give get go going come
    coming see look hear listen listening know say tell ask find lose win play start begin stop end wait
    stay leave open close turn move hold keep let help love hope fear joy anger peace war freedom secret
    magic mystery wonder memory memories future past history science technology nature earth england
    france spain italy japan china india africa america paris london berlin tokyo summer winter spring
    autumn christmas halloween birthday wedding party holiday weekend friday saturday sunday monday
    simple complex big small large tiny long short high low hard easy young new modern ancient real fake
    true false good bad better best great nice perfect beautiful ugly strange weird crazy wild free busy
    empty full first last next other another same different special mood atmosphere energy into from
    about around between through during before after over under behind beside inside outside up down
    left right on off in out at by"""
)
# Words that only the tokenizer knows as wholes: of music that isn't described here.
OTHER_MUSIC = split_words(
    """pop blues metal country reggae techno trance dubstep disco soul gospel opera orchestra orchestral
    symphony choir vocal vocals voice singer rap hip hop trap drum punk grunge ska latin salsa tango
    samba flamenco celtic irish medieval baroque classical romantic lullaby march anthem ballad harp
    banjo mandolin ukulele harmonica oboe bassoon trombone tuba horn xylophone marimba vibraphone
    glockenspiel bells bell kalimba sitar congas bongos timpani cymbals hi-hat snare kick clap reverb
    echo delay tremolo staccato legato arpeggio pizzicato crescendo solo duet duo trio quintet band
    ensemble epic cinematic industrial psychedelic progressive experimental minimal acoustic electric
    electronic synthesizer digital analog vintage retro tape noise hiss wave waves birds thunder wind
    deep dance dancing video game level space planet sleep vienna dinner cafe old rhythm harmony chord
    chords melody tune bar bars note notes one two three four five six seven eight nine ten with without
    not only style vibe vibes tone sound sounds playing"""
)

# From here on: only in captions of the evaluation.
UNSEEN_BPM = split(
    "clocking in at {} bpm|a pulse of {} bpm|set the metronome to {} bpm|bpm = {}|ticking along at {} bpm"
)
UNSEEN_KEYS = split("the key being {}|centred on {}|{} is the key|with {} as its home key")
UNSEEN_DRUMS = split("drums included|add drums|and do bring the drums|drums welcome|keep the drums in")
UNSEEN_NO_DRUMS = split(
    "no drums whatsoever|entirely without drums|with no drums in it|do it without drums|no drums in there"
)
UNSEEN_CRACKLE = split("plus that vinyl crackle|vinyl crackle on top|a layer of vinyl crackle")
UNSEEN_TEMPLATES = split(
    """{style} with {lead} riding on top, {drums}, {bpm}|
    {lead} front and center, {style}, {key}, {bpm}|
    some {mood} {style}, mostly {lead}, {drums}|
    i'm after {style}: {lead} carrying the tune, {bpm}, {key}|
    {mood} {style} built around {lead}, {key}, {drums}|
    a short {style} sketch for {lead}, {key}, {bpm}|
    background for a cooking channel: {style}, {lead}, {bpm}, {drums}|
    we're filming a product video and could use {style} with {lead}, {bpm}|
    {style} vibes only, {lead}, {drums}, {bpm}|
    soundtrack idea - {lead} up top, very {style}, {key}, {bpm}|
    i'm editing holiday footage and fancy some {style}, somewhat {mood}, {lead} carrying it, {drums}|
    think {style}, {speed} and {mood}, led by {lead}|
    let the {lead} tell the tale in this {mood} {style} cue, {key}, {drums}|
    what would {style} be like {in_key} if the {lead} took centre stage?|
    the brief from our client says {style}: {lead} to the fore, {bpm}, {key}|
    teach me {style} by example, {speed}, {in_meter}, {lead} up front|
    we fade in on {lead}; it turns into {style}, {mood}, {key}, {drums}|
    score the credits using {lead}, firmly {style}, {bpm}, {drums}|
    surprise me, though it has to be {style} and {lead}, {key}|
    {style} of this sort: {mood}, {lead} first and foremost, {bpm}|
    {style}. that's it, well, maybe {lead} too, {drums}|
    anything {mood} goes as long as {lead} is heard and it's {style}, {bpm}|
    picture {style} starring {lead}, {in_meter}, {drums}, {bpm}|
    nothing fancy, {lead} plus {accompaniment}, textbook {style}, {key}|
    {lead}-led {style}, {speed}, {drums}|
    {mood} {style} starring {lead}, {bpm}, {crackle}"""
)


@dataclass(frozen=True)
class Sentence:
    """A caption of the evaluation, as somebody would type it."""

    text: str
    attributes: dict[str, object]
    """Of the songs that it is true of; those that it names."""


UNSEEN_SENTENCES = (
    Sentence(
        "a chill lo-fi beat with vinyl crackle and soft piano",  # README's own
        {"style": "lo-fi", "drums": True, "crackle": True, "lead": "piano"},
    ),
    Sentence(
        "lofi beat with a mellow electric piano and no rush at all",
        {"style": "lo-fi", "drums": True, "lead": "electric piano"},
    ),
    Sentence(
        "deep house for a rooftop bar, saw lead, 124 bpm", {"style": "house", "lead": "saw lead", "bpm": 124}
    ),
    Sentence("house with a warm organ hook and drums", {"style": "house", "lead": "organ", "drums": True}),
    Sentence("80s synthwave with a driving bass", {"style": "synthwave"}),
    Sentence(
        "synthwave in A minor with a soaring saw lead",
        {"style": "synthwave", "tonic": 9, "mode": "minor", "lead": "saw lead"},
    ),
    Sentence(
        "rock with a distorted guitar riff and pounding drums",
        {"style": "rock", "lead": "distorted guitar", "drums": True},
    ),
    Sentence(
        "a folk tune for acoustic guitar, no drums please",
        {"style": "folk", "lead": "acoustic guitar", "drums": False},
    ),
    Sentence("folk fiddle, just how grandpa played it", {"style": "folk", "lead": "violin"}),
    Sentence(
        "a slow waltz for accordion", {"style": "waltz", "meter": "3/4", "lead": "accordion", "speed": "slow"}
    ),
    Sentence("a waltz for violin in three", {"style": "waltz", "meter": "3/4", "lead": "violin"}),
    Sentence(
        "jazz trio, piano out in front, brushing past midnight", {"style": "jazz trio", "lead": "piano"}
    ),
    Sentence("jazz with a smoky tenor sax", {"style": "jazz trio", "lead": "saxophone"}),
    Sentence("bossa nova with nylon guitar", {"style": "bossa nova", "lead": "nylon guitar"}),
    Sentence(
        "an airy flute over a bossa nova rhythm with drums",
        {"style": "bossa nova", "lead": "flute", "drums": True},
    ),
    Sentence(
        "funk with a clean electric guitar and a tight beat",
        {"style": "funk", "lead": "electric guitar", "drums": True},
    ),
    Sentence("funk, trumpet, let's go", {"style": "funk", "lead": "trumpet"}),
    Sentence(
        "ambient piano that never hurries, no drums", {"style": "ambient", "lead": "piano", "drums": False}
    ),
    Sentence(
        "a string quartet in a candlelit hall, violin leading", {"style": "string quartet", "lead": "violin"}
    ),
    Sentence(
        "a fast chiptune with a square wave lead",
        {"style": "chiptune", "lead": "square lead", "speed": "fast"},
    ),
)
