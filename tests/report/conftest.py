"""One browser for all tests of the report: it takes seconds to start and to end."""

import pytest
from browser import browser


@pytest.fixture(scope="session")
def page(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as driven:
        yield driven
