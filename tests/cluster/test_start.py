"""Where a process stands among others, from its environment; who listens where."""

import pytest

from jaxscale import config as cfg
from jaxscale.cluster import start

HERE = {"JAXSCALE_COORDINATOR": "127.0.0.1:9876", "JAXSCALE_PROCESSES": "2", "JAXSCALE_PROCESS_ID": "1"}


def place(**environment):
    return start.find_place(cfg.Runtime(), environment)


def test_one_process_alone_needs_no_coordinator():
    assert place() is None
    assert place(SLURM_JOB_ID="7", SLURM_NTASKS="1", SLURM_PROCID="0", SLURM_STEP_NODELIST="n1") is None
    assert start.find_place(cfg.Runtime(distributed="never"), HERE) is None


def test_the_environment_gives_a_place():
    found = place(**HERE, JAXSCALE_LOCAL_DEVICE_IDS="1")
    assert (found.coordinator, found.processes, found.process_id) == ("127.0.0.1:9876", 2, 1)
    assert found.local_device_ids == (1,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"JAXSCALE_PROCESS_ID": ""}, "JAXSCALE_PROCESS_ID not; set all three"),
        ({"JAXSCALE_PROCESS_ID": "2"}, "is not below JAXSCALE_PROCESSES=2"),
        ({"JAXSCALE_PROCESSES": "two"}, "JAXSCALE_PROCESSES=two is not a number"),
        ({"JAXSCALE_COORDINATOR": "localhost"}, "is not HOST:PORT"),
        ({"JAXSCALE_COORDINATOR": "h:99999"}, "is not HOST:PORT"),
    ],
)
def test_half_a_place_is_refused_in_one_line(change, message):
    with pytest.raises(ValueError, match=message) as refused:
        place(**(HERE | change))
    assert "\n" not in str(refused.value)


def test_the_coordinator_listens_on_its_own_address_alone():
    at = lambda address, rank: start.bind_address(start.Place(address, 2, rank, None, "test"))  # noqa: E731
    assert at("localhost:0", 0) in ("127.0.0.1:0", "[::1]:0")
    assert at("localhost:0", 1) is None  # it listens nowhere
    with pytest.raises(ValueError, match=r"cannot listen .*192.0.2.7:9.*JAX_COORDINATOR_BIND_ADDRESS"):
        at("192.0.2.7:9", 0)  # an address of documentation (RFC 5737), never this machine's


@pytest.mark.parametrize(
    ("environment", "several"),
    [
        ({}, False),
        ({"SLURM_STEP_TASKS_PER_NODE": "1(x2)"}, False),
        ({"SLURM_STEP_TASKS_PER_NODE": "8(x2)"}, True),
        ({"SLURM_STEP_TASKS_PER_NODE": "1,2"}, True),
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, False),
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "4"}, True),
    ],
)
def test_a_process_with_a_machine_to_itself_takes_all_its_gpus(environment, several):
    assert start.several_here(environment) is several


def test_devices_are_the_same_number_on_each_process():
    from jaxscale.parallel.mesh import start_devices

    with pytest.raises(ValueError, match=r"simulated_devices=7 are not the same number on each of 2 processes; try 8"):
        start_devices(cfg.Runtime(platform="cpu", simulated_devices=7), 2)
