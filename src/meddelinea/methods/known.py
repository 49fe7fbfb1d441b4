"""The closed list of what there is to load: a line for each pipeline."""

from __future__ import annotations

from importlib import import_module
from types import MappingProxyType
from typing import Any, cast

from meddelinea.errors import UsageError

#: Class of a pipeline, as `model_index.json` names it -> module that has it.
PIPELINES = MappingProxyType(
    {
        "MedDelineaPipeline": "meddelinea.methods.meddelinea_pipeline",
        "BaselinePipeline": "meddelinea.methods.network_pipeline",
    }
)


def pipeline_class(name: str) -> type[Any]:
    """The class of a pipeline by its name, imported only now.

    Raises
    ------
    UsageError
        If there is none of that name.
    """
    if name not in PIPELINES:
        raise UsageError(f"pipeline {name!r}; expected one of {', '.join(PIPELINES)}")
    return cast(type[Any], getattr(import_module(PIPELINES[name]), name))
