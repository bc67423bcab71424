"""What all of our trainers share, on top of nnU-Net's own."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Final, cast

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import ImageOnlyTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.pseudo2d import Convert2DTo3DTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from nnunetv2.training.logging.nnunet_logger import WandbLogger
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from kits_cascade.errors import DatasetError, MissingExtraError, UsageError
from kits_cascade.files import atomic_path
from kits_cascade.stages import KIDNEY_CHANNEL
from kits_cascade.training.architecture import build_network, has_deep_supervision
from kits_cascade.training.augment import DistanceMaps, OnChannels, PerturbPrior
from kits_cascade.training.devices import fast_bfloat16, for_processor
from kits_cascade.training.heads import FocusedCases, HeadLabels, lesion_values, with_heads
from kits_cascade.training.loss_table import LOSSES, Loss
from kits_cascade.training.losses import WithExtraTerm, ramp
from kits_cascade.training.prior import prior_channels, with_binary_prior
from kits_cascade.training.progress import TensorBoardLogger, progress, write_progress
from kits_cascade.training.trainer_options import PLANS_KEY, TrainerOptions

_PROCESSOR: Final = "processor_seconds"  # of each epoch, in nnU-Net's log, where they are counted


class _Ended(Exception):  # noqa: N818 - no error: the way out of nnU-Net's loop
    """The training ends before its last epoch, for the reason given."""


class KitsTrainer(nnUNetTrainer):
    """Options kept in the checkpoint, region heads, the kidney prior, repeatable epochs, whole files.

    Subclasses set ``heads`` or ``options`` (defaults below what the plans say, added to those of their base), or hook
    nnU-Net's methods. The network is always the one that the plans name.
    """

    heads: ClassVar[tuple[str, ...] | None] = None  # None: as the dataset.json says; (): all of the challenge's regions
    options: ClassVar[Mapping[str, Any]] = {}
    epochs: ClassVar[int | None] = None  # set in the short variants, above what the plans say

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008 - nnU-Net's signature
    ) -> None:
        settings = TrainerOptions.from_plans(plans, self.defaults())
        if settings.prior_channels is None:
            settings = replace(settings, prior_channels=prior_channels(dataset_json))
        self.settings = settings
        plans.setdefault("continue_training", False)
        plans[PLANS_KEY] = settings.to_plans()
        self.lesions = lesion_values(dataset_json["labels"])  # of the data, whatever the heads are
        adapted = with_heads(dataset_json, self.heads)
        super().__init__(plans, configuration, fold, adapted, device)
        if adapted != dataset_json:
            self.label_manager = HeadLabels(adapted, PlansManager(plans).get_label_manager(dataset_json))
        self._apply_settings()
        self._check_prior()

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """The class's own options, above those of its bases."""
        return {key: value for kind in reversed(cls.__mro__) for key, value in vars(kind).get("options", {}).items()}

    @property
    def loss_row(self) -> Loss:
        """What the option ``loss`` names; nnU-Net's own loss otherwise."""
        return LOSSES[self.settings.loss or "dice_ce"]

    def _apply_settings(self) -> None:
        for name in ("num_epochs", "num_iterations_per_epoch", "num_val_iterations_per_epoch", "save_every"):
            if getattr(self.settings, name) is not None:
                setattr(self, name, getattr(self.settings, name))
        if self.epochs is not None:
            self.num_epochs = self.epochs
        for name, own in (("initial_lr", self.settings.learning_rate), ("weight_decay", self.settings.weight_decay)):
            if own is not None:
                setattr(self, name, own)
        self.enable_deep_supervision = self._supervised()

    def _supervised(self) -> bool:
        possible = has_deep_supervision(self.configuration_manager.configuration["architecture"])
        wanted = self.settings.deep_supervision
        if wanted and not possible:
            raise UsageError(
                f"option deep_supervision is true; the network of {self.configuration_name} has one output"
            )
        return possible if wanted is None else wanted

    def _check_prior(self) -> None:
        schemes = self.configuration_manager.normalization_schemes
        wrong = [schemes[c] for c in self.settings.prior_channels or () if schemes[c] != "NoNormalization"]
        if wrong:
            raise DatasetError(
                f"the kidney mask channel of {self.plans_manager.dataset_name} is planned with {wrong[0]}, which makes "
                "its values differ from case to case. Set its entry in the plans' normalization_schemes to "
                f"NoNormalization (the channel name {KIDNEY_CHANNEL!r} does so), and preprocess again"
            )

    @property
    def spacing(self) -> tuple[float, ...]:
        """Voxel size of the configuration in the axes that the network sees."""
        return tuple(self.configuration_manager.spacing[-len(self.configuration_manager.patch_size) :])

    @property
    def class_names(self) -> list[str]:
        """Names of the foreground classes in the order of the heads."""
        labels = {n: v for n, v in self.dataset_json["labels"].items() if n not in ("background", "ignore")}
        if self.label_manager.has_regions:
            return list(labels)
        by_value = {int(np.atleast_1d(value)[0]): name for name, value in labels.items()}
        return [by_value.get(int(value), str(value)) for value in self.label_manager.foreground_labels]

    # --- network and data

    @staticmethod
    def build_network_architecture(
        plans_manager: Any,
        configuration_manager: Any,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> torch.nn.Module:
        """The network of the plans; nnU-Net's predictor builds it here too."""
        network = build_network(
            configuration_manager.configuration["architecture"],
            num_input_channels,
            num_output_channels,
            deep_supervision=enable_deep_supervision,
        )
        return with_binary_prior(network, plans_manager.plans)

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """nnU-Net's networks are switched; others have one output, whatever is asked for."""
        if has_deep_supervision(self.configuration_manager.configuration["architecture"]):
            super().set_deep_supervision_enabled(enabled)

    def get_training_transforms(self, *args: Any, **kwargs: Any) -> ComposeTransforms:
        """nnU-Net's own; the kidney mask moves with the CT, keeps its values, and is sometimes wrong."""
        transforms = nnUNetTrainer.get_training_transforms(*args, **kwargs)
        channels = self.settings.prior_channels or ()
        if channels:
            images = [c for c in range(len(self.configuration_manager.normalization_schemes)) if c not in channels]
            perturb = [PerturbPrior(c, self.spacing, self.settings.prior_probability, self.lesions) for c in channels]
            transforms = ComposeTransforms(guarded(transforms.transforms, images, perturb))
        return self._with_distances(transforms)

    def get_validation_transforms(self, *args: Any, **kwargs: Any) -> ComposeTransforms:
        """nnU-Net's own, with the distances where the loss takes them."""
        return self._with_distances(nnUNetTrainer.get_validation_transforms(*args, **kwargs))

    def _with_distances(self, transforms: ComposeTransforms) -> ComposeTransforms:
        """Of the truth as it is after augmentation; the loader's workers compute them."""
        if self.loss_row.distances:
            transforms.transforms.append(
                DistanceMaps(
                    self.spacing,
                    regions=self.label_manager.has_regions,
                    classes=len(self.class_names),
                    ignore_label=self.label_manager.ignore_label,
                )
            )
        return transforms

    def get_tr_and_val_datasets(self) -> tuple[Any, Any]:
        """Foreground patches show what the heads are to find, not any label of the dataset."""
        datasets = super().get_tr_and_val_datasets()
        if not isinstance(self.label_manager, HeadLabels):
            return datasets
        values = set(self.label_manager.foreground_labels)
        training, validation = (FocusedCases(dataset, values) for dataset in datasets)
        return training, validation

    # --- the course of a training

    def initialize(self) -> None:
        """Network, optimizer and loss; the weights come from the seed, where there is one."""
        self._seed(0)
        super().initialize()
        if self.settings.bfloat16 and fast_bfloat16(self.device):
            self.network.forward = for_processor(self.network.forward, bfloat16=True)

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> Any:  # noqa: N802 - nnU-Net's hook
        """As nnU-Net does; mirrored at prediction only where the options leave it so."""
        chosen = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        if self.settings.mirror is False:
            self.inference_allowed_mirroring_axes = None
        return chosen

    def _seed(self, step: int) -> None:
        """One random stream per epoch and process, so that a continued training draws as one that ran through."""
        if self.settings.seed is None:
            return
        state = np.random.SeedSequence([self.settings.seed, step, self.local_rank]).generate_state(3)
        random.seed(int(state[0]))
        np.random.seed(int(state[1]))  # noqa: NPY002 - what nnU-Net's loader draws from
        torch.manual_seed(int(state[2]))

    def on_train_start(self) -> None:
        """Also start the loggers that the plans ask for, beside what nnU-Net's own variable does."""
        if self.local_rank == 0:
            self._add_loggers()
        super().on_train_start()

    def _add_loggers(self) -> None:
        loggers, wanted = self.logger.loggers, self.settings.loggers
        added: list[Any] = []
        if "wandb" in wanted and not any(isinstance(logger, WandbLogger) for logger in loggers):
            if find_spec("wandb") is None:
                raise MissingExtraError("wandb", "logging")
            added.append(WandbLogger(self.output_folder, self.logger.resume))
        if "tensorboard" in wanted:
            added.append(TensorBoardLogger(Path(self.output_folder), self.current_epoch))
        for logger in added:
            logger.update_config({"plans": self.plans_manager.plans, "configuration": self.configuration_name})
        loggers.extend(added)

    def _build_loss(self) -> torch.nn.Module:
        return self.loss_row.build(self)

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        """The optimizer that the options name, nnU-Net's SGD otherwise, with nnU-Net's polynomial schedule."""
        kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
        kind = kinds.get(self.settings.optimizer or "sgd")
        if kind is None:
            return super().configure_optimizers()  # type: ignore[no-any-return]
        optimizer = kind(self.network.parameters(), self.initial_lr, weight_decay=self.weight_decay)
        return optimizer, PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs)

    def on_train_epoch_start(self) -> None:
        """Seed the epoch, where a seed is set, and set the weight of the loss's extra term."""
        self._seed(self.current_epoch + 1)
        super().on_train_epoch_start()
        weight = self.extra_weight(self.current_epoch)
        if weight is not None:
            cast("WithExtraTerm", self.loss).weight = weight

    def extra_weight(self, epoch: int) -> float | None:
        """Weight of the loss's extra term, by the epoch's number: right after ``--c``. None for losses without one."""
        full = self.loss_row.weight
        return None if full is None else full(self.settings) * ramp(epoch, self.num_epochs)

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """nnU-Net's step."""
        step: dict[str, Any] = super().train_step(self._take_distances(batch))
        return step

    def validation_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """nnU-Net's step."""
        step: dict[str, Any] = super().validation_step(self._take_distances(batch))
        return step

    def _take_distances(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The last target is the distances, for losses that take them."""
        if not self.loss_row.distances:
            return batch
        *targets, distances = batch["target"]
        cast("WithExtraTerm", self.loss).reference = distances.to(self.device, non_blocking=True)
        return {**batch, "target": targets if self.enable_deep_supervision else targets[0]}

    def on_epoch_start(self) -> None:
        """Also look at the processor's time."""
        super().on_epoch_start()
        self._processor_s = time.process_time()

    def on_epoch_end(self) -> None:
        """Also write training_progress.json, and end where patience does."""
        log = self.logger.local_logger.my_fantastic_logging
        if self.settings.processor_minutes is not None:
            log.setdefault(_PROCESSOR, []).append(time.process_time() - self._processor_s)
        super().on_epoch_end()
        if self.local_rank == 0:
            write_progress(Path(self.output_folder), self._progress())
        if self.settings.minutes is not None:
            taken = sum(log["epoch_end_timestamps"]) - sum(log["epoch_start_timestamps"])
            self._fit_into(60 * self.settings.minutes, taken)
        if self.settings.processor_minutes is not None:
            self._fit_into(60 * self.settings.processor_minutes, sum(log[_PROCESSOR]))
        if self._epochs_left() and self._out_of_patience():
            raise _Ended(f"No better validation score in {self.settings.patience} epochs")

    def _epochs_left(self) -> bool:
        return int(self.current_epoch) < int(self.num_epochs)  # type: ignore[has-type]

    def run_training(self) -> None:
        """nnU-Net's loop; where patience or time ends it, the training is concluded as after the last epoch."""
        try:
            super().run_training()
        except _Ended as reason:
            self.print_to_log_file(f"{reason}: the training ends.")
            self.on_train_end()

    def _fit_into(self, seconds: float, taken: float) -> None:
        """Set the number of epochs, and with it the fall of the learning rate, by what the epochs so far have taken.

        They stand in the log, which checkpoints keep: a training that was stopped goes on with the time that is left.
        """
        done = int(self.current_epoch)
        fitting = max(done, round(seconds * done / max(taken, 1e-9)))
        self.num_epochs = min(self.settings.num_epochs or fitting, fitting)
        self.lr_scheduler.max_steps = max(self.num_epochs, done + 1)
        if not self._epochs_left():
            raise _Ended(f"{taken / 60:.1f} minutes are over")

    def _out_of_patience(self) -> bool:
        """Whether the best value of nnU-Net's moving average of the pseudo Dice lies too many epochs back."""
        scores = self.logger.local_logger.my_fantastic_logging["ema_fg_dice"]
        patience = self.settings.patience
        return patience is not None and len(scores) - 1 - int(np.argmax(scores)) >= patience

    def _progress(self) -> dict[str, Any]:
        head = {
            "trainer": type(self).__name__,
            "dataset": self.plans_manager.dataset_name,
            "plans": self.plans_manager.plans_name,
            "configuration": self.configuration_name,
            "fold": self.fold,
            "num_epochs": self.num_epochs,
        }
        log = self.logger.local_logger.my_fantastic_logging
        return progress(log, self.class_names, [self.extra_weight(e) for e in range(self.current_epoch)], head)

    def save_checkpoint(self, filename: str) -> None:
        """As nnU-Net does, but a run that is killed while it saves leaves the last checkpoint whole."""
        if self.local_rank != 0 or self.disable_checkpointing:
            super().save_checkpoint(filename)
            return
        with atomic_path(Path(filename)) as temporary:
            super().save_checkpoint(str(temporary))

    def load_checkpoint(self, filename_or_checkpoint: Any) -> None:
        """Continue with the options that the checkpoint was trained with."""
        super().load_checkpoint(filename_or_checkpoint)
        kept = TrainerOptions.from_plans(self.my_init_kwargs["plans"], self.defaults())
        if kept != self.settings:
            self.print_to_log_file(f"The options of the checkpoint are used: {kept}")
            self.settings = kept
            self.plans_manager.plans[PLANS_KEY] = kept.to_plans()
            self._apply_settings()
            self.loss = self._build_loss()


def guarded(transforms: Sequence[Any], images: Sequence[int], perturb: Sequence[PerturbPrior]) -> list[Any]:
    """nnU-Net's transforms: those of intensity see the channels ``images``, and ``perturb`` follows on geometry."""
    out: list[Any] = []
    last = max(i for i, t in enumerate(transforms) if isinstance(t, (SpatialTransform, Convert2DTo3DTransform)))
    for index, transform in enumerate(transforms):
        out.append(OnChannels(transform, images) if changes_intensity(transform) else transform)
        if index == last:
            out.extend(perturb)
    return out


def changes_intensity(transform: Any) -> bool:
    """Whether one of nnU-Net's transforms changes the image's values, and not its geometry."""
    inner = transform.transform if isinstance(transform, RandomTransform) else transform
    # What the nnU-Net cascade does to its own added channels counts them from the end, and stays as it is.
    changes = isinstance(inner, ImageOnlyTransform) and ".nnunet." not in type(inner).__module__
    return changes or isinstance(inner, OnChannels)
