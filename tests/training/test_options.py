"""Options in the plans: defaults, checks, and back again."""

import json

import pytest

from kits_cascade.errors import UsageError
from kits_cascade.training.trainer_options import TrainerOptions


def test_defaults_and_their_order():
    assert TrainerOptions.from_plans({}) == TrainerOptions()
    assert TrainerOptions.from_plans({}, {"surface_weight": 0.25}).surface_weight == 0.25
    both = TrainerOptions.from_plans({"kits_cascade": {"surface_weight": 1}}, {"surface_weight": 0.25, "seed": 3})
    assert (both.surface_weight, both.seed) == (1, 3)


def test_round_trip_through_json():
    options = TrainerOptions(surface_radius=(1, 2, 2), loggers=("tensorboard",), seed=1, prior_channels=(1,))
    plans = {"kits_cascade": json.loads(json.dumps(options.to_plans()))}
    assert TrainerOptions.from_plans(plans) == options


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"surface_wieght": 1}, "unknown option surface_wieght.*known are.*surface_weight"),
        ({"surface_weight": -1}, "surface_weight.*is -1.*at least 0"),
        ({"surface_weight": "much"}, "surface_weight.*'much'"),
        ({"surface_weight": float("nan")}, "surface_weight.*nan"),
        ({"boundary_weight": True}, "boundary_weight.*True"),
        ({"prior_probability": 1.5}, "prior_probability.*from 0 to 1"),
        ({"num_epochs": 0}, "num_epochs.*at least 1"),
        ({"num_epochs": 2.5}, "num_epochs.*2.5"),
        ({"seed": -1}, "seed"),
        ({"loss": "dice"}, "loss.*'dice'.*one of dice_ce, cross_entropy"),
        ({"optimizer": "SGD"}, "optimizer.*one of sgd, adam, adamw"),
        ({"learning_rate": 0}, "learning_rate.*above 0"),
        ({"weight_decay": -1}, "weight_decay.*of at least 0"),
        ({"patience": 0}, "patience.*at least 1"),
        ({"deep_supervision": 1}, "deep_supervision.*true, false or null"),
        ({"bfloat16": "yes"}, "bfloat16.*true, false or null"),
        ({"mirror": 0}, "mirror.*true, false or null"),
        ({"surface_radius": 1}, "surface_radius.*list of whole numbers"),
        ({"surface_radius": [1, -1, 1]}, "surface_radius"),
        ({"loggers": ["paper"]}, "loggers.*tensorboard, wandb"),
        ([], "must be an object"),
    ],
)
def test_wrong_options_are_named(entry, message):
    with pytest.raises(UsageError, match=message):
        TrainerOptions.from_plans({"kits_cascade": entry})


def test_every_loss_that_can_be_named_has_its_row():
    from kits_cascade.training.loss_table import LOSSES as ROWS
    from kits_cascade.training.trainer_options import LOSSES

    assert tuple(ROWS) == LOSSES
