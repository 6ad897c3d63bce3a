"""What the user asks for: recipes in our own format or mergekit's, checked, then run.

from merge_jax import recipes

recipes.check("ties.yml")                 what would be done; reads no weights
recipes.run("ties.yml", "merged")         does it
"""

from merge_jax.recipes.built import Built as Built
from merge_jax.recipes.job import build_one as build_one
from merge_jax.recipes.job import check as check
from merge_jax.recipes.job import refuse_output as refuse_output
from merge_jax.recipes.job import run as run
from merge_jax.recipes.reading import parse as parse
from merge_jax.recipes.reading import read as read
from merge_jax.recipes.schema import Recipe as Recipe
