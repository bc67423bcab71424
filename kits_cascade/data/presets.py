"""Plan presets: JSON overlays laid over the plans of nnU-Net's own planner, checked before anything runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kits_cascade.errors import UsageError
from kits_cascade.files import read_json
from kits_cascade.stages import PLANS_NAME, SOURCE_STAGE, STAGE_BY_KEY
from kits_cascade.systems import System

GPU_MEMORY_GB: Final = (8, 24, 40)
PLANNERS: Final = ("ExperimentPlanner", "nnUNetPlannerResEncM", "nnUNetPlannerResEncL", "nnUNetPlannerResEncXL")
CONFIGURATIONS: Final = ("2d", "3d_lowres", "3d_fullres")
NORMALIZATIONS: Final = (
    "CTNormalization",
    "ZScoreNormalization",
    "RescaleTo01Normalization",
    "NoNormalization",
)


def preset_folder() -> Path:
    """Where the presets are: in the package of a regular install, in the repository's plans/ of an editable one."""
    package = Path(__file__).parent.parent
    for folder in (package / "plans", package.parent / "plans"):
        if folder.is_dir():
            return folder
    raise UsageError(f"the plan presets are missing from the installation ({package}); install kits-cascade again")


@dataclass(frozen=True)
class Preset:
    """What a preset file says."""

    name: str
    planner: str  # nnU-Net's planner class that makes the plans below the overlay
    plans_name: str  # as given to nnU-Net's -p
    gpu_memory_gb: float
    stages: Mapping[str, Mapping[str, Mapping[str, Any]]]  # stage -> configuration -> values
    intensities: Mapping[str, float] | None = None  # of the CT, instead of the fingerprint's
    training: Mapping[str, Any] | None = None  # options of the trainers: the plans' entry kits_cascade


def preset_path(name: str, gpu_memory_gb: int | None = None) -> Path:
    """The file of a preset: one of the package's by name, or any file by path."""
    if name.endswith(".json"):
        return Path(name).expanduser()
    folder = preset_folder()
    sized = sorted(int(path.stem.rsplit("-", 1)[1][:-2]) for path in folder.glob(f"{name}-*gb.json"))
    if sized:
        memory = gpu_memory_gb or sized[0]
        if memory not in sized:
            raise UsageError(
                f"preset {name} is made for {', '.join(map(str, sized))} GB of GPU memory, not for {memory}"
            )
        return folder / f"{name}-{memory}gb.json"
    path = folder / f"{name}.json"
    if not path.is_file():
        known = sorted(
            {stem.split("-")[0] if stem.endswith("gb") else stem for stem in (p.stem for p in folder.glob("*.json"))}
        )
        raise UsageError(f"unknown preset '{name}'; there are {', '.join(known)}, or give the path of a JSON file")
    if gpu_memory_gb is not None:
        raise UsageError(f"preset {name} has one size only; leave --gpu-memory out")
    return path


def load_preset(name: str = "default", gpu_memory_gb: int | None = None) -> Preset:
    """Read and check a preset."""
    path = preset_path(name, gpu_memory_gb)
    try:
        content = read_json(path)
    except FileNotFoundError as error:
        raise UsageError(f"{path}: no such preset file") from error
    except ValueError as error:
        raise UsageError(f"{path} is not valid JSON: {error}") from error
    return _Checker(path).preset(content)


def planned_name(system: System) -> str:
    """How nnU-Net names the trained network of a system with one stage: trainer__plans__configuration."""
    (stage,) = system.stages
    return f"{stage.trainer}__{load_preset(system.preset).plans_name}__{stage.configuration}"


