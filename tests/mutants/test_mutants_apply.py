from __future__ import annotations

import pytest

from tests.mutants.run import Mutant, load_mutants


@pytest.mark.parametrize("mutant", load_mutants(), ids=lambda mutant: mutant.name)
def test_a_mutant_of_the_list_applies_to_the_code(mutant: Mutant) -> None:
    assert mutant.problem is None


def test_each_mutant_has_a_name_of_its_own() -> None:
    names = [mutant.name for mutant in load_mutants()]
    assert len(names) == len(set(names))
