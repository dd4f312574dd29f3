"""Recipes: trainings and other stages, one after the other, each with what the earlier ones leave."""

from odc.recipes.features import Features
from odc.recipes.pipeline import Pipeline
from odc.recipes.recipe import Recipe
from odc.recipes.reliable import Reliable
from odc.recipes.stage import Extract, Left, Stage, Train

__all__ = ["Extract", "Features", "Left", "Pipeline", "Recipe", "Reliable", "Stage", "Train"]
