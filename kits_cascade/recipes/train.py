"""The whole training recipe: 221, its out-of-fold predictions, 222 and 223 derived from them, and their training.

Each step is a command of nnU-Net or of ours, run as a process of its own, so that ``--dry-run`` shows all there is, and
any step can be run by hand. Finished folds are never repeated: a second run goes on where the first stopped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Final, Literal

from kits_cascade.data.datasets import (
    ROI_FILE,
    SPLITS_FILE,
    RawDataset,
    StageSelection,
    find_predictions,
    open_dataset,
    select_stages,
)
from kits_cascade.data.derive import read_records
from kits_cascade.data.presets import load_preset
from kits_cascade.data.splits import out_of_fold, read_splits
from kits_cascade.errors import DatasetError, KitsCascadeError, UsageError
from kits_cascade.nnunet_folders import VARIABLES, NnunetFolders
from kits_cascade.parallel import Progress
from kits_cascade.recipes.steps import (
    Fold,
    Run,
    Step,
    check_devices,
    check_folds,
    continuation,
    is_finished,
    no_run,
    on_device,
    run_command,
)
from kits_cascade.stages import PLANS_NAME, ROI_MARGIN_MM, SOURCE_ID, SOURCE_STAGE, STAGE_BY_KEY, Stage
from kits_cascade.systems import CASCADE, SYSTEMS, System

if TYPE_CHECKING:
    from kits_cascade.runs.crew import Executor

Oof = Literal["auto", "require", "never"]

_COARSE, _KIDNEY, _MASSES = STAGE_BY_KEY
OOF_CHOICES: Final = ("auto", "require", "never")


@dataclass
class RecipeReport:
    """What a run did; in a dry run, what it would do."""

    steps: list[Step] = field(default_factory=list)
    finished_before: list[str] = field(default_factory=list)  # folds that were there already
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Recipe:
    """What is to be trained, and with what."""

    folders: NnunetFolders
    stages: tuple[Stage, ...]
    trainers: Mapping[str, tuple[str, ...]]
    folds: tuple[Fold, ...]
    devices: tuple[str, ...]
    preset: str
    gpu_memory_gb: int | None
    plans_name: str
    source_id: int
    margin_mm: float
    oof: Oof
    overwrite: bool
    system: System = CASCADE
    pretrained: Path | None = None

    @property
    def starting_weights(self) -> Path:
        """Made of the pretrained file, for nnU-Net."""
        (stage,) = self.stages
        return self.folders.preprocessed / stage.dataset / f"{self.plans_name}_pretrained.pth"

    def model(self, stage: Stage, trainer: str) -> Path:
        """nnU-Net's folder of a trained model."""
        return self.folders.results / stage.dataset / f"{trainer}__{self.plans_name}__{stage.configuration}"

    def stage(self, key: str) -> Stage:
        """A stage with its id: as chosen, else as usual."""
        return next((stage for stage in self.stages if stage.key == key), STAGE_BY_KEY[key])


