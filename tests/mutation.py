"""The pytest plugin of `make mutation` (`-p tests.mutation`): Hypothesis repeats itself exactly, and neither shrinks nor explains.

A mutant is killed by the first example that fails; making that example small would cost most of the time.
"""

from hypothesis import HealthCheck, Phase, settings

settings.register_profile(
    "mutation",
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=50,
    phases=[Phase.explicit, Phase.generate],
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)
settings.load_profile("mutation")
