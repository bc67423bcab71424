"""What all of our trainers share, on top of nnU-Net's own."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import ImageOnlyTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.pseudo2d import Convert2DTo3DTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from nnunetv2.training.logging.nnunet_logger import WandbLogger
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from kits_cascade.errors import DatasetError, MissingExtraError
from kits_cascade.files import atomic_path
from kits_cascade.stages import KIDNEY_CHANNEL
from kits_cascade.training.augment import BinaryPrior, OnChannels, PerturbPrior
from kits_cascade.training.heads import FocusedCases, HeadLabels, lesion_values, with_heads
from kits_cascade.training.progress import TensorBoardLogger, progress, write_progress
from kits_cascade.training.trainer_options import PLANS_KEY, TrainerOptions

CHANNEL_NAMES = frozenset({KIDNEY_CHANNEL.casefold(), "kidney_mask"})


def prior_channels(dataset_json: Mapping[str, Any]) -> tuple[int, ...]:
    """The channels that hold a kidney mask, by their names."""
    names = dataset_json.get("channel_names", dataset_json.get("modality", {}))
    return tuple(int(index) for index, name in names.items() if str(name).strip().casefold() in CHANNEL_NAMES)


def with_binary_prior(network: torch.nn.Module, plans: Mapping[str, Any]) -> torch.nn.Module:
    """Let a network see its mask channels as 0 and 1; no parameters, so checkpoints stay as they are."""
    channels = TrainerOptions.from_plans(plans).prior_channels
    if channels:
        network.register_forward_pre_hook(BinaryPrior(channels))
    return network


class KitsTrainer(nnUNetTrainer):
    """Options kept in the checkpoint, region heads, the kidney prior, repeatable epochs, whole files.

    Subclasses set ``heads``, override ``options`` (defaults below what the plans say), or hook nnU-Net's methods.
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
        settings = TrainerOptions.from_plans(plans, self.options)
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

    def _apply_settings(self) -> None:
        for name in ("num_epochs", "num_iterations_per_epoch", "num_val_iterations_per_epoch", "save_every"):
            if getattr(self.settings, name) is not None:
                setattr(self, name, getattr(self.settings, name))
        if self.epochs is not None:
            self.num_epochs = self.epochs

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
        network = nnUNetTrainer.build_network_architecture(
            plans_manager, configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision
        )
        return with_binary_prior(network, plans_manager.plans)

    def get_training_transforms(self, *args: Any, **kwargs: Any) -> ComposeTransforms:
        """nnU-Net's own; the kidney mask moves with the CT, keeps its values, and is sometimes wrong."""
        transforms = nnUNetTrainer.get_training_transforms(*args, **kwargs)
        channels = self.settings.prior_channels or ()
        if not channels:
            return transforms
        images = [c for c in range(len(self.configuration_manager.normalization_schemes)) if c not in channels]
        perturb = [PerturbPrior(c, self.spacing, self.settings.prior_probability, self.lesions) for c in channels]
        return ComposeTransforms(guarded(transforms.transforms, images, perturb))

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

    def on_train_epoch_start(self) -> None:
        """Seed the epoch, where a seed is set."""
        self._seed(self.current_epoch + 1)
        super().on_train_epoch_start()

    def extra_weight(self, _epoch: int) -> float | None:
        """Weight of the extra loss term in an epoch; None for trainers without one."""
        return None

    def on_epoch_end(self) -> None:
        """Also write training_progress.json."""
        super().on_epoch_end()
        if self.local_rank == 0:
            write_progress(Path(self.output_folder), self._progress())

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
        kept = TrainerOptions.from_plans(self.my_init_kwargs["plans"], self.options)
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
