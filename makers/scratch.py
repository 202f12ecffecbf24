"""Where long jobs keep what they have done: a folder that stays the same when a job is launched again."""

SCRATCH_VARIABLE = "HULLSEEKER_SCRATCH"
"""Names the root of the folders; without it nothing is kept."""