class _Checker:
    """Checks a preset's content; each complaint names the file and the place in it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def fail(self, place: str, text: str) -> UsageError:
        return UsageError(f"{self.path}: {place}: {text}")

    def preset(self, content: Any) -> Preset:
        known = {"title", "made_by", "planner", "plans_name", "gpu_memory_gb", "stages", "intensities", "training"}
        self.mapping("preset", content, known, needed={"stages"})
        planner = content.get("planner", PLANNERS[0])
        if planner not in PLANNERS:
            raise self.fail("planner", f"'{planner}' is none of {', '.join(PLANNERS)}")
        memory = content.get("gpu_memory_gb", GPU_MEMORY_GB[0])
        if not _number(memory) or memory <= 0:
            raise self.fail("gpu_memory_gb", f"{memory!r} is not a size in GB")
        self.mapping("stages", content["stages"], {SOURCE_STAGE.key, *STAGE_BY_KEY})
        for stage, configurations in content["stages"].items():
            self.mapping(f"stages.{stage}", configurations, set(CONFIGURATIONS))
            for name, values in configurations.items():
                self.configuration(f"stages.{stage}.{name}", values, 2 if name == "2d" else 3)
        plans_name = content.get("plans_name", PLANS_NAME)
        if not isinstance(plans_name, str) or not plans_name.replace("_", "").isalnum():
            raise self.fail("plans_name", f"{plans_name!r} is not a plain name")
        intensities = content.get("intensities")
        if intensities is not None:
            self.mapping("intensities", intensities, set(_INTENSITIES), needed=set(_INTENSITIES))
            wrong = [name for name in _INTENSITIES if not _number(intensities[name])]
            if wrong:
                raise self.fail(f"intensities.{wrong[0]}", f"{intensities[wrong[0]]!r} is not a number")
        return Preset(
            self.path.stem, planner, plans_name, float(memory), content["stages"], intensities, self.training(content)
        )

    def training(self, content: Any) -> Mapping[str, Any] | None:
        """What it means is the trainers' business; here it must only be an object."""
        options = content.get("training")
        if options is not None and not isinstance(options, dict):
            raise self.fail("training", f"{options!r} is not an object")
        return options

    def mapping(self, place: str, value: Any, known: set[str], needed: set[str] = frozenset()) -> None:  # type: ignore[assignment]
        if not isinstance(value, dict):
            raise self.fail(place, f"{value!r} is not an object")
        unknown, missing = set(value) - known, needed - set(value)
        if unknown:
            raise self.fail(place, f"unknown key {', '.join(sorted(unknown))}; known are {', '.join(sorted(known))}")
        if missing:
            raise self.fail(place, f"{', '.join(sorted(missing))} is missing")

    def configuration(self, place: str, values: Any, axes: int) -> None:
        self.mapping(place, values, set(_VALUES))
        for key, value in values.items():
            check, wanted = _VALUES[key]
            if not check(value):
                raise self.fail(f"{place}.{key}", f"{value!r} is not {wanted}")
            if key in ("spacing", "patch_size") and len(value) != axes:
                raise self.fail(
                    f"{place}.{key}", f"{value!r} has {len(value)} values; this configuration has {axes} axes"
                )
        if "architecture" in values:
            self.mapping(
                f"{place}.architecture",
                values["architecture"],
                {"network_class_name", "arch_kwargs", "_kw_requires_import"},
            )


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _sizes(kind: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and len(value) in (2, 3) and all(kind(v) and v > 0 for v in value)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _dict(value: Any) -> bool:
    return isinstance(value, dict)


def _resampling(value: Any) -> bool:
    return value in _RESAMPLING


_INTENSITIES: Final = ("mean", "median", "std", "min", "max", "percentile_00_5", "percentile_99_5")
_RESAMPLING: Final = ("resample_data_or_seg_to_shape", "resample_torch_fornnunet", "no_resampling_hack")
_VALUES: Final[dict[str, tuple[Callable[[Any], bool], str]]] = {
    "spacing": (_sizes(_number), "three sizes in mm above zero, in the order z, y, x (2d: two, y, x)"),
    "patch_size": (_sizes(_whole), "three whole numbers above zero, in the order z, y, x (2d: two, y, x)"),
    "batch_size": (_whole, "a whole number above zero"),
    "batch_dice": (lambda value: isinstance(value, bool), "true or false"),
    "architecture": (_dict, "an object"),
    "normalization_schemes": (
        lambda value: isinstance(value, list) and bool(value) and all(name in NORMALIZATIONS for name in value),
        f"a list of {', '.join(NORMALIZATIONS)}, one for each channel",
    ),
    **{
        f"resampling_fn_{what}": (_resampling, f"one of {', '.join(_RESAMPLING)}")
        for what in ("data", "seg", "probabilities")
    },
    **{f"resampling_fn_{what}_kwargs": (_dict, "an object") for what in ("data", "seg", "probabilities")},
}


def apply_preset(plans: dict[str, Any], preset: Preset, stage: str) -> dict[str, Any]:
    """Plans with the preset's values for a stage laid over them. A configuration that nnU-Net has dropped is made."""
    result = deepcopy(plans)
    configurations = result["configurations"]
    # nnU-Net's own cascade would predict for its next stage after each training of 3d_lowres; ours goes another way.
    configurations.pop("3d_cascade_fullres", None)
    for name in CONFIGURATIONS:
        configurations.get(name, {}).pop("next_stage", None)
    if preset.training is not None:
        result["kits_cascade"] = dict(preset.training)
    if preset.intensities is not None:
        result["foreground_intensity_properties_per_channel"]["0"] = dict(preset.intensities)
    for name, values in preset.stages.get(stage, {}).items():
        base = deepcopy(configurations.get(name) or configurations["3d_fullres"])
        if name not in configurations:
            base |= {"data_identifier": f"{preset.plans_name}_{name}", "batch_dice": False}
        configurations[name] = _laid_over(base, values)
    return result


def _laid_over(base: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    result = {**base, **{key: deepcopy(value) for key, value in values.items() if key != "architecture"}}
    if "spacing" in values:
        ratio = [old / new for old, new in zip(base["spacing"], values["spacing"], strict=True)]
        sizes = zip(base["median_image_size_in_voxels"], ratio, strict=True)
        result["median_image_size_in_voxels"] = [float(round(size * factor)) for size, factor in sizes]
    new, old = values.get("architecture", {}), base["architecture"]
    if new.get("network_class_name", old["network_class_name"]) != old["network_class_name"]:
        result["architecture"] = deepcopy(dict(new))  # another network: nothing of the old one's arguments fits it
    else:
        kwargs = {**old["arch_kwargs"], **new.get("arch_kwargs", {})}
        result["architecture"] = {**old, **new, "arch_kwargs": deepcopy(kwargs)}
    return result
