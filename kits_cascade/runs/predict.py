"""A folder of CTs through the cascade: what ``kits-cascade predict`` does, for callers in Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from kits_cascade.errors import UsageError
from kits_cascade.inference.cascade import Cascade, CascadeOptions, Speed
from kits_cascade.models.choose import resolve_models
from kits_cascade.models.network import Models, describe_networks
from kits_cascade.runs.dicom_results import with_dicom_sources
from kits_cascade.runs.manifest import RunManifest
from kits_cascade.runs.runner import Listener, Runner, Summary, part_of
from kits_cascade.volumes.find import InputCase, find_inputs


def predict_folder(
    source: Path,
    out: Path,
    models: Models | Path | None = None,
    *,
    folds: Sequence[int | str] | None = None,
    choose: Mapping[str, str] | None = None,
    device: str = "auto",
    options: CascadeOptions | None = None,
    speed: Speed | None = None,
    overwrite: bool = False,
    part: str | None = None,
    accept_values: bool = False,
    listener: Listener | None = None,
) -> Summary:
    """Segment every case in ``source`` into ``out``; see the command's help for the options."""
    if models is None or isinstance(models, Path):
        models = resolve_models(models, folds=folds, choose=choose)
    return predict_cases(
        part_of(find_inputs(source), part),
        out,
        models,
        device=device,
        options=options or CascadeOptions(),
        speed=speed or Speed(),
        overwrite=overwrite,
        part=part,
        accept_values=accept_values,
        listener=listener,
    )


def predict_cases(
    cases: Sequence[InputCase],
    out: Path,
    models: Models,
    *,
    device: str,
    options: CascadeOptions,
    speed: Speed,
    overwrite: bool = False,
    part: str | None = None,
    accept_values: bool = False,
    listener: Listener | None = None,
) -> Summary:
    """Segment cases that are found already, with models that are chosen already."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{out}: cannot be the output folder ({error.strerror})") from error
    cases = with_dicom_sources(cases, options.dicom)
    manifest = RunManifest(
        out,
        device=device,
        models=describe_networks(models),
        options=asdict(options) | asdict(speed),
        about={"part": part} if part else None,
    )

    def load() -> Cascade:
        cascade = Cascade(models, device=device, options=options, speed=speed, accept_values=accept_values)
        manifest.header["device"] = cascade.device or device  # what is used, not what was asked for
        return cascade

    return Runner(load, out, manifest, overwrite, listener).run(cases)
