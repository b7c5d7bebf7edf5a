"""One of each that a campaign does to runs."""

from __future__ import annotations

import pytest

from tools.faults.campaign import KINDS, main


@pytest.mark.disturbed
@pytest.mark.timeout(1500)
def test_one_of_each_goes_on_to_where_it_would_have_come() -> None:
    assert main([word for name in KINDS for word in (f"--{name}", "1")]) == 0
