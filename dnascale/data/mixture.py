"""`mixture.yaml`: several data sets in one folder, and in what proportions they are mixed."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dnascale.errors import DataError

MIXTURE = "mixture.yaml"
_FORMAT = "dnascale-mixture"


@dataclass(frozen=True)
class MixtureSource:
    """Where a source is, relative to the folder of mixture.yaml or absolute, and its weight, if they are given."""

    path: str
    weight: float | None = None


@dataclass(frozen=True)
class Mixture:
    """The content of mixture.yaml."""

    sources: dict[str, MixtureSource]
    temperature: float = 1.0

    def to_yaml(self) -> str:
        import yaml

        sources = {
            name: {"path": source.path} | ({} if source.weight is None else {"weight": source.weight})
            for name, source in self.sources.items()
        }
        body = {"format": _FORMAT, "version": 1, "temperature": self.temperature, "sources": sources}
        return str(yaml.safe_dump(body, sort_keys=False))


def load_mixture(folder: Path) -> dict[str, Any] | None:
    """`sources` and `temperature` as the section `data` of a configuration has them; None when there is no mixture here.

    Raises DataError when the file is damaged.
    """
    import yaml

    path = folder / MIXTURE
    if not path.is_file():
        return None
    try:
        body = yaml.safe_load(path.read_text(encoding="utf-8"))
        if body["format"] != _FORMAT or body["version"] != 1:
            raise ValueError(f"{body['format']} version {body['version']}")
        sources = {
            str(name): source | {"path": str(folder / source["path"])} for name, source in body["sources"].items()
        }
        return {"sources": sources, "temperature": body["temperature"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise DataError(
            f"{path} is no mixture ({type(error).__name__}: {error}): copy it again, or prepare it again."
        ) from None
