"""What a user should know of networks before using them: carried in the bundle, and a model card beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from kits_cascade.errors import FileFormatError
from kits_cascade.files import read_json, sha256, write_text
from kits_cascade.version import __version__

NOT_STATED: Final = "not stated"
_LONGEST: Final = 300


@dataclass(frozen=True)
class About:
    """Licence of the weights, what they were trained on (and under which licence), and which system they make."""

    licence: str = NOT_STATED
    trained_on: str = NOT_STATED
    system: str = "cascade"

    def to_json(self) -> dict[str, str]:
        """For the bundle's manifest."""
        return asdict(self)

    @staticmethod
    def from_manifest(content: Mapping[str, Any]) -> About:
        """What a manifest says, made fit to be shown: it may be somebody else's."""
        return About(**{key: _plain(content.get(key, default)) for key, default in asdict(About()).items()})

    def lines(self) -> list[str]:
        """For the terminal."""
        return [f"licence: {self.licence}", f"trained on: {self.trained_on}", f"system: {self.system}"]


def _plain(value: Any) -> str:
    text = " ".join("".join(letter if letter.isprintable() else " " for letter in str(value)).split())
    return text[:_LONGEST] or NOT_STATED


def write_card(bundle: Path, about: About, networks: list[str], scores: Path | None = None) -> Path:
    """README.md beside a bundle, as a hub shows it; ``scores`` is an evaluation.json of these networks."""
    card = bundle.with_name("README.md")
    rows = [] if scores is None else _score_rows(scores)
    write_text(card, _text(bundle, about, networks, rows))
    return card


def _score_rows(path: Path) -> list[str]:
    try:
        content = read_json(path)
        count, average = len(content["cases"]), {str(k): float(v) for k, v in content["average"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FileFormatError(f"{path}: not an evaluation.json of `kits-cascade evaluate` ({error!r})") from error
    rows = [f"| {name.replace('_', ' ')} | {value:.4f} |" for name, value in average.items()]
    return [
        f"Means over {count} cases, as the KiTS challenge computes them:",
        "",
        "| score | mean |",
        "|---|---|",
        *rows,
    ]


def _text(bundle: Path, about: About, networks: list[str], scores: list[str]) -> str:
    listed = "\n".join(f"- {line}" for line in networks)
    shown = "\n".join(scores) or "None are given."
    return f"""---
license: other
license_name: {_yaml(about.licence)}
library_name: kits-cascade
pipeline_tag: image-segmentation
tags: [nnU-Net, CT, kidney, renal tumor, renal cyst, KiTS]
---

# Kidneys, renal tumors and renal cysts in CT ({about.system})

```
pip install 'kits-cascade[download]'
kits-cascade models import hf://OWNER/NAME --to networks
kits-cascade predict -m networks -i imgs -o out
```

## Intended use

Research on the segmentation of contrast-enhanced abdominal CT. This is no medical device: not for diagnosis, not for
treatment, not for deciding about a patient. Scans unlike those of the training data may be
segmented badly without any sign of it.

## Licence

Weights: {about.licence}.

Trained on: {about.trained_on}. A licence of the data may bind the weights too.

## Scores

{shown}

## Content

{bundle.name}, made by kits-cascade {__version__}, SHA-256 `{sha256(bundle)}`.
Its manifest has the checksums of all files.

{listed}
"""


def _yaml(text: str) -> str:
    """As a quoted string."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
