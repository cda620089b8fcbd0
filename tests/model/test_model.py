"""Every schedule of small cases, over the real loops; and mistakes that must be found, or the model proves nothing."""

import pytest

from tests.model.cases import IN_THE_SUITE, MISTAKES_IN_THE_SUITE, with_mistake
from tests.model.explore import Case, explore
from tests.stack import tell


@pytest.mark.parametrize("case", IN_THE_SUITE, ids=lambda case: case.name)
def test_no_schedule_breaks_a_promise(case: Case) -> None:
    result = explore(case)
    tell(f"{case.name}: {result.states} states, {result.edges} transitions, {result.seconds:.0f} s")
    assert not result.violation, (result.violation, result.schedule)
    assert result.is_whole
    assert result.complete


@pytest.mark.parametrize("name", MISTAKES_IN_THE_SUITE)
def test_a_mistake_is_found_with_its_schedule(name: str) -> None:
    result = explore(with_mistake(name))
    assert result.violation
    assert result.schedule