def train(
    folders: NnunetFolders,
    *,
    folds: Sequence[Fold] = (0, 1, 2, 3, 4),
    trainers: Mapping[str, str | Sequence[str]] | None = None,
    devices: Sequence[str] = ("cuda",),
    preset: str | None = None,
    gpu_memory_gb: int | None = None,
    stages: StageSelection | None = None,
    system: System = CASCADE,
    source_id: int = SOURCE_ID,
    margin_mm: float = ROI_MARGIN_MM,
    oof: Oof = "auto",
    overwrite: bool = False,
    pretrained: Path | None = None,
    dry_run: bool = False,
    run: Run = run_command,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> RecipeReport:
    """Walk the recipe for the chosen stages; each is derived, planned and trained before the next begins.

    ``oof`` says where the ROI of 222 and 223 and the kidney channel of 223 come from: ``auto`` takes out-of-fold
    predictions where all cases have one and says so where not, ``require`` makes that an error, ``never`` takes labels.
    The preset is the system's own unless another is named.
    With an ``executor`` (whatever has ``submit``) the trainings of a stage run on its workers, one for each at a time.
    """
    preset = preset or system.preset
    recipe = Recipe(
        folders,
        _select(system, stages, source_id),
        _trainers(trainers, system.stages),
        check_folds(folds),
        check_devices(devices),
        preset,
        gpu_memory_gb,
        load_preset(preset, gpu_memory_gb).plans_name,
        source_id,
        margin_mm,
        oof,
        overwrite,
        system,
        pretrained,
    )
    if pretrained is not None and not system.pretrained:
        raise UsageError(f"the system {system.name} takes no pretrained weights; those that do: {_pretrainable()}")
    if oof not in OOF_CHOICES:
        raise UsageError(f"oof is '{oof}'; it takes {', '.join(OOF_CHOICES)}")
    source = open_dataset(folders.raw, source_id, "make it with: kits-cascade convert DIR")
    report = RecipeReport()
    walk = _Walk(recipe, source, report, no_run if dry_run else run, progress, dry_run, executor)
    for stage in recipe.stages:
        walk.stage(stage)
    return report


def _pretrainable() -> str:
    return ", ".join(f"{system.name} ({system.pretrained})" for system in SYSTEMS if system.pretrained)


def _select(system: System, stages: StageSelection | None, source_id: int) -> tuple[Stage, ...]:
    chosen = select_stages(stages, system.stages)
    return tuple(replace(s, dataset_id=source_id) if s.key == SOURCE_STAGE.key else s for s in chosen)


def _trainers(given: Mapping[str, str | Sequence[str]] | None, stages: Sequence[Stage]) -> dict[str, tuple[str, ...]]:
    result: dict[str, tuple[str, ...]] = {stage.key: (stage.trainer,) for stage in stages}
    for key, names in (given or {}).items():
        chosen = (names,) if isinstance(names, str) else tuple(names)
        if key not in result or not chosen or not all(chosen):
            raise UsageError(
                f"trainers are given for {', '.join(result)}, such as masses=TumorTrainer, not {key}={names}"
            )
        result[key] = chosen
    return result


@dataclass
class _Walk:
    """The state of one walk through the recipe."""

    recipe: Recipe
    source: RawDataset
    report: RecipeReport
    run: Run
    progress: Progress | None
    dry_run: bool
    executor: Executor | None = None
    done: int = 0

    @property
    def total(self) -> int:
        folds = len(self.recipe.folds)
        return sum(
            1
            + (stage.key != SOURCE_STAGE.key)
            + (self.recipe.pretrained is not None)
            + folds * len(self.recipe.trainers[stage.key])
            for stage in self.recipe.stages
        )

    def stage(self, stage: Stage) -> None:
        """Derive (all but the source dataset), plan and train one stage."""
        if stage.key != SOURCE_STAGE.key:
            self.one(self._derive(stage))
        self.one(self._plan(stage))
        if self.recipe.pretrained is not None:
            self.one(self._adapt(stage, self.recipe.pretrained))
        steps = [step for trainer in self.recipe.trainers[stage.key] for step in self._folds(stage, trainer)]
        self._on_all_devices(steps)

    def one(self, step: Step, device: str | None = None) -> None:
        """Run a step, and stop the walk where it fails."""
        step = step if device is None else on_device(step, device)
        self.tell(step.title)
        self.report.steps.append(step)
        self._check(step, self.run(step.argv, self._variables(step)))

    def _variables(self, step: Step) -> dict[str, str]:
        folders = self.recipe.folders
        variables = dict(zip(VARIABLES, map(str, (folders.raw, folders.preprocessed, folders.results)), strict=True))
        return {**variables, **dict(step.environment)}

    def _check(self, step: Step, code: int) -> None:
        if code:
            raise KitsCascadeError(
                f"{step.title}: ended with exit code {code} ({step.shown()}). What is finished is kept: mend the cause "
                "(see its messages above) and run the same again"
            )
        self.done += 1

    def tell(self, title: str) -> None:
        if self.progress is not None:
            self.progress(self.done, self.total, title)

    def _derive(self, stage: Stage) -> Step:
        recipe = self.recipe
        argv = [
            "kits-cascade",
            "derive-stages",
            "-d",
            str(recipe.source_id),
            "--stages",
            f"{stage.key}={stage.dataset_id}",
        ]
        predictions: dict[str, Path] = {}
        if stage.cropped:
            argv += ["--margin-mm", f"{recipe.margin_mm:g}"]
            predictions = self._predictions(stage)
            for name, folder in predictions.items():
                argv += [f"--{name}-predictions", str(folder)]
        if recipe.overwrite or self._may_overwrite(stage, predictions):
            argv.append("--overwrite")
        return Step(f"{stage.dataset}: derive", tuple(argv))

    def _plan(self, stage: Stage) -> Step:
        argv = ["kits-cascade", "plan", "--stages", f"{stage.key}={stage.dataset_id}", "--preset", self.recipe.preset]
        if self.recipe.system is not CASCADE:
            argv += ["--system", self.recipe.system.name]
        if self.recipe.gpu_memory_gb is not None:
            argv += ["--gpu-memory", str(self.recipe.gpu_memory_gb)]
        return Step(f"{stage.dataset}: plan and preprocess", tuple(argv))

    def _adapt(self, stage: Stage, file: Path) -> Step:
        recipe = self.recipe
        argv = ["kits-cascade", "models", "adapt", str(file), "--system", recipe.system.name, "--preset", recipe.preset]
        argv += ["-d", str(stage.dataset_id), "-o", str(recipe.starting_weights)]
        return Step(f"{stage.dataset}: starting weights", tuple(argv))

    def _start(self, fold: Path) -> tuple[str, ...]:
        """How a fold goes on, or what it starts from."""
        how = continuation(fold)
        if how or self.recipe.pretrained is None:
            return how
        return ("-pretrained_weights", str(self.recipe.starting_weights))

    def _folds(self, stage: Stage, trainer: str) -> Iterator[Step]:
        recipe = self.recipe
        for fold in recipe.folds:
            title = f"{stage.dataset}: train fold {fold} ({trainer})"
            folder = recipe.model(stage, trainer) / f"fold_{fold}"
            if is_finished(folder):
                self.report.finished_before.append(title)
                self.done += 1
                continue
            argv = ["nnUNetv2_train", str(stage.dataset_id), stage.configuration, str(fold), "-tr", trainer]
            if recipe.plans_name != PLANS_NAME:
                argv += ["-p", recipe.plans_name]
            yield Step(title, (*argv, *self._start(folder)))

    def _on_all_devices(self, steps: list[Step]) -> None:
        """Trainings of one stage do not depend on each other: each device takes the next one."""
        devices = self.recipe.devices
        if self.executor is not None and not self.dry_run:
            self._on_workers([on_device(step, devices[0]) for step in steps], self.executor)
            return
        if len(devices) == 1 or self.dry_run:
            for number, step in enumerate(steps):
                self.one(step, devices[number % len(devices)])
            return
        free: SimpleQueue[str] = SimpleQueue()
        for device in devices:
            free.put(device)

        def on_next_free(step: Step) -> None:
            device = free.get()
            try:
                self.one(step, device)
            finally:
                free.put(device)

        with ThreadPoolExecutor(len(devices)) as pool:
            futures = [pool.submit(on_next_free, step) for step in steps]
            try:
                for future in futures:
                    future.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)  # what is running is let finish, nothing new is begun
                raise

    def _on_workers(self, steps: list[Step], executor: Executor) -> None:
        """All at once to the executor, which knows how many its workers can do at a time."""
        sent = [executor.submit(self.run, step.argv, self._variables(step)) for step in steps]
        try:
            for step, promise in zip(steps, sent, strict=True):
                self.tell(step.title)
                self.report.steps.append(step)
                self._check(step, promise.result())
        except BaseException:
            for promise in sent:
                promise.cancel()
            raise

    # --- where the ROI and the kidney channel come from ---

    def _predictions(self, stage: Stage) -> dict[str, Path]:
        """Folders of out-of-fold predictions to derive a stage from; empty: from the labels."""
        recipe = self.recipe
        if recipe.oof == "never":
            return {}
        kept = self._kept_origin(stage)
        if kept is not None and recipe.oof == "auto" and not recipe.overwrite:
            needed = [name for name in ("coarse", "kidney") if kept.get(f"{name}_predictions")]
            return {name: self._model_of(name) for name in needed}
        wanted = ("coarse",) if stage.key == _KIDNEY else ("coarse", "kidney")
        found = {name: self._model_of(name) for name in wanted}
        lacking = {name: why for name, folder in found.items() if (why := self._lacking(name, folder)) is not None}
        if lacking and recipe.oof == "require":
            raise DatasetError(f"{stage.dataset}: out-of-fold predictions are required: {'; '.join(lacking.values())}")
        for name, why in lacking.items():
            what = "the ROI comes" if name == "coarse" else "the kidney channel comes"
            self.report.notes.append(f"{stage.dataset}: {what} from the labels: {why}")
        return {name: folder for name, folder in found.items() if name not in lacking}

    def _model_of(self, name: str) -> Path:
        stage = self.recipe.stage(name)
        return self.recipe.model(stage, self.recipe.trainers[name][0])

    def _lacking(self, name: str, model: Path) -> str | None:
        """Why there are no out-of-fold predictions of all cases; None when there are."""
        splits = read_splits(self.source.folder / SPLITS_FILE)
        if self.dry_run:
            trained = {fold for fold in self.recipe.folds if isinstance(fold, int) and name in self._keys()}
            needed = set(out_of_fold(splits).values()) if splits else set(range(5))
            left = sorted(needed - trained - {fold for fold in needed if is_finished(model / f"fold_{fold}")})
            return f"fold {', '.join(map(str, left))} of {model.name} is not trained" if left else None
        try:
            fold_of = out_of_fold(splits) if splits else None
            find_predictions(model, self.source.cases(), self.source.ending, fold_of)
        except (DatasetError, UsageError) as error:
            return str(error)
        return None

    def _keys(self) -> set[str]:
        return {stage.key for stage in self.recipe.stages}

    def _kept_origin(self, stage: Stage) -> dict[str, Any] | None:
        """How the stage's dataset was derived, if a model was trained on it: that is not changed under its feet."""
        folder = self.recipe.folders.raw / stage.dataset
        trained = any(self.recipe.folders.results.glob(f"{stage.dataset}/*/fold_*/checkpoint_*.pth"))
        return read_records(folder)[0] if trained and (folder / ROI_FILE).is_file() else None

    def _may_overwrite(self, stage: Stage, predictions: Mapping[str, Path]) -> bool:
        """Whether the dataset there was made from other sources, and no model depends on it yet."""
        folder = self.recipe.folders.raw / stage.dataset
        if not stage.cropped or not (folder / ROI_FILE).is_file() or self._kept_origin(stage) is not None:
            return False
        before, _ = read_records(folder)
        origin = {name: bool(before.get(f"{name}_predictions")) for name in ("coarse", "kidney")}
        return any(there != (name in predictions) for name, there in origin.items())
