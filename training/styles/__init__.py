"""The twelve styles, from what is common knowledge about them."""

from .ambient import AMBIENT
from .bossa import BOSSA_NOVA
from .chiptune import CHIPTUNE
from .folk import FOLK
from .funk import FUNK
from .house import HOUSE
from .jazz import JAZZ_TRIO
from .lofi import LO_FI
from .quartet import STRING_QUARTET
from .rock import ROCK
from .style import Groove, Style
from .synthwave import SYNTHWAVE
from .waltz import WALTZ

STYLES: dict[str, Style] = {
    "lo-fi": LO_FI,
    "house": HOUSE,
    "synthwave": SYNTHWAVE,
    "rock": ROCK,
    "folk": FOLK,
    "waltz": WALTZ,
    "jazz trio": JAZZ_TRIO,
    "bossa nova": BOSSA_NOVA,
    "funk": FUNK,
    "ambient": AMBIENT,
    "string quartet": STRING_QUARTET,
    "chiptune": CHIPTUNE,
}

__all__ = ["STYLES", "Groove", "Style"]
