"""Every recipe with every scenario: it builds, or says in one line why not."""

import pytest

from swarm.build.scenario_files import load, scenario_names
from swarm.core.errors import ConfigError
from training.config import load_training, recipe_names
from training.runs.build import build_learner

DRONES = ("crossing", "delivery", "patrol", "vasarhelyi")
# Other numbers for rules that stand here by themselves.
VARIANTS = ("legion", "skirmish", "vicsek")


def build(scenario, **settings):
    loaded = load(scenario, {f"training.{key.replace('__', '.')}": value for key, value in settings.items()})
    return build_learner(loaded, load_training(loaded))


# Building traces the whole network without compiling it, so that what does not fit is found.
@pytest.mark.parametrize("recipe", recipe_names())
def test_every_recipe_fits_spread(recipe):
    # Those of IMPALA divide the worlds, those of PPO the steps of a rollout.
    settings = {"minibatches": 8} if recipe == "impala" else {}
    assert build("spread", recipe=recipe, **settings).config.recipe == recipe


# Spread takes all recipes in quick tests.
@pytest.mark.parametrize("recipe", ["mppo", pytest.param("mappo_rnn", marks=pytest.mark.slow)])
@pytest.mark.parametrize("scenario", sorted({*scenario_names()} - {"spread", *DRONES, *VARIANTS}))
def test_every_scenario_takes_recipes_with_and_without_maps(scenario, recipe):
    learner = build(scenario, recipe=recipe)
    assert learner.config.steps_per_update > 0


@pytest.mark.parametrize("scenario", ["crossing", "delivery", "vasarhelyi"])
def test_drones_without_maps_take_recipes_without_maps(scenario):
    assert build(scenario, recipe="mappo", network__encoders=["attention"]).config.recipe == "mappo"


def test_what_a_network_cannot_read_is_one_line(rivals):
    with pytest.raises(ConfigError, match=r"'map' .* Crossing"):
        build("crossing", recipe="mppo")
    with pytest.raises(ConfigError, match=r"'attention' finds no sets of things .* Rivals"):
        build(rivals, network__encoders=["attention"])


def test_attention_reads_the_sets_that_rules_name():
    # Alike things are treated alike: exchanging two of the other agents in a row changes nothing.
    learner = build("spread", network__encoders=["attention"])
    assert len(learner.simulator.rules.sets) == 2


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"teams": ["learn", "scripted"]}, "2 names for 1 team"),
        ({"teams": ["scripted"]}, "nobody learns"),
        ({"teams": ["nobody/here"]}, "nobody learns"),
        ({"minibatches": 7}, "does not divide rollout"),
        ({"minibatches": 7, "recipe": "impala"}, "the same number of worlds of every device"),
        ({"network__encoders": ["map", "map"]}, "name each encoder once"),
        ({"credit__learn_own_weight": True}, "start it between 0 and 1"),
        ({"anneal": ["colour"]}, "anneal"),
        ({"clip": 0.0}, 'only algorithm = "impala"'),
        ({"teacher__policy": "nobody/here"}, "training.teacher.policy: 'nobody/here': neither \"scripted\" nor"),
        ({"teacher__policy": "scripted", "teacher__until": 0.0}, "teacher.until"),
    ],
)
def test_impossible_settings_stop_before_anything_compiles(setting, message):
    with pytest.raises(ConfigError, match=message):
        build("spread", **setting)


def test_an_unknown_opponent_is_named():
    with pytest.raises(ConfigError, match="'nobody/here': neither"):
        build("battle", teams=["learn", "nobody/here"])
