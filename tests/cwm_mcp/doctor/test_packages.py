"""The doctor's word on the versions that are installed beside CWM."""

import importlib.metadata

import pytest

from cwm_mcp.doctor.packages import check_packages

REQUIRES = ["vllm<0.34,>=0.31; extra == 'cuda'", "lmcache==0.5.6; extra == 'cuda'", "redis>=8"]


def statuses(**versions: str) -> dict[str, tuple[str, str]]:
    def version_of(distribution: str) -> str:
        if distribution in versions:
            return versions[distribution]
        raise importlib.metadata.PackageNotFoundError(distribution)

    found = check_packages(version_of, REQUIRES)
    return {check.name: (check.status, check.message) for check in found if check.name != "python"}


def test_the_version_that_every_test_ran_with_is_well() -> None:
    found = statuses(vllm="0.32.1", lmcache="0.5.6")
    assert found == {"vllm": ("ok", "0.32.1"), "lmcache": ("ok", "0.5.6")}


@pytest.mark.parametrize("version", ["0.31.0", "0.31.2", "0.33.0", "0.33.4+cu130"])
def test_a_version_that_was_never_run_is_a_warning(version: str) -> None:
    status, message = statuses(vllm=version, lmcache="0.5.6")["vllm"]
    assert status == "warning"
    assert message == f"{version} should work but was never run with CWM, which was tested with 0.32"


@pytest.mark.parametrize("version", ["0.30.9", "0.34.0", "1.0"])
def test_a_version_out_of_the_range_is_an_error(version: str) -> None:
    status, message = statuses(vllm=version, lmcache="0.5.6")["vllm"]
    assert status == "error"
    assert message == f"{version} is installed; <0.34,>=0.31 is required"


def test_an_exact_version_allows_no_other() -> None:
    assert statuses(vllm="0.32.0", lmcache="0.5.5")["lmcache"][0] == "error"
    assert statuses(vllm="0.32.0", lmcache="0.5.6.1")["lmcache"][0] == "error"
