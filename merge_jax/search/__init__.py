"""Gradient-free search for the best merge of a pool: a fold over an append-only journal."""

from merge_jax.search.analysis import task_correlation as task_correlation
from merge_jax.search.fitness import Fitness as Fitness
from merge_jax.search.journal import Journal as Journal
from merge_jax.search.journal import Record as Record
from merge_jax.search.loop import Budget as Budget
from merge_jax.search.loop import Proposal as Proposal
from merge_jax.search.loop import measure as measure
from merge_jax.search.loop import search as search
from merge_jax.search.pareto import front as front
from merge_jax.search.pareto import hypervolume as hypervolume
from merge_jax.search.point import Candidate as Candidate
from merge_jax.search.point import Point as Point
from merge_jax.search.proposers import Options as Options
from merge_jax.search.proposers import proposer as proposer
from merge_jax.search.space import Space as Space
from merge_jax.search.space import space as space
