"""One model on the device of a table: a slow model, a slow moment and a slow device are three things."""

from __future__ import annotations

from dataclasses import replace

import pytest
from torch import nn

from hwnas.errors import MeasurementError
from hwnas.latency.calibration import calibration_record
from hwnas.latency.device import NUM_TRIES, Device, Timed
from hwnas.latency.measure import NUM_ROUNDS
from hwnas.latency.measurement import said_slowdown
from hwnas.space import SearchSpace, Shape
from hwnas.supernet.supernet import Network
from hwnas.testing.toys import AnalyticProfiler, AnalyticSession, toy_space, toy_table


class Changing(AnalyticProfiler):
    """The analytic device, slower by a factor; its first model is disturbed until a number of visits."""

    def __init__(self, factor: float = 1.0, quiet_from: int = 0) -> None:
        super().__init__()
        self.factor, self.quiet_from, self.sessions = factor, quiet_from, list[Visited]()

    def prepare(self, model: bytes | nn.Module, input_shape: Shape) -> AnalyticSession:
        assert isinstance(model, nn.Module)
        self.sessions.append(Visited(self, model, (1, *input_shape)))
        return self.sessions[-1]


class Visited(AnalyticSession):
    """Counts its visits."""

    def __init__(self, device: Changing, model: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__(model, shape, 0.0)
        self.device, self.first, self.visits, self.closed = device, not device.sessions, 0, False

    def time_ms(self, *, budget_ms: float) -> list[float]:
        self.visits += 1
        disturbed = self.first and self.visits < self.device.quiet_from
        factor = self.device.factor * (2 if disturbed else 1)
        return [factor * ms for ms in super().time_ms(budget_ms=budget_ms)]

    def close(self) -> None:
        self.closed = True


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hwnas.latency.device.PAUSE_SECONDS", 0.0)


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    return toy_space()


@pytest.fixture(scope="module")
def network(space: SearchSpace) -> Network:
    return Network(space, space.architecture([0, 1, 0])).eval()


@pytest.fixture(scope="module")
def true_ms(space: SearchSpace, network: Network) -> float:
    return Device(AnalyticProfiler(), toy_table(space)).measure(network, space).ms


def swept(profiler: AnalyticProfiler, space: SearchSpace) -> Device:
    """A device with a table whose sweep measured every network."""
    quiet, networks = AnalyticProfiler(), list(space)
    measured = [
        (a, quiet.prepare(Network(space, a).eval(), space.input_shape).time_ms(budget_ms=1)[0]) for a in networks
    ]
    return Device(
        profiler, replace(toy_table(space), calibrations={space.fingerprint: calibration_record(space, measured)})
    )


@pytest.mark.parametrize(("quiet_from", "visits"), [(0, 1), (NUM_ROUNDS + 1, 2), (10**6, NUM_TRIES)])
def test_a_miss_is_looked_at_again_until_it_is_none_or_stays(
    space: SearchSpace, network: Network, true_ms: float, quiet_from: int, visits: int
) -> None:
    profiler = Changing(quiet_from=quiet_from)
    timed = Device(profiler, toy_table(space)).measure(network, space, limit_ms=1.5 * true_ms)
    (only,) = profiler.sessions
    assert (only.visits, timed.slowdown) == (visits * NUM_ROUNDS, 1.0)
    assert timed.ms == pytest.approx(true_ms * (2 if visits == NUM_TRIES else 1))


@pytest.mark.parametrize("factor", [1.0, 1.07, 1.6])
def test_a_device_slower_than_in_its_sweep_is_told_from_a_slow_network(
    space: SearchSpace, network: Network, true_ms: float, factor: float
) -> None:
    profiler = Changing(factor)
    timed = swept(profiler, space).measure(network, space, limit_ms=0.99 * true_ms)
    assert timed.ms == pytest.approx(true_ms)
    assert timed.slowdown == pytest.approx(factor)
    assert timed.measurement.ms == pytest.approx(factor * true_ms)
    own, *witnesses = profiler.sessions
    assert [each.visits for each in witnesses] == 3 * [NUM_ROUNDS]
    assert all(each.closed for each in (own, *witnesses))


def test_noise_is_no_slowdown(space: SearchSpace, network: Network, true_ms: float) -> None:
    timed = swept(Changing(1.008), space).measure(network, space, limit_ms=0.99 * true_ms)
    assert timed.slowdown == 1.0
    assert timed.ms == pytest.approx(1.008 * true_ms)


def test_networks_of_the_sweep_that_fail_today_cost_nothing(
    space: SearchSpace, network: Network, true_ms: float, caplog: pytest.LogCaptureFixture
) -> None:
    class Full(Changing):
        def prepare(self, model: bytes | nn.Module, input_shape: Shape) -> AnalyticSession:
            if self.sessions:
                raise MeasurementError("out of memory")
            return super().prepare(model, input_shape)

    timed = swept(Full(1.5), space).measure(network, space, limit_ms=true_ms)
    assert (timed.slowdown, timed.ms) == (1.0, pytest.approx(1.5 * true_ms))
    assert "cannot be timed again (out of memory)" in caplog.text


def test_a_slow_network_is_not_excused(space: SearchSpace, network: Network, true_ms: float) -> None:
    profiler = Changing(quiet_from=10**6)  # the network alone is slow, its witnesses are not
    timed = swept(profiler, space).measure(network, space, limit_ms=true_ms)
    assert timed.slowdown == pytest.approx(1.0)
    assert timed.ms == pytest.approx(2 * true_ms)


def test_a_device_faster_than_in_its_sweep_is_no_handicap(space: SearchSpace, network: Network, true_ms: float) -> None:
    timed = swept(Changing(0.9), space).measure(network, space, limit_ms=0.5 * true_ms)
    assert timed.slowdown == 1.0
    assert timed.ms == pytest.approx(0.9 * true_ms)


def test_nobody_looks_where_the_limit_is_kept_or_there_is_none(space: SearchSpace, network: Network) -> None:
    for limit_ms in (10.0, float("inf")):
        profiler = Changing(3.0)
        swept(profiler, space).measure(network, space, limit_ms=limit_ms)
        assert [each.visits for each in profiler.sessions] == [NUM_ROUNDS]


def test_only_a_slowdown_is_spoken_of() -> None:
    assert said_slowdown(Timed([[1.0]]).slowdown) == ""
    assert "1.25 times slower" in said_slowdown(Timed([[1.0]], 1.25).slowdown)
