"""Training from the first step to the last, for tests that are about what it leaves."""

from pathlib import Path

from meddelinea.training import adapt as adapting
from meddelinea.training import engine
from meddelinea.training.adapt import Adaptation, AdaptSettings
from meddelinea.training.config import RunConfig


def train(config: RunConfig, *, resume: bool = False) -> Path:
    """Train to the end; returns the run's folder."""
    for _ in engine.train(config, resume=resume):
        pass
    return config.output


def adapt(base: Path, store: Path, cases: tuple[str, ...], output: Path, settings: AdaptSettings) -> Adaptation:
    """Adapt to the end; returns what came of it."""
    for _ in adapting.adapt(base, store, cases=cases, output=output, settings=settings):
        pass
    return Adaptation.read(output)
