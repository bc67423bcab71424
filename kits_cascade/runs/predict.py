"""A folder of CTs through the cascade: what ``kits-cascade predict`` does, for callers in Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from kits_cascade.errors import UsageError
from kits_cascade.inference.cascade import Cascade, CascadeOptions, Speed
from kits_cascade.models.choose import resolve_models
from kits_cascade.models.network import Models, describe_networks
from kits_cascade.processor import threads_here
from kits_cascade.runs.crew import Crew, Executor
from kits_cascade.runs.dicom_results import with_dicom_sources
from kits_cascade.runs.events import Listener, Summary
from kits_cascade.runs.parts import part_of
from kits_cascade.runs.workers import Job
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
    wait: bool = False,
    verify: bool = False,
    retry: bool = False,
    executor: Executor | None = None,
    workers: int = 0,
    threads: int | None = None,
    listener: Listener | None = None,
) -> Summary:
    """Segment every case in ``source`` into ``out``; see the command's help for the options.

    ``executor`` is whatever has ``submit`` (concurrent.futures, Dask, submitit); it is handed ``workers`` loops,
    each of which loads the networks once and takes cases until none is left. Their networks compute with as many
    ``threads`` as they would in this process, so that the results are the same.
    """
    if models is None or isinstance(models, Path):
        models = resolve_models(models, folds=folds, choose=choose)
    cases = find_inputs(source)
    return predict_cases(
        part_of(cases, part),
        out,
        models,
        device=device,
        options=options or CascadeOptions(),
        speed=speed or Speed(),
        overwrite=overwrite,
        about={"part": part, "total": len(cases)},
        accept_values=accept_values,
        wait=wait,
        verify=verify,
        retry=retry,
        executor=executor,
        workers=workers,
        threads=threads,
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
    about: Mapping[str, Any] | None = None,
    accept_values: bool = False,
    wait: bool = False,
    verify: bool = False,
    retry: bool = False,
    executor: Executor | None = None,
    workers: int = 0,
    threads: int | None = None,
    listener: Listener | None = None,
) -> Summary:
    """Segment cases that are found already, with models that are chosen already."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{out}: cannot be the output folder ({error.strerror})") from error
    cases = with_dicom_sources(cases, options.dicom)
    speed, kind = speed.settled(device)  # a folder is not continued with another engine, precision or kind of device
    threads = threads or threads_here()
    load = partial(Cascade, models, device=device, options=options, speed=speed, accept_values=accept_values)
    job = Job(
        out,
        partial(load, threads=threads),
        device,
        describe_networks(models),
        asdict(options) | asdict(speed),
        {key: value for key, value in (about or {}).items() if value is not None},
        overwrite,
        wait,
        verify,
        retry,
        kind,
    )
    if executor is None:
        return job.run(cases, listener)
    if workers < 1:
        raise UsageError("an executor takes a number of workers: how many loops it is to be handed")
    return Crew(job, executor, workers, listener).run(cases)
